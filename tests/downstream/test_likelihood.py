"""Log-likelihoods of continuations, against the plain way: one request, one forward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qbench_tasks.transformer import Shape, Transformer

from qbench.downstream.likelihood import generate_greedily, compute_likelihoods
from qbench.errors import QbenchError
from tests.language_runs import CountingModel

CONTEXT = 12
MODEL = Transformer(
    Shape(vocab=7, width=16, depth=2, heads=2, mlp=16, context=CONTEXT),
    torch.Generator().manual_seed(0),
)

tokens = st.integers(0, 6)
requests = st.lists(
    st.tuples(st.lists(tokens, min_size=1, max_size=16), st.lists(tokens, min_size=1, max_size=5)),
    min_size=1,
    max_size=12,
)


@torch.no_grad()
def alone(before: Sequence[int], after: Sequence[int]) -> tuple[float, bool]:
    """By the chain rule, a token at a time, each with the input that the whole request is cut to."""
    whole = [*before, *after][-CONTEXT - 1 :]
    logits = MODEL(torch.tensor([whole[:-1]]))[0, -len(after) :].double()
    found = torch.log_softmax(logits, -1)[torch.arange(len(after)), torch.tensor(after)]
    return float(found.sum()), bool((logits.argmax(-1) == torch.tensor(after)).all())


@settings(max_examples=60)
@given(requests, st.sampled_from([1, 20, 8192]))
def test_they_are_those_of_one_request_at_a_time_whatever_the_batch(
    asked: list[tuple[list[int], list[int]]], most: int
) -> None:
    found = compute_likelihoods(MODEL, asked, CONTEXT, most=most)
    for answer, (before, after) in zip(found, asked, strict=True):
        nats, greedy = alone(before, after)
        assert math.isclose(answer.nats, nats, abs_tol=2e-5) and answer.greedy == greedy


def test_answers_of_one_token_to_one_question_share_a_pass() -> None:
    counted = CountingModel(MODEL)
    compute_likelihoods(counted, [([1, 2, 3], [answer]) for answer in range(7)], CONTEXT)
    assert (counted.passes, counted.tokens) == (1, 3)


def test_an_input_that_begins_another_needs_no_pass_of_its_own() -> None:
    counted = CountingModel(MODEL)
    compute_likelihoods(
        counted, [([1, 2, 3, 4], [5, 6]), ([1, 2], [3]), ([1], [2, 3]), ([2], [2])], CONTEXT
    )
    assert counted.tokens == 2 * 5, "two inputs, [1 2 3 4 5] and [2], padded to five"


def test_answers_do_not_depend_on_the_order_of_the_questions() -> None:
    asked = [([i % 7, (3 * i) % 7], [(5 * i) % 7, 1]) for i in range(21)]
    assert compute_likelihoods(MODEL, asked[::-1], CONTEXT)[::-1] == compute_likelihoods(MODEL, asked, CONTEXT)


def test_probabilities_of_all_single_tokens_add_up_to_one() -> None:
    found = compute_likelihoods(MODEL, [([4, 4], [answer]) for answer in range(7)], CONTEXT)
    assert math.isclose(sum(math.exp(answer.nats) for answer in found), 1, abs_tol=1e-6)
    assert sum(answer.greedy for answer in found) == 1


@pytest.mark.parametrize("after", [[], [1] * (CONTEXT + 1)])
def test_a_continuation_that_the_model_cannot_see_at_once_is_an_error(after: list[int]) -> None:
    with pytest.raises(QbenchError, match="the model sees from 1 to 12 at once"):
        compute_likelihoods(MODEL, [([1], after)], CONTEXT)


def test_a_broken_model_is_an_error_and_not_an_answer() -> None:
    broken = Transformer(MODEL.shape, torch.Generator().manual_seed(0))
    with torch.no_grad():
        broken.norm.weight[0] = math.nan
    with pytest.raises(QbenchError, match="2 of 2 log-likelihoods are not finite"):
        compute_likelihoods(broken, [([1], [2]), ([1], [3])], CONTEXT)


def test_going_on_takes_the_likeliest_token_each_time_beyond_the_context_too() -> None:
    before = [1, 2, 3]
    found = list(generate_greedily(MODEL, before, CONTEXT, 20))
    assert len(found) == 20
    for n, token in enumerate(found):
        seen = [*before, *found[:n]][-CONTEXT:]
        assert compute_likelihoods(MODEL, [(seen, [token])], CONTEXT)[0].greedy
