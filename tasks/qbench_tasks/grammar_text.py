"""The text of the task `grammar`: windows of words, each with its true log-probability.

A model's loss on real text has an unknown floor, so nobody can say what share of a loss
quantization caused. Here the floor is known word by word. `grammar_rules` is the language (read it
first), `grammar_machine` writes the text, and `grammar_entropy` knows its entropy in closed form.
Every window starts with a document, so a model that sees the window sees all that the floor
conditions on. The last document is cut by the window's end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qbench_tasks.grammar_machine import Windows, run_machine, stream_key
from qbench_tasks.grammar_rules import ASK, BOS, CLOSER, ID, NOUN, OPENER, VALUE, VERB, VOCAB

SPLITS = ("train", "val", "test")
KINDS = ("agreement", "nesting", "recall")
# A step of the machine costs the same NumPy calls for one window as for a thousand.
CHUNK_WINDOWS = 1024


class Pair(NamedTuple):
    """Two sequences that differ in their last word alone: a good one, and an impossible one."""

    kind: str
    prefix: str
    good: str
    bad: str
    good_tokens: list[int]
    bad_tokens: list[int]


def render(tokens: Sequence[int] | NDArray[np.uint8]) -> str:
    """Return tokens as words with blanks between them."""
    return " ".join(VOCAB[token] for token in tokens)


def encode(text: str) -> list[int]:
    """Return the tokens of words with blanks between them, which is the inverse of `render`."""
    return [ID[word] for word in text.split()]


def generate_windows(
    seed: int,
    first: int,
    count: int,
    context: int,
    split: str,
    get_chunk: Callable[[int, str, int, int], Windows] | None = None,
) -> Windows:
    """Return windows first … first + count − 1 of an endless stream.

    The result is the tokens and their true log-probabilities in nats, both (count, context + 1).
    Inputs are `tokens[:, :-1]`, targets `tokens[:, 1:]`, and the floor of exactly those targets is
    `-logp[:, 1:].mean()`; column 0 is <doc>, with logp 0. A window depends on (seed, split, its
    index) alone; a shorter context gives its beginning. The windows are cut out of the chunks that
    `get_chunk` returns: `generate_chunk`, or the caller's own cache of it.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
    get_chunk = get_chunk or generate_chunk
    starts = range(first // CHUNK_WINDOWS * CHUNK_WINDOWS, first + count, CHUNK_WINDOWS)
    parts = [
        [
            array[max(first - start, 0) : first + count - start]
            for array in get_chunk(seed, split, context, start)
        ]
        for start in starts
    ]
    # Concatenation copies, so a caller that writes to the result does not change a cached chunk.
    tokens, logp = zip(*parts, strict=True)
    return np.concatenate(tokens), np.concatenate(logp)


@lru_cache(16)
def generate_chunk(seed: int, split: str, context: int, start: int) -> Windows:
    """Return the chunk of windows that begins with window `start`."""
    return run_machine(stream_key(seed, split), start, CHUNK_WINDOWS, context + 1)


def find_critical_words(tokens: NDArray[np.uint8], kind: str) -> NDArray[np.bool_]:
    """Return where in windows of tokens a word stands that is decided by a rule of this kind.

    For agreement this is a verb, for nesting a closing bracket, for recall an answer.
    """
    if kind == "recall":
        out = np.zeros(tokens.shape, bool)
        out[..., 2:] = tokens[..., :-2] == ASK
        return out
    part = {"agreement": VERB, "nesting": CLOSER}[kind]
    return (tokens >= part.start) & (tokens < part.stop)


def make_minimal_pairs(seed: int, count: int, kind: str, context: int = 128) -> list[Pair]:
    """Return pairs of sequences from <doc> to a critical word, at most `context` + 1 tokens long.

    They are chosen so that the nearest cue misleads. In agreement, the last noun has another ending
    than the verb, and the bad verb follows it. In nesting, the last bracket is of another type than
    the one to close, and the bad closer is of its type. In recall, the bad answer is the latest
    other value in the document. The windows come from a stream of their own. A prefix may come
    more than once.
    """
    pairs: list[Pair] = []
    for start in range(0, 1000 * CHUNK_WINDOWS, CHUNK_WINDOWS):
        tokens, _ = generate_chunk(seed, "pairs", context, start)
        for row, end in np.argwhere(find_critical_words(tokens, kind)):
            document = int(np.flatnonzero(tokens[row, :end] == BOS)[-1])
            prefix = tokens[row, document:end].tolist()
            good = int(tokens[row, end])
            bad = _misleading_word(prefix, good, kind)
            if bad is not None:
                words = render(prefix), VOCAB[good], VOCAB[bad]
                pairs.append(Pair(kind, *words, [*prefix, good], [*prefix, bad]))
            if len(pairs) == count:
                return pairs
    raise AssertionError(f"no {count} pairs of kind {kind} with context {context}")


def _misleading_word(prefix: list[int], good: int, kind: str) -> int | None:
    """Return the word that the nearest cue calls for, or None where that is the good one."""
    part = {"agreement": NOUN, "nesting": range(OPENER.start, CLOSER.stop), "recall": VALUE}[kind]
    cues = [token for token in reversed(prefix) if token in part]
    if kind == "agreement":
        bad = VERB[(good - VERB.start) // 4 * 4 + (cues[0] - NOUN.start) % 4]
    elif kind == "nesting":
        bad = CLOSER[(cues[0] - OPENER.start) % 3]
    else:
        bad = next((value for value in cues if value != good), good)
    return bad if bad != good else None
