"""The generated text is reproducible, grammatical, and worth as many nats as it says."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qbench_tasks import grammar_machine as machine
from qbench_tasks import grammar_rules as rules
from qbench_tasks import grammar_text as text
from qbench_tasks.grammar_entropy import entropy_rate

# After a change that is meant to move the text, raise grammar_rules.VERSION and print the new ones:
#   python -c "import tests.tasks.test_grammar_text as t
#   print(t.hash_sample(), t.machine.compute_fingerprint())"
DIGEST = "d681e3bc1b3b0a5206f69188874fb08f1e6ea32ece9d7ea371c581a594099951"
FINGERPRINT = "b076f6dc8d83707c3e6a7b13984f7d205999d22c5c431903017b555e71eabf75"


def hash_sample() -> str:
    tokens = [
        text.generate_windows(seed, first, 3, 96, split)[0]
        for split in text.SPLITS
        for seed, first in ((0, 0), (1, 2047), (7, 2**40))
    ]
    return hashlib.sha256(np.stack(tokens).tobytes()).hexdigest()


def test_the_same_text_everywhere() -> None:
    assert hash_sample() == DIGEST
    assert machine.compute_fingerprint() == FINGERPRINT


@settings(max_examples=25)
@given(
    st.integers(0, 2**40),
    st.integers(1, 40),
    st.sampled_from([3, 64, 127]),
    st.sampled_from(text.SPLITS),
)
def test_a_window_depends_on_its_address_alone(
    first: int, count: int, context: int, split: str
) -> None:
    tokens, logp = text.generate_windows(5, first, count, context, split)
    assert tokens.shape == logp.shape == (count, context + 1)
    assert tokens.dtype == np.uint8 and logp.dtype == np.float32
    for i in {0, count // 2, count - 1}:
        alone = machine.run_machine(machine.stream_key(5, split), first + i, 1, context + 1)
        np.testing.assert_array_equal(tokens[i], alone[0][0])
        np.testing.assert_array_equal(logp[i], alone[1][0])


def test_windows_across_chunks_and_shorter_contexts() -> None:
    edge = text.CHUNK_WINDOWS
    tokens, logp = text.generate_windows(0, edge - 3, edge + 7, 32, "train")
    parts = [
        text.generate_windows(0, first, count, 32, "train")
        for first, count in ((edge - 3, 2), (edge - 1, 2), (edge + 1, edge), (2 * edge + 1, 3))
    ]
    np.testing.assert_array_equal(tokens, np.concatenate([part[0] for part in parts]))
    np.testing.assert_array_equal(logp, np.concatenate([part[1] for part in parts]))
    longer = text.generate_windows(0, edge - 3, edge + 7, 48, "train")[0]
    np.testing.assert_array_equal(tokens, longer[:, :33])


def test_the_caller_cannot_spoil_the_cache() -> None:
    tokens, logp = text.generate_windows(0, 0, 4, 16, "train")
    kept = tokens.copy()
    tokens[:], logp[:] = 0, 0
    np.testing.assert_array_equal(text.generate_windows(0, 0, 4, 16, "train")[0], kept)


def test_seeds_and_splits_share_no_window() -> None:
    seen = [
        row.tobytes()
        for split in text.SPLITS
        for seed in (0, 1)
        for row in text.generate_windows(seed, 0, 300, 128, split)[0]
    ]
    assert len(set(seen)) == len(seen)
    with pytest.raises(ValueError, match="unknown split 'pairs'"):
        text.generate_windows(0, 0, 1, 8, "pairs")


def test_words_survive_rendering() -> None:
    assert len(set(text.VOCAB)) == len(text.VOCAB) == 95
    assert text.encode(text.render(range(95))) == list(range(95))


def test_log_probabilities_agree_with_the_readable_rules() -> None:
    """This compares every word of some windows; every prefix must have a distribution."""
    tokens, logp = text.generate_windows(3, 0, 40, 128, "val")
    assert not logp[:, 0].any() and not tokens[:, 0].any()
    for window, reported in zip(tokens, logp, strict=True):
        for end in range(1, 129):
            distribution = rules.next_logprobs(window[:end])
            assert math.isclose(np.exp(distribution).sum(), 1.0, rel_tol=1e-12)
            assert math.isclose(distribution[window[end]], reported[end], rel_tol=1e-6)


def test_the_tables_draw_what_the_rules_say() -> None:
    """This compares the frequencies of all words after fixed prefixes.

    One misplaced weight would give a far larger chi-square.
    """
    tokens, _ = text.generate_windows(11, 0, 60_000, 4, "train")
    for prefix in (
        ["<doc>"],
        ["<doc>", "let"],
        ["<doc>", "the"],
        ["<doc>", "the", "lupa"],
        ["<doc>", "let", "golf"],
        ["<doc>", "the", "old"],
    ):
        ids = text.encode(" ".join(prefix))
        after = tokens[(tokens[:, : len(ids)] == ids).all(1), len(ids)]
        expected = len(after) * np.exp(rules.next_logprobs(ids))
        counts = np.bincount(after, minlength=95)
        possible = expected > 0
        assert not counts[~possible].any()
        freedom = possible.sum() - 1
        chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
        assert len(after) > 500 and chi_square < freedom + 5 * math.sqrt(2 * freedom) + 5, (
            prefix,
            chi_square,
            freedom,
        )


def test_no_word_follows_an_impossible_prefix() -> None:
    for prefix in (
        "",
        "let",
        "<doc> ask",
        "<doc> the lupa nato",
        "<doc> let golf five ask golf six",
        "<doc> let golf one let golf",
        "<doc> the lupa ( ]",
    ):
        assert np.isneginf(rules.next_logprobs(text.encode(prefix))).all()


def check_window(words: list[str]) -> dict[str, int]:
    """Check one window by spelling and brackets alone, without the grammar's code.

    Return how often each rule was checked.
    """
    counts = dict.fromkeys(("verb", "far verb", "bracket", "answer", "document"), 0)
    facts: dict[str, str] = {}
    expecting: list[str] = []  # endings of verbs and brackets to come
    pending, previous = "", ["", ""]
    stems = dict.fromkeys(("gatt", "lup", "ors", "cerv", "cavall", "asin"), "noun")
    stems |= dict.fromkeys(("andat", "venut", "cadut", "nat", "mort", "partit"), "verb")
    last_noun = ""
    for word in words:
        kind, ending = stems.get(word[:-1], ""), word[-1]
        if word in ("<doc>", "let", "ask"):
            assert not expecting, "a statement begins inside a clause"
        if word == "<doc>":
            facts = {}
            counts["document"] += 1
        elif previous[0] == "let":
            facts[previous[1]] = word
        elif previous[0] == "ask":
            assert facts[previous[1]] == word
            counts["answer"] += 1
        elif previous[1] == "let":
            assert word not in facts
        elif previous[1] == "ask":
            assert word in facts
        elif word in ("the", "that"):
            pending = "subject"
        elif kind == "noun":
            if pending == "subject":
                expecting.append(ending)
            pending, last_noun = "", ending
        elif kind == "verb":
            assert expecting.pop() == ending
            counts["verb"] += 1
            counts["far verb"] += last_noun != ending
        elif word in "([{":
            expecting.append(")]}"["([{".index(word)])
        elif word in ")]}":
            assert expecting.pop() == word
            counts["bracket"] += 1
        assert len(expecting) <= rules.DEPTH and len(facts) <= rules.FACTS
        previous = [previous[1], word]
    return counts


def test_windows_pass_an_independent_check() -> None:
    tokens, _ = text.generate_windows(0, 0, 500, 256, "test")
    total = sum(
        np.array(list(check_window(text.render(window).split()).values())) for window in tokens
    )
    assert (np.array(total) > 500).all(), "each thing checked often"


def test_the_independent_check_finds_errors() -> None:
    for wrong in (
        "<doc> the lupa nato",
        "<doc> the lupa ( ]",
        "<doc> let golf five ask golf six",
        "<doc> the lupa let",
        "<doc> let golf one let golf",
    ):
        with pytest.raises(AssertionError):
            check_window(wrong.split())


def exact_entropy(context: int) -> float:
    """Return the mean entropy over all prefixes, which are enumerated one by one."""
    level: list[tuple[list[int], float]] = [([rules.BOS], 1.0)]
    total = 0.0
    for _ in range(context):
        following = []
        for prefix, probability in level:
            distribution = rules.next_logprobs(prefix)
            for token in np.flatnonzero(np.isfinite(distribution)):
                share = probability * math.exp(distribution[token])
                total -= share * distribution[token]
                following.append(([*prefix, int(token)], share))
        level = following
    return total / context


def test_entropy_rate_of_short_windows_is_exact() -> None:
    for context in (1, 2, 3, 4):
        assert math.isclose(entropy_rate(context), exact_entropy(context), rel_tol=1e-10)


@pytest.mark.parametrize("context", [16, 64, 256])
def test_entropy_rate_is_the_mean(context: int) -> None:
    count = 2_000_000 // context
    _, logp = text.generate_windows(1, 0, count, context, "val")
    floors = -logp[:, 1:].mean(1, dtype=np.float64)
    assert abs(floors.mean() - entropy_rate(context)) < 4 * floors.std() / math.sqrt(count)
    assert 1.0 < entropy_rate(context) < 2.0


@pytest.mark.parametrize("kind", text.KINDS)
@pytest.mark.parametrize("context", [64, 128])
def test_minimal_pairs_differ_in_an_impossible_last_word(kind: str, context: int) -> None:
    pairs = text.make_minimal_pairs(0, 100, kind, context)
    assert len(pairs) == 100 and pairs == text.make_minimal_pairs(
        0, 100, kind, context
    ) != text.make_minimal_pairs(1, 100, kind, context)
    for pair in pairs:
        *prefix, good = pair.good_tokens
        *same, bad = pair.bad_tokens
        assert prefix == same == text.encode(pair.prefix) and len(prefix) <= context
        assert (text.VOCAB[good], text.VOCAB[bad]) == (pair.good, pair.bad)
        distribution = rules.next_logprobs(prefix)
        assert np.isfinite(distribution[good]) and np.isneginf(distribution[bad])
