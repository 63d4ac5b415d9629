"""Log-likelihoods of continuations, compared with one forward pass for each request."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from qbench_tasks.transformer import Shape, Transformer

from qbench.downstream.likelihood import compute_likelihoods, generate_greedily
from qbench.errors import QbenchError
from tests.language_runs import CountingModel

CONTEXT = 12
MODEL = Transformer(
    Shape(vocab=7, width=16, depth=2, heads=2, mlp=16, context=CONTEXT),
    torch.Generator().manual_seed(0),
)

tokens = st.integers(0, 6)
request_lists = st.lists(
    st.tuples(st.lists(tokens, min_size=1, max_size=16), st.lists(tokens, min_size=1, max_size=5)),
    min_size=1,
    max_size=12,
)


@torch.no_grad()
def likelihood_of_one(before: Sequence[int], after: Sequence[int]) -> tuple[float, bool]:
    """Return the likelihood of one request by the chain rule, from a forward pass of its own."""
    whole = [*before, *after][-CONTEXT - 1 :]
    logits = MODEL(torch.tensor([whole[:-1]]))[0, -len(after) :].double()
    log_probs = torch.log_softmax(logits, -1)[torch.arange(len(after)), torch.tensor(after)]
    return float(log_probs.sum()), bool((logits.argmax(-1) == torch.tensor(after)).all())


@given(request_lists, st.sampled_from([1, 20, 8192]))
def test_the_size_of_the_batches_does_not_matter(
    requests: list[tuple[list[int], list[int]]], batch_tokens: int
) -> None:
    answers = compute_likelihoods(MODEL, requests, CONTEXT, batch_tokens=batch_tokens)
    for answer, (before, after) in zip(answers, requests, strict=True):
        nats, greedy = likelihood_of_one(before, after)
        assert math.isclose(answer.nats, nats, abs_tol=2e-5) and answer.greedy == greedy


def test_answers_of_one_token_to_one_question_share_a_pass() -> None:
    model = CountingModel(MODEL)
    compute_likelihoods(model, [([1, 2, 3], [answer]) for answer in range(7)], CONTEXT)
    assert (model.passes, model.tokens) == (1, 3)


def test_an_input_that_begins_another_one_needs_no_pass_of_its_own() -> None:
    model = CountingModel(MODEL)
    requests = [([1, 2, 3, 4], [5, 6]), ([1, 2], [3]), ([1], [2, 3]), ([2], [2])]
    compute_likelihoods(model, requests, CONTEXT)
    assert model.tokens == 2 * 5, "two inputs, [1 2 3 4 5] and [2], padded to five"


def test_the_order_of_the_requests_does_not_matter() -> None:
    requests = [([i % 7, (3 * i) % 7], [(5 * i) % 7, 1]) for i in range(21)]
    answers = compute_likelihoods(MODEL, requests, CONTEXT)
    assert compute_likelihoods(MODEL, requests[::-1], CONTEXT)[::-1] == answers


def test_the_probabilities_of_all_single_tokens_sum_to_one() -> None:
    answers = compute_likelihoods(MODEL, [([4, 4], [token]) for token in range(7)], CONTEXT)
    assert math.isclose(sum(math.exp(answer.nats) for answer in answers), 1, abs_tol=1e-6)
    assert sum(answer.greedy for answer in answers) == 1


@pytest.mark.parametrize("after", [[], [1] * (CONTEXT + 1)])
def test_a_continuation_longer_than_the_context_is_an_error(after: list[int]) -> None:
    with pytest.raises(QbenchError, match="the model sees from 1 to 12 at once"):
        compute_likelihoods(MODEL, [([1], after)], CONTEXT)


def test_a_broken_model_is_an_error() -> None:
    broken = Transformer(MODEL.shape, torch.Generator().manual_seed(0))
    with torch.no_grad():
        broken.norm.weight[0] = math.nan
    with pytest.raises(QbenchError, match="2 of 2 log-likelihoods are not finite"):
        compute_likelihoods(broken, [([1], [2]), ([1], [3])], CONTEXT)


def test_generation_takes_the_likeliest_token_also_beyond_the_context() -> None:
    prompt = [1, 2, 3]
    generated = list(generate_greedily(MODEL, prompt, CONTEXT, 20))
    assert len(generated) == 20
    for n, token in enumerate(generated):
        visible = [*prompt, *generated[:n]][-CONTEXT:]
        assert compute_likelihoods(MODEL, [(visible, [token])], CONTEXT)[0].greedy
