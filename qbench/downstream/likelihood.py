"""How likely a language model finds texts, and how it would go on: many requests in few forward passes.

A request is a context and a continuation. Its input is both without the last token, cut from the left to what the model can see. The model
sees the past alone, so an input that begins another one needs no pass of its own: all answers to a question that are one token long share
one. Inputs run in the order of their lengths, padded on the right to the longest of a batch. What stands together in a batch moves the last
bits of the numbers, so it follows from the requests alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qbench.errors import QbenchError

BATCH_TOKENS = {"cpu": 1024}
BATCH_TOKENS_ELSEWHERE = 16384
"""Tokens of a forward pass at most, padding included; one input at the least. On a CPU a pass that leaves the cache takes twice as long."""

Request = tuple[Sequence[int], Sequence[int]]


class Likelihood(NamedTuple):
    """Of a continuation: nats, and whether the model would have said it."""

    nats: float
    greedy: bool


@dataclass
class _Input:
    """Tokens of a forward pass, and which of the requests look where."""

    tokens: tuple[int, ...]
    askers: list[tuple[int, int]] = field(default_factory=list)
    """Requests by number, and the length of each one's own input."""


@torch.no_grad()
def likelihoods(
    model: nn.Module,
    requests: Sequence[Request],
    context: int,
    beat: Callable[[], None] = lambda: None,
    most: int | None = None,
) -> list[Likelihood]:
    """One answer a request, in their order. `model` gives logits (batch, time, vocab) for tokens (batch, time); `beat` is called now and then.

    `most` tokens go into a pass; None: as many as suit the device.
    """
    device = next(model.parameters()).device
    nats = torch.zeros(len(requests), dtype=torch.float64)
    greedy = torch.ones(len(requests), dtype=torch.bool)
    for batch in batches(inputs(requests, context), most or batch_tokens(device)):
        logits = model(padded([item.tokens for item in batch]).to(device))
        rows, places, targets, askers = (
            torch.tensor(column) for column in zip(*looks(batch, requests), strict=True)
        )
        found = torch.log_softmax(logits[rows.to(device), places.to(device)].float(), -1)
        there = targets.to(device)
        # Summed on the CPU, one after the other: a GPU adds in no order.
        nats.index_add_(0, askers, found.gather(1, there[:, None]).squeeze(1).cpu().double())
        greedy[askers[(found.argmax(-1) != there).cpu()]] = False
        beat()
    if not torch.isfinite(nats).all():
        raise QbenchError(
            f"{int((~torch.isfinite(nats)).sum())} of {len(requests)} log-likelihoods are not finite: the model is broken"
        )
    return [Likelihood(*answer) for answer in zip(nats.tolist(), greedy.tolist(), strict=True)]


def inputs(requests: Sequence[Request], context: int) -> list[_Input]:
    """What has to go through the model, longest first."""
    mine = []
    for number, (before, after) in enumerate(requests):
        if not 0 < len(after) <= context:
            raise QbenchError(
                f"a continuation of {len(after)} tokens, and the model sees from 1 to {context} at once"
            )
        mine.append((tuple([*before, *after][:-1][-context:]), number))
    found: list[_Input] = []
    # In this order whatever an input begins with comes right behind it.
    for tokens, number in sorted(mine, reverse=True):
        if not found or found[-1].tokens[: len(tokens)] != tokens:
            found.append(_Input(tokens))
        found[-1].askers.append((number, len(tokens)))
    return sorted(found, key=lambda item: (-len(item.tokens), item.tokens))


def batch_tokens(device: torch.device) -> int:
    return BATCH_TOKENS.get(device.type, BATCH_TOKENS_ELSEWHERE)


def batches(items: Sequence[_Input], most: int) -> Iterator[Sequence[_Input]]:
    first = 0
    while first < len(items):
        rows = max(1, most // len(items[first].tokens))
        yield items[first : first + rows]
        first += rows


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])


def looks(
    batch: Sequence[_Input], requests: Sequence[Request]
) -> Iterator[tuple[int, int, int, int]]:
    """Row, place, target and request for every token whose likelihood is asked for."""
    for row, item in enumerate(batch):
        for number, length in item.askers:
            after = requests[number][1]
            for place, target in enumerate(after, length - len(after)):
                yield row, place, target, number


@torch.no_grad()
def continued(model: nn.Module, before: Sequence[int], context: int, most: int) -> Iterator[int]:
    """The likeliest next tokens, one after the other. Every token takes a whole pass: the models here are small."""
    device, tokens = next(model.parameters()).device, list(before)
    for _ in range(most):
        tokens.append(int(model(torch.tensor([tokens[-context:]], device=device))[0, -1].argmax()))
        yield tokens[-1]
