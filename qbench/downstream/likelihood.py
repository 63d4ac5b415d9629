"""How likely a language model finds texts, and how it continues them, in few forward passes.

A request is a context and a continuation. Its input is both without the last token, cut on the left
to the length of the model's context. A language model sees only the tokens before, so an input that
is the beginning of another one needs no pass of its own: all answers of one token to one question
share an input. Inputs are sorted by length, and padded on the right to the longest of their batch.

The composition of a batch can change the last bits of the numbers. Therefore it depends on the
requests alone: the same requests in any order give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qbench.errors import QbenchError

# On a CPU, a pass whose activations do not fit into the cache takes twice as long.
BATCH_TOKENS = {"cpu": 1024}
OTHER_BATCH_TOKENS = 16384
"""Largest number of tokens of a forward pass, padding included. One input always fits."""

Request = tuple[Sequence[int], Sequence[int]]
"""The tokens of a context and of its continuation."""


class Likelihood(NamedTuple):
    """The log-likelihood of a continuation, and whether greedy decoding would produce it."""

    nats: float
    greedy: bool


@torch.no_grad()
def compute_likelihoods(
    model: nn.Module,
    requests: Sequence[Request],
    context: int,
    heartbeat: Callable[[], None] = lambda: None,
    batch_tokens: int | None = None,
) -> list[Likelihood]:
    """Return the likelihood of each request's continuation, in the order of the requests.

    Args:
        model: Maps tokens (batch, time) to logits (batch, time, vocab).
        requests: Contexts and continuations. A continuation must fit into the model's context.
        context: The number of tokens that the model can see.
        heartbeat: Called after every batch.
        batch_tokens: Largest number of tokens per pass. None means as many as suit the device.
    """
    # float64, because a long text is a sum of many small numbers.
    nats = torch.zeros(len(requests), dtype=torch.float64)
    greedy = torch.ones(len(requests), dtype=torch.bool)
    limit = batch_tokens or tokens_per_batch(next(model.parameters()).device)
    for batch in make_batches(merge_inputs(requests, context), limit):
        numbers, log_probs, is_greedy = predict_targets(model, batch, requests)
        # Several tokens may belong to one request. They are added on the CPU, where the order of
        # the sum is fixed; on a GPU, index_add_ adds in any order.
        nats.index_add_(0, numbers, log_probs.cpu().double())
        greedy[numbers[~is_greedy.cpu()]] = False
        heartbeat()
    if not torch.isfinite(nats).all():
        broken = int((~torch.isfinite(nats)).sum())
        raise QbenchError(
            f"{broken} of {len(requests)} log-likelihoods are not finite: the model is broken"
        )
    return [Likelihood(*answer) for answer in zip(nats.tolist(), greedy.tolist(), strict=True)]


def predict_targets(
    model: nn.Module, batch: Sequence[SharedInput], requests: Sequence[Request]
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one forward pass, and return what it says of each token to be predicted.

    Returns:
        The number of the token's request, its log-probability, and whether it is the likeliest.
    """
    device = next(model.parameters()).device
    rows, positions, targets, numbers = (
        torch.tensor(column) for column in zip(*iterate_targets(batch, requests), strict=True)
    )
    targets = targets.to(device)
    logits = model(pad_rows([item.tokens for item in batch]).to(device))
    # Only the positions that are asked for need a softmax. It is computed in float32, whatever the
    # dtype of the logits.
    log_probs = torch.log_softmax(logits[rows.to(device), positions.to(device)].float(), -1)
    target_log_probs = log_probs.gather(1, targets[:, None]).squeeze(1)
    return numbers, target_log_probs, log_probs.argmax(-1) == targets


@torch.no_grad()
def generate_greedily(
    model: nn.Module, prompt: Sequence[int], context: int, limit: int
) -> Iterator[int]:
    """Yield up to `limit` tokens that continue a prompt, each the most likely next one.

    Every token takes a whole forward pass. The models here are small, so there is no cache.
    """
    device, tokens = next(model.parameters()).device, list(prompt)
    for _ in range(limit):
        logits = model(torch.tensor([tokens[-context:]], device=device))
        tokens.append(int(logits[0, -1].argmax()))
        yield tokens[-1]


# ---- from requests to batches ----


@dataclass
class SharedInput:
    """The tokens of one row of a forward pass, and the requests that are read from it."""

    tokens: tuple[int, ...]
    requests: list[tuple[int, int]] = field(default_factory=list)
    """The number of each request, and the length of its own input."""


def merge_inputs(requests: Sequence[Request], context: int) -> list[SharedInput]:
    """Return the inputs that all requests need, longest first."""
    inputs = []
    for number, (before, after) in enumerate(requests):
        if not 0 < len(after) <= context:
            raise QbenchError(
                f"a continuation has {len(after)} tokens, and the model sees from 1 to {context}"
                " at once"
            )
        # The model predicts the last token, and does not need to see it.
        inputs.append((tuple([*before, *after][:-1][-context:]), number))
    merged: list[SharedInput] = []
    # In descending order, an input comes directly after the longer ones that begin with it.
    for tokens, number in sorted(inputs, reverse=True):
        if not merged or merged[-1].tokens[: len(tokens)] != tokens:
            merged.append(SharedInput(tokens))
        merged[-1].requests.append((number, len(tokens)))
    return sorted(merged, key=lambda item: (-len(item.tokens), item.tokens))


def tokens_per_batch(device: torch.device) -> int:
    """Return the largest number of tokens of a forward pass on a device."""
    return BATCH_TOKENS.get(device.type, OTHER_BATCH_TOKENS)


def make_batches(items: Sequence[SharedInput], limit: int) -> Iterator[Sequence[SharedInput]]:
    """Yield inputs, sorted by length, in batches of up to `limit` tokens with padding."""
    first = 0
    while first < len(items):
        # The first input of a batch is its longest, and decides how wide all rows are.
        rows = max(1, limit // len(items[first].tokens))
        yield items[first : first + rows]
        first += rows


def pad_rows(rows: Sequence[Sequence[int]]) -> Tensor:
    """Return rows of tokens as one tensor, padded on the right with zeros.

    No token sees what comes after it, so the value of the padding does not matter.
    """
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])


def iterate_targets(
    batch: Sequence[SharedInput], requests: Sequence[Request]
) -> Iterator[tuple[int, int, int, int]]:
    """Yield the row, position, token and request number of each token to be predicted."""
    for row, item in enumerate(batch):
        for number, length in item.requests:
            after = requests[number][1]
            # The logits at a position predict the next token, so the last token of a continuation
            # is predicted at the last position of the request's own input.
            for position, target in enumerate(after, length - len(after)):
                yield row, position, target, number
