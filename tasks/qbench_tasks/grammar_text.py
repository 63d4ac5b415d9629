"""The text of the task `grammar`, generated: windows of words, each with its true log-probability.

A model's loss on real text has an unknown floor, so nobody can say what share of a loss quantization caused. Here the floor is known word
by word: `grammar_rules` is the language (read it first), and every window starts with a document, so a model that sees the window sees all
that the floor conditions on. The last document is cut by the window's end.

`_generate` is the rules compiled to the tables of a stack machine that takes one step in a thousand windows at once; `entropy_rate` is the
machine with its words lumped by part of speech: a Markov chain small enough to follow exactly.

Randomness is a counter hash (splitmix64) of (seed, split, window, position) in wrapping integer arithmetic, and all choices are made on
integers: the same words on every machine and version. Words are drawn by one byte, exactly. Keys are drawn uniformly by a 32-bit
multiply-shift, whose bias (below 2e-9) is under the resolution of the float32 log-probabilities.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
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
    ID,
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
    brackets,
)

SPLITS = ("train", "val", "test")
KINDS = ("agreement", "nesting", "recall")


class Pair(NamedTuple):
    """Two sequences that differ in their last word alone: a good one, and an impossible one."""

    kind: str
    prefix: str
    good: str
    bad: str
    good_tokens: list[int]
    bad_tokens: list[int]


def render(tokens: Sequence[int] | NDArray[np.uint8]) -> str:
    """For people, and for a tokenizer that splits at blanks."""
    return " ".join(VOCAB[token] for token in tokens)


def encode(text: str) -> list[int]:
    """The inverse of `render`."""
    return [ID[word] for word in text.split()]


Windows = tuple[NDArray[np.uint8], NDArray[np.float32]]


def windows(
    seed: int,
    first: int,
    count: int,
    context: int,
    split: str,
    made: Callable[[int, str, int, int], Windows] | None = None,
) -> Windows:
    """Windows first … first + count − 1 of an endless stream: tokens and their true log-probabilities in nats, both (count, context + 1).

    Inputs are `tokens[:, :-1]`, targets `tokens[:, 1:]`, and the floor of exactly those targets is `-logp[:, 1:].mean()`; column 0 is
    <doc>, with logp 0. A window depends on (seed, split, its index) alone; a shorter context gives its beginning. They are cut out
    of chunks by `made`: `chunk`, or a cache of it of one's own.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
    starts = range(first // _CHUNK * _CHUNK, first + count, _CHUNK)
    chunks = ((made or chunk)(seed, split, context, start) for start in starts)
    parts = [
        [array[max(first - start, 0) : first + count - start] for array in each]
        for start, each in zip(starts, chunks, strict=True)
    ]
    return np.concatenate([tokens for tokens, _ in parts]), np.concatenate(
        [logp for _, logp in parts]
    )


@lru_cache
def entropy_rate(context: int) -> float:
    """Expected nats per target of a window, in closed form.

    What a clause talks about never decides how long it gets, so the words that could stand in a place are distributed alike at any time and
    depth. The chain over (part of speech, open frames, number of facts) is therefore Markov, and a row's entropy is averaged over its words.
    """
    nats = _lumped_entropies()
    start = (Row("doc", 0), _SYMBOL[Row("doc", 0)])
    ids, edges, todo = {start: 0}, [], [start]
    while todo:
        row, stack = state = todo.pop()
        for token, weight in (_ROWS[row] or {BOS: 256}).items():
            down, up, add, following = _effect(row, token)
            new = (stack >> down << up) + (_SYMBOL[_lump(_SYMBOLS[add - 1])] if up else add)
            after = (_lump(following or _row_on_top(new)), new)
            if after not in ids:
                ids[after] = len(ids)
                todo.append(after)
            edges.append((ids[state], ids[after], weight / 256))
    source, target, share = (np.array(column) for column in zip(*edges, strict=True))
    entropy = np.array([nats[row] for row, _ in ids])
    here, total = np.eye(1, len(ids))[0], 0.0
    for _ in range(context):
        total += float(here @ entropy)
        here = np.bincount(target, weights=here[source] * share, minlength=len(ids))
    return total / context


def critical(tokens: NDArray[np.uint8], kind: str) -> NDArray[np.bool_]:
    """Where in windows of tokens a word stands that agreement (a verb), nesting (a closing bracket) or recall (an answer) decides."""
    if kind == "recall":
        out = np.zeros(tokens.shape, bool)
        out[..., 2:] = tokens[..., :-2] == ASK
        return out
    part = {"agreement": VERB, "nesting": CLOSER}[kind]
    return (tokens >= part.start) & (tokens < part.stop)


def minimal_pairs(seed: int, count: int, kind: str, context: int = 128) -> list[Pair]:
    """Pairs of sequences from <doc> to a critical word, at most `context` + 1 tokens long; a prefix may come more than once.

    Chosen so that the nearest cue misleads: the last noun has another ending than the verb, and the bad verb follows it; the last bracket is
    of another type than the one to close, and the bad closer is its; the bad answer is the latest other value in the document. The windows
    come from a stream of their own.
    """
    pairs: list[Pair] = []
    for start in range(0, 1000 * _CHUNK, _CHUNK):
        tokens, _ = chunk(seed, "pairs", context, start)
        for row, end in np.argwhere(critical(tokens, kind)):
            document = int(np.flatnonzero(tokens[row, :end] == BOS)[-1])
            prefix = tokens[row, document:end].tolist()
            good = int(tokens[row, end])
            bad = _tempting(prefix, good, kind)
            if bad is not None:
                pairs.append(
                    Pair(
                        kind,
                        render(prefix),
                        VOCAB[good],
                        VOCAB[bad],
                        [*prefix, good],
                        [*prefix, bad],
                    )
                )
            if len(pairs) == count:
                return pairs
    raise AssertionError(f"no {count} pairs of kind {kind} with context {context}")


@lru_cache(1)
def fingerprint() -> str:
    """Names the distribution: version, words, every table of the machine, and a sample."""
    digest = hashlib.sha256(f"grammar {VERSION} {DEPTH} {FACTS} {VOCAB}".encode())
    for table in (
        _TOKEN,
        _DOWN,
        _UP,
        _ADD,
        _NEXT,
        _TOP,
        _LOW,
        _SPAN,
        _generate(_stream(0, "train"), 0, 4, 129)[0],
    ):
        digest.update(np.ascontiguousarray(table, dtype="<i8").tobytes())
    return digest.hexdigest()


class Row(NamedTuple):
    """A choice of words that the stack machine can be about to make."""

    part: str
    word: int = -1  # what it depends on: a word, a verb's stem, or the number of facts
    room: bool = True  # whether another clause or bracket may be opened


# The same, compiled. A stack of 6-bit symbols in one integer: at the bottom the document with its number of facts, above it each open
# clause (as its noun) and bracket. A row is a state's choice of words; the key rows come first, because their words are not in the tables.

_BITS = 6
_FULL = 1 << _BITS * DEPTH  # a stack from here on has no room
_SYMBOLS = (
    [Row("doc", n) for n in range(FACTS + 1)]
    + [Row("noun", t) for t in NOUN]
    + [Row("in", t) for t in OPENER]
)
_SYMBOL = {name: symbol for symbol, name in enumerate(_SYMBOLS, 1)}
_ROWS: dict[Row, Weights] = {
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
_KEY_ROWS = 2 * FACTS  # "let" and "ask"
_SPECIAL = _KEY_ROWS + 2  # and "answer" and "value": rows that read or write the facts
_INDEX = {row: index for index, row in enumerate(_ROWS)}
_SPAN = np.array(
    [len(KEY) - n for n in range(FACTS)] + list(range(1, FACTS + 1))
)  # how many keys can stand in a key row
_LOW = np.array(
    list(range(FACTS)) + [0] * FACTS
)  # and where they begin in the window's order of keys


def _effect(row: Row, token: int) -> tuple[int, int, int, Row | None]:
    """What a word does to the stack (bits down, bits up, symbol added) and the next row; None: as the top of the stack says."""
    if row.part == "doc":
        if token == BOS:
            return _BITS, _BITS, _SYMBOL[Row("doc", 0)], None
        return (
            0,
            0,
            0,
            {LET: Row("let", row.word), ASK: Row("ask", row.word), THE: Row("subject")}[token],
        )
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
        return _BITS, 0, 0, Row("verb", (token - VERB.start) // 4)
    if token in CLOSER:
        return _BITS, 0, 0, None
    if token in OPENER or row.part == "subject":
        return 0, _BITS, _SYMBOL[Row("in" if token in OPENER else "noun", token)], None
    return 0, 0, 0, None


def _row_on_top(stack: int) -> Row:
    name = _SYMBOLS[(stack & (1 << _BITS) - 1) - 1]
    return name if name.part == "doc" else name._replace(room=stack < _FULL)


def _compile() -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each row and byte: the word, its effect on the stack, the next row (−1: as the stack says); and the word's log-probability."""
    table = np.zeros((5, len(_ROWS), 256), np.int64)
    logp = np.zeros((len(_ROWS), 256), np.float32)
    for row, weights in _ROWS.items():
        index, byte = _INDEX[row], 0
        for token, weight in (weights or {BOS: 256}).items():
            down, up, add, following = _effect(row, token)
            table[:, index, byte : byte + weight] = np.array(
                [[token], [down], [up], [add], [_INDEX[following] if following else -1]]
            )
            logp[index, byte : byte + weight] = np.log(weight / 256)
            byte += weight
        assert byte == 256, row
    logp[:_KEY_ROWS] = -np.log(_SPAN)[:, None]
    return table.reshape(5, -1), logp.ravel()


(_TOKEN, _DOWN, _UP, _ADD, _NEXT), _LOGP = _compile()
_TOP = np.zeros(2 << _BITS, np.int64)  # the row of each symbol on top, with room and then without
for _symbol in _SYMBOL.values():
    _TOP[_symbol], _TOP[_symbol + (1 << _BITS)] = (
        _INDEX[_row_on_top(_symbol)],
        _INDEX[_row_on_top(_FULL + _symbol)],
    )


def _stream(seed: int, split: str) -> int:
    return int.from_bytes(
        hashlib.sha256(f"grammar {VERSION} {seed} {split}".encode()).digest()[:8], "little"
    )


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64, in place."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)
    return x


def _generate(
    stream: int, first: int, count: int, length: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """All windows take a step together; arrays are (position, window) until the end."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    window = _mix(
        np.arange(first, first + count, dtype=np.uint64) * golden + np.array(stream, np.uint64)
    )
    noise = _mix(window + np.arange(length, dtype=np.uint64)[:, None] * golden)
    byte, high = (
        (noise & np.uint64(255)).astype(np.int64),
        (noise >> np.uint64(32)).astype(np.int64),
    )
    tokens = np.zeros((length, count), np.uint8)
    cells = np.zeros((length, count), np.int64)
    values = np.zeros((count, len(KEY)), np.uint8)
    keys = np.tile(
        np.arange(len(KEY)), (count, 1)
    )  # those of the document's facts come first, then the others
    stack = np.full(count, _SYMBOL[Row("doc", 0)])
    row = np.full(count, _INDEX[Row("doc", 0)])
    for t in range(1, length):
        cell = np.add(row << 8, byte[t], out=cells[t])
        tokens[t] = _TOKEN[cell]
        special = np.flatnonzero(row < _SPECIAL)
        kind = row[special]
        if (who := special[kind < _KEY_ROWS]).size:
            low = _LOW[row[who]]
            slot = low + (high[t, who] * _SPAN[row[who]] >> 32)
            key = keys[who, slot]
            keys[who, slot] = keys[who, low]
            keys[who, low] = key
            tokens[t, who] = KEY.start + key
        if (who := special[kind == _KEY_ROWS]).size:
            tokens[t, who] = values[who, tokens[t - 1, who] - KEY.start]
        if (who := special[kind > _KEY_ROWS]).size:
            values[who, tokens[t - 1, who] - KEY.start] = tokens[t, who]
        stack = (stack >> _DOWN[cell] << _UP[cell]) + _ADD[cell]
        following = _NEXT[cell]
        row = np.where(following < 0, _TOP[(stack & 63) + 64 * (stack >= _FULL)], following)
    logp = _LOGP[cells]
    logp[0] = 0.0
    return np.ascontiguousarray(tokens.T), np.ascontiguousarray(logp.T)


_CHUNK = 1024


@lru_cache(16)
def chunk(seed: int, split: str, context: int, start: int) -> Windows:
    """Windows are made by the thousand, because a step costs NumPy calls whatever the number of windows."""
    return _generate(_stream(seed, split), start, _CHUNK, context + 1)


def _tempting(prefix: list[int], good: int, kind: str) -> int | None:
    """The word that the nearest cue calls for, where that is not the good one."""
    part = {"agreement": NOUN, "nesting": range(OPENER.start, CLOSER.stop), "recall": VALUE}[kind]
    cues = [token for token in reversed(prefix) if token in part]
    if kind == "agreement":
        bad = VERB[(good - VERB.start) // 4 * 4 + (cues[0] - NOUN.start) % 4]
    elif kind == "nesting":
        bad = CLOSER[(cues[0] - OPENER.start) % 3]
    else:
        bad = next((value for value in cues if value != good), good)
    return bad if bad != good else None


# And once more, lumped: what a row is worth on average over the words that could stand there, and which words need not be told apart for
# that.


def _lump(row: Row) -> Row:
    first = {
        "subject": ADJECTIVE[0],
        "other": ADJECTIVE[0],
        "behind": PREPOSITION[0],
        "noun": NOUN[0],
        "in": OPENER[0],
        "verb": 0,
    }
    return row._replace(word=first[row.part]) if row.part in first and row.word >= 0 else row


def _lumped_entropies() -> dict[Row, float]:
    """Nats of each lumped row: the mean over its members, weighted by how often each comes."""
    adjective = {a: SUBJECT[a] / 64 for a in ADJECTIVE}
    noun = {
        t: (SUBJECT[t] + sum(SUBJECT[a] * AFTER_ADJECTIVE[a][t] / 256 for a in ADJECTIVE)) / 256
        for t in NOUN
    }
    preposition = {
        p: sum(noun[t] * AFTER_NOUN[t, False][p] / 64 for t in NOUN) for p in PREPOSITION
    }
    stem = {
        v: sum(
            noun[t] * AFTER_NOUN[t, False].get(w, 0) / 192
            for t in NOUN
            for w in VERB[4 * v : 4 * v + 4]
        )
        for v in range(6)
    }
    opener = {o: weight / 10 for o, weight in brackets(1).items()}
    shares = {
        "subject": adjective,
        "other": adjective,
        "behind": preposition,
        "noun": noun,
        "in": opener,
        "verb": stem,
    }
    out: dict[Row, float] = {}
    for row, weights in _ROWS.items():
        share = shares[row.part][row.word] if row.part in shares and row.word >= 0 else 1.0
        nats = -sum(w / 256 * float(np.log(w / 256)) for w in weights.values())
        if row.part in ("let", "ask"):
            nats = float(np.log(_SPAN[_INDEX[row]]))
        out[_lump(row)] = out.get(_lump(row), 0.0) + share * nats
    return out
