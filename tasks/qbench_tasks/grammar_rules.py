"""The language of the task `grammar`: its words, their weights, and the rules, to be read.

A document is a list of statements over 95 words. There are three kinds:

    let golf five                    a fact: a key that is new in this document, and its value
    ask golf five                    a question about an earlier fact, and the determined answer
    the gatta near lupi nata soon    a clause: a subject, any number of interruptions, a verb that
                                     agrees with the subject, an adverb

Nouns and verbs have four endings (gatto, gatta, gatti, gatte: number × gender), and the verb takes
its subject's. Between the two may stand any number of interruptions: a phrase with a noun of any
ending ("near lupi", a distractor), a clause about the subject ("that orsi caduti here",
centre-embedded, with a verb of its own), or typed brackets that hold adverbs, brackets and clauses.
At most DEPTH clauses and brackets are open at once. Words are chosen by small Zipf tables that
depend on the past: the noun on its adjective or preposition, the verb on its subject (however far
away), the adverb on the verb or on the bracket around it.

The entropy is exact because every choice is revealed by the word that it emits, and no two choices
emit the same word. So the state of the process (open clauses and brackets, facts so far) is a
function of the earlier words, and the probability that the generator used *is* the conditional
probability given all earlier words; nothing has to be summed. A new document forgets everything.

The rules are written as recursive generators: each `yield` offers the weights of the next word and
is sent the word. `grammar_machine` has the same rules compiled for speed, and `grammar_entropy` has
them lumped for the entropy in closed form; the tests compare the three with each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence

import numpy as np
from numpy.typing import NDArray

VERSION = 1
DEPTH = 4  # clauses and brackets open at once
FACTS = 6  # facts in one document

Weights = dict[int, int]  # word -> its share of the sum, which is 256 except among keys
Grammar = Generator[Weights, int, None]

_NOUNS, _VERBS = "gatt lup ors cerv cavall asin", "andat venut cadut nat mort partit"
_WORDS = {
    "control": "<doc> let ask the that",
    "preposition": "near behind with without",
    "opener": "( [ {",
    "closer": ") ] }",
    "adjective": "old young big small red grey quick slow",
    "adverb": "now then here there often soon again still",
    "noun": " ".join(stem + ending for stem in _NOUNS.split() for ending in "oaie"),
    "verb": " ".join(stem + ending for stem in _VERBS.split() for ending in "oaie"),
    "key": "alpha bravo charlie delta echo foxtrot golf hotel",
    "value": "zero one two three four five six seven",
}
VOCAB: tuple[str, ...] = tuple(" ".join(_WORDS.values()).split())
ID = {word: token for token, word in enumerate(VOCAB)}
PARTS: dict[str, range] = {
    part: range(ID[words.split()[0]], ID[words.split()[-1]] + 1) for part, words in _WORDS.items()
}
BOS, LET, ASK, THE, THAT = PARTS["control"]
PREPOSITION, OPENER, CLOSER, ADJECTIVE, ADVERB, NOUN, VERB, KEY, VALUE = list(PARTS.values())[1:]


def next_logprobs(prefix: Sequence[int]) -> NDArray[np.float64]:
    """Return the log-probability of each word after `prefix`, which begins with <doc>.

    Impossible words get −inf, and so does every word after an impossible prefix.
    """
    out = np.full(len(VOCAB), -np.inf)
    if not len(prefix) or prefix[0] != BOS:
        return out
    grammar = document_rules()
    weights = next(grammar)
    for token in prefix[1:]:
        if int(token) not in weights:
            return out
        weights = grammar.send(int(token))
    total = sum(weights.values())
    for token, weight in weights.items():
        out[token] = np.log(weight / total)
    return out


def document_rules() -> Grammar:
    """Offer the weights of each next word of an endless text, and take the word that came."""
    facts: dict[int, int] = {}
    while True:
        token = yield START[len(facts)]
        if token == BOS:
            facts = {}
        elif token == LET:
            key = yield {key: 1 for key in KEY if key not in facts}
            facts[key] = yield dict.fromkeys(VALUE, 32)
        elif token == ASK:
            key = yield dict.fromkeys(facts, 1)
            yield {facts[key]: 256}
        else:
            yield from _clause_rules(1)


def _clause_rules(depth: int) -> Grammar:
    """Offer the words of a clause after "the" or "that", where `depth` frames are open."""
    noun = yield SUBJECT
    if noun in ADJECTIVE:
        noun = yield AFTER_ADJECTIVE[noun]
    while True:
        token = yield AFTER_NOUN[noun, depth < DEPTH]
        if token in VERB:
            yield AFTER_VERB[(token - VERB.start) // 4]
            return
        if token in PREPOSITION:
            other = yield AFTER_PREPOSITION[token]
            if other in ADJECTIVE:
                yield AFTER_ADJECTIVE[other]
        elif token == THAT:
            yield from _clause_rules(depth + 1)
        else:
            yield from _bracket_rules(token, depth + 1)


def _bracket_rules(opener: int, depth: int) -> Grammar:
    """Offer the words of a bracket after its opener, where `depth` frames are open."""
    while True:
        token = yield INSIDE[opener, depth < DEPTH]
        if token in CLOSER:
            return
        if token == THE:
            yield from _clause_rules(depth + 1)
        elif token in OPENER:
            yield from _bracket_rules(token, depth + 1)


# The weights. Two rules keep `entropy_rate` exact. Opening, closing or ending something has the
# same weight whatever the words around it. And whether a frame may open more frames or not, its
# words keep their proportions (hence verbs in sixteenths, and brackets in the same ratio
# everywhere).


def _zipf_weights(total: int, words: Sequence[int], salt: str) -> Weights:
    """Return weights with the sum `total`, Zipf-like in an order that is a hash of `salt`."""
    order = sorted(words, key=lambda word: hashlib.sha256(f"{salt} {word}".encode()).digest())
    shares = [705600 // rank**2 for rank in range(1, len(order) + 1)]
    weights = {
        word: max(1, total * share // sum(shares))
        for word, share in zip(order, shares, strict=True)
    }
    weights[order[0]] += total - sum(weights.values())
    return weights


def _noun_weights(total: int, salt: str) -> Weights:
    """Return weights of nouns in which every ending is as likely as the others."""
    return {
        noun: w
        for e in range(4)
        for noun, w in _zipf_weights(total // 4, NOUN[e::4], f"{salt} {e}").items()
    }


def _verb_weights(noun: int, sixteenth: int) -> Weights:
    """Return weights of the verbs that agree with a noun, in units of `sixteenth`."""
    agreeing = VERB[(noun - NOUN.start) % 4 :: 4]
    return {
        verb: w * sixteenth for verb, w in _zipf_weights(16, agreeing, f"verb after {noun}").items()
    }


def bracket_weights(unit: int) -> Weights:
    """Return weights of the opening brackets, in the ratio 5 : 3 : 2."""
    return dict(zip(OPENER, (5 * unit, 3 * unit, 2 * unit), strict=True))


START: list[Weights] = [
    {LET: 176, THE: 80},
    *[{BOS: 24, LET: 68, ASK: 100, THE: 64}] * (FACTS - 1),
    {BOS: 24, ASK: 152, THE: 80},
]
SUBJECT: Weights = _noun_weights(192, "subject") | _zipf_weights(64, ADJECTIVE, "adjective")
AFTER_ADJECTIVE: dict[int, Weights] = {a: _noun_weights(256, f"adjective {a}") for a in ADJECTIVE}
AFTER_PREPOSITION: dict[int, Weights] = {
    p: _noun_weights(192, f"preposition {p}") | _zipf_weights(64, ADJECTIVE, "adjective")
    for p in PREPOSITION
}
AFTER_NOUN: dict[tuple[int, bool], Weights] = {
    (noun, room): _zipf_weights(64, PREPOSITION, f"after {noun}")
    | (
        _verb_weights(noun, 7) | {THAT: 40} | bracket_weights(4)
        if room
        else _verb_weights(noun, 12)
    )
    for noun in NOUN
    for room in (True, False)
}
AFTER_VERB: list[Weights] = [_zipf_weights(256, ADVERB, f"verb {stem}") for stem in range(6)]
INSIDE: dict[tuple[int, bool], Weights] = {
    (opener, room): {opener + 3: 96}
    | (
        _zipf_weights(116, ADVERB, f"in {opener}") | {THE: 24} | bracket_weights(2)
        if room
        else _zipf_weights(160, ADVERB, f"in {opener}")
    )
    for opener in OPENER
    for room in (True, False)
}
