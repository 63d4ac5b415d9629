"""The rules of `grammar_rules`, compiled to a stack machine that writes many windows at once.

The state of a window is a stack of 6-bit symbols in one integer. At the bottom lies the document
with its number of facts; above it lies each open clause (as its noun) and each open bracket. A
*row* is one state's choice of words. Tables say for each row and each random byte which word comes,
what the word does to the stack, and which row is next.

Randomness is a counter hash (splitmix64) of (seed, split, window, position) in wrapping integer
arithmetic, and all choices are made on integers: the words are the same on every machine and
version. Words are drawn by one byte, exactly. Keys are drawn uniformly by a 32-bit multiply-shift,
whose bias (below 2e-9) is under the resolution of the float32 log-probabilities.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qbench_tasks.grammar_rules import (
    ADJECTIVE,
    AFTER_ADJECTIVE,
    AFTER_NOUN,
    AFTER_PREPOSITION,
    AFTER_VERB,
    ASK,
    BOS,
    CLOSER,
    DEPTH,
    FACTS,
    INSIDE,
    KEY,
    LET,
    NOUN,
    OPENER,
    PREPOSITION,
    START,
    SUBJECT,
    THAT,
    THE,
    VALUE,
    VERB,
    VERSION,
    VOCAB,
    Weights,
)

Windows = tuple[NDArray[np.uint8], NDArray[np.float32]]  # tokens and their log-probabilities


def run_machine(stream: int, first: int, count: int, length: int) -> Windows:
    """Return `count` windows of a stream, each `length` tokens long, from window `first` on."""
    byte, high = _draw_noise(stream, first, count, length)
    # All windows take a step together, so arrays are (position, window) until the end.
    tokens = np.zeros((length, count), np.uint8)
    cells = np.zeros((length, count), np.int64)
    values = np.zeros((count, len(KEY)), np.uint8)
    # The keys of the document's facts come first in each row, then the others.
    keys = np.tile(np.arange(len(KEY)), (count, 1))
    stack = np.full(count, SYMBOL[Row("doc", 0)])
    row = np.full(count, ROW_INDEX[Row("doc", 0)])
    for t in range(1, length):
        cell = np.add(row << 8, byte[t], out=cells[t])
        tokens[t] = _TOKEN[cell]
        special = np.flatnonzero(row < _SPECIAL_ROWS)
        kind = row[special]
        if (chosen := special[kind < _KEY_ROWS]).size:
            low = _FIRST_KEY[row[chosen]]
            slot = low + (high[t, chosen] * KEY_CHOICES[row[chosen]] >> 32)
            # The drawn key changes places with the first that could be drawn. So after "let" it
            # belongs to the document's facts, and after "ask" only their order changes.
            key = keys[chosen, slot]
            keys[chosen, slot] = keys[chosen, low]
            keys[chosen, low] = key
            tokens[t, chosen] = KEY.start + key
        if (chosen := special[kind == _KEY_ROWS]).size:  # an answer: read the key's value
            tokens[t, chosen] = values[chosen, tokens[t - 1, chosen] - KEY.start]
        if (chosen := special[kind > _KEY_ROWS]).size:  # a value: store it under its key
            values[chosen, tokens[t - 1, chosen] - KEY.start] = tokens[t, chosen]
        stack = (stack >> _DOWN[cell] << _UP[cell]) + _ADD[cell]
        following = _NEXT[cell]
        row = np.where(following < 0, _TOP[(stack & 63) + 64 * (stack >= _FULL)], following)
    logp = _LOGP[cells]
    logp[0] = 0.0
    return np.ascontiguousarray(tokens.T), np.ascontiguousarray(logp.T)


def stream_key(seed: int, split: str) -> int:
    """Return the number that distinguishes the stream of a seed and split from all others."""
    digest = hashlib.sha256(f"grammar {VERSION} {seed} {split}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def compute_fingerprint() -> str:
    """Return a hash of the distribution: version, words, all tables of the machine, a sample."""
    digest = hashlib.sha256(f"grammar {VERSION} {DEPTH} {FACTS} {VOCAB}".encode())
    sample = run_machine(stream_key(0, "train"), 0, 4, 129)[0]
    for table in (_TOKEN, _DOWN, _UP, _ADD, _NEXT, _TOP, _FIRST_KEY, KEY_CHOICES, sample):
        digest.update(np.ascontiguousarray(table, dtype="<i8").tobytes())
    return digest.hexdigest()


def _draw_noise(
    stream: int, first: int, count: int, length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a byte and a 32-bit number for each position and window, as (position, window)."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    window = _mix_bits(
        np.arange(first, first + count, dtype=np.uint64) * golden + np.array(stream, np.uint64)
    )
    noise = _mix_bits(window + np.arange(length, dtype=np.uint64)[:, None] * golden)
    byte = (noise & np.uint64(255)).astype(np.int64)
    return byte, (noise >> np.uint64(32)).astype(np.int64)


def _mix_bits(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply the finaliser of splitmix64 to x in place."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)
    return x


# ---- rows and the stack ----


class Row(NamedTuple):
    """A choice of words that the stack machine can be about to make."""

    part: str
    word: int = -1  # what it depends on: a word, a verb's stem, or the number of facts
    room: bool = True  # whether another clause or bracket may be opened


BITS = 6  # bits of a symbol on the stack
_FULL = 1 << BITS * DEPTH  # a stack from here on has no room
SYMBOLS = (
    [Row("doc", n) for n in range(FACTS + 1)]
    + [Row("noun", t) for t in NOUN]
    + [Row("in", t) for t in OPENER]
)
SYMBOL = {name: symbol for symbol, name in enumerate(SYMBOLS, 1)}
# The rows of keys come first, because their words are not in the tables.
ROWS: dict[Row, Weights] = {
    **{Row("let", n): {} for n in range(FACTS)},
    **{Row("ask", n): {} for n in range(1, FACTS + 1)},
    Row("answer"): {},
    Row("value"): dict.fromkeys(VALUE, 32),
    **{Row("doc", n): weights for n, weights in enumerate(START)},
    Row("subject"): SUBJECT,
    **{Row("subject", a): weights for a, weights in AFTER_ADJECTIVE.items()},
    **{Row("other", a): weights for a, weights in AFTER_ADJECTIVE.items()},
    **{Row("behind", p): weights for p, weights in AFTER_PREPOSITION.items()},
    **{Row("noun", *state): weights for state, weights in AFTER_NOUN.items()},
    **{Row("in", *state): weights for state, weights in INSIDE.items()},
    **{Row("verb", stem): weights for stem, weights in enumerate(AFTER_VERB)},
}
ROW_INDEX = {row: index for index, row in enumerate(ROWS)}
_KEY_ROWS = 2 * FACTS  # "let" and "ask"
_SPECIAL_ROWS = _KEY_ROWS + 2  # and "answer" and "value": rows that read or write the facts
# How many keys can stand in a row of keys, and where they begin in the window's order of keys.
KEY_CHOICES = np.array([len(KEY) - n for n in range(FACTS)] + list(range(1, FACTS + 1)))
_FIRST_KEY = np.array(list(range(FACTS)) + [0] * FACTS)


def find_effect(row: Row, token: int) -> tuple[int, int, int, Row | None]:
    """Return what a word does to the stack, and the next row.

    The stack is shifted down by the first number of bits and up by the second, and the third number
    is added. Where the next row is None, the top of the new stack decides it.
    """
    if row.part == "doc":
        if token == BOS:
            return BITS, BITS, SYMBOL[Row("doc", 0)], None
        following = {LET: Row("let", row.word), ASK: Row("ask", row.word), THE: Row("subject")}
        return 0, 0, 0, following[token]
    if row.part in ("let", "ask"):
        return 0, 0, 0, Row("value" if row.part == "let" else "answer")
    if row.part in ("answer", "value"):
        return 0, 0, int(row.part == "value"), None  # one fact more is the document's next symbol
    if token in ADJECTIVE:
        return 0, 0, 0, Row("subject" if row.part == "subject" else "other", token)
    if token in PREPOSITION:
        return 0, 0, 0, Row("behind", token)
    if token in (THE, THAT):
        return 0, 0, 0, Row("subject")
    if token in VERB:
        return BITS, 0, 0, Row("verb", (token - VERB.start) // 4)
    if token in CLOSER:
        return BITS, 0, 0, None
    if token in OPENER or row.part == "subject":
        return 0, BITS, SYMBOL[Row("in" if token in OPENER else "noun", token)], None
    return 0, 0, 0, None


def row_on_top(stack: int) -> Row:
    """Return the row that the top of a stack asks for."""
    name = SYMBOLS[(stack & (1 << BITS) - 1) - 1]
    return name if name.part == "doc" else name._replace(room=stack < _FULL)


# ---- the tables ----


def _compile_tables() -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the tables of the machine, each indexed by 256 · row + byte.

    The first array holds the word, its effect on the stack (three tables) and the next row, which
    is −1 where the stack decides. The second holds the word's log-probability.
    """
    table = np.zeros((5, len(ROWS), 256), np.int64)
    logp = np.zeros((len(ROWS), 256), np.float32)
    for row, weights in ROWS.items():
        index, byte = ROW_INDEX[row], 0
        for token, weight in (weights or {BOS: 256}).items():
            down, up, add, following = find_effect(row, token)
            table[:, index, byte : byte + weight] = np.array(
                [[token], [down], [up], [add], [ROW_INDEX[following] if following else -1]]
            )
            logp[index, byte : byte + weight] = np.log(weight / 256)
            byte += weight
        assert byte == 256, row
    logp[:_KEY_ROWS] = -np.log(KEY_CHOICES)[:, None]
    return table.reshape(5, -1), logp.ravel()


(_TOKEN, _DOWN, _UP, _ADD, _NEXT), _LOGP = _compile_tables()
# The row that each symbol on top asks for: with room first, then without.
_TOP = np.zeros(2 << BITS, np.int64)
for _symbol in SYMBOL.values():
    _TOP[_symbol] = ROW_INDEX[row_on_top(_symbol)]
    _TOP[_symbol + (1 << BITS)] = ROW_INDEX[row_on_top(_FULL + _symbol)]
