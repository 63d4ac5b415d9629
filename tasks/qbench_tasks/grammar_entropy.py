"""The entropy of the generated text in closed form.

It is the stack machine of `grammar_machine` with its words lumped by part of speech: a Markov chain
small enough to follow exactly. The tests compare it with sampled text and with an enumeration.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from qbench_tasks.grammar_machine import (
    KEY_CHOICES,
    ROW_INDEX,
    ROWS,
    SYMBOL,
    SYMBOLS,
    Row,
    find_effect,
    row_on_top,
)
from qbench_tasks.grammar_rules import (
    ADJECTIVE,
    AFTER_ADJECTIVE,
    AFTER_NOUN,
    BOS,
    NOUN,
    OPENER,
    PREPOSITION,
    SUBJECT,
    VERB,
    bracket_weights,
)


@lru_cache
def entropy_rate(context: int) -> float:
    """Return the expected nats per target of a window of `context` targets.

    What a clause talks about never decides how long it gets, so the words that could stand in a
    place are distributed alike at any time and depth. The chain over (part of speech, open frames,
    number of facts) is therefore Markov, and a row's entropy is averaged over its words.
    """
    nats = _lumped_entropies()
    start = (Row("doc", 0), SYMBOL[Row("doc", 0)])
    ids, edges, todo = {start: 0}, [], [start]
    while todo:
        row, stack = state = todo.pop()
        for token, weight in (ROWS[row] or {BOS: 256}).items():
            down, up, add, following = find_effect(row, token)
            # A frame is pushed as the first of its kind, so that all nouns make one state.
            pushed = SYMBOL[_lump(SYMBOLS[add - 1])] if up else add
            new_stack = (stack >> down << up) + pushed
            new_state = (_lump(following or row_on_top(new_stack)), new_stack)
            if new_state not in ids:
                ids[new_state] = len(ids)
                todo.append(new_state)
            edges.append((ids[state], ids[new_state], weight / 256))
    source, target, share = (np.array(column) for column in zip(*edges, strict=True))
    entropy = np.array([nats[row] for row, _ in ids])
    # `probability` is the distribution over states after each word, starting from a new document.
    probability, total = np.eye(1, len(ids))[0], 0.0
    for _ in range(context):
        total += float(probability @ entropy)
        probability = np.bincount(target, weights=probability[source] * share, minlength=len(ids))
    return total / context


def _lump(row: Row) -> Row:
    """Return the representative of the rows that differ only in the word they depend on."""
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
    """Return the nats of each lumped row: the mean over its members, weighted by frequency."""
    shares = _word_shares()
    entropies: dict[Row, float] = {}
    for row, weights in ROWS.items():
        share = shares[row.part][row.word] if row.part in shares and row.word >= 0 else 1.0
        nats = -sum(w / 256 * float(np.log(w / 256)) for w in weights.values())
        if row.part in ("let", "ask"):
            nats = float(np.log(KEY_CHOICES[ROW_INDEX[row]]))
        entropies[_lump(row)] = entropies.get(_lump(row), 0.0) + share * nats
    return entropies


def _word_shares() -> dict[str, dict[int, float]]:
    """Return for each part of a row how often each word that the row depends on comes."""
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
    opener = {o: weight / 10 for o, weight in bracket_weights(1).items()}
    return {
        "subject": adjective,
        "other": adjective,
        "behind": preposition,
        "noun": noun,
        "in": opener,
        "verb": stem,
    }
