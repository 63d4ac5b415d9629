"""A language model on windows of a stream of tokens.

This is the data order, the loss and the score of every task on real text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qbench.api import Batch, Problem, Split, UsageError, Work, cross_entropy, send
from qbench_tasks.order import order_indices
from qbench_tasks.tokens import Tokens
from qbench_tasks.vocabulary import TextTokenizer

# How many windows of a split are scored, or all if it holds fewer. They are the same for every run.
WINDOWS: dict[Split, int] = {"train": 128, "val": 128, "test": 256}
# Tokens in a batch that is scored.
SCORED_AT_ONCE = 8192
# One of so many training windows is outside the order.
RESERVED = 32


def check_lengths(tokens: Tokens, context: int, corpus: str, size: str) -> None:
    """Raise a UsageError if a split is too short.

    Training needs two windows, one in the order and one outside it, and scoring needs one each.
    """
    for split, windows in (("train", 2), ("val", 1), ("test", 1)):
        length, needed = tokens.shards.streams[split].tokens, windows * context + 1
        if length < needed:
            raise UsageError(
                f"{corpus}: too short for {size}: its split {split} holds {length} tokens "
                f"and needs {needed}"
            )


class WindowProblem(Problem):
    """Next-token prediction on windows of `context` tokens, scored in bits per byte."""

    def __init__(
        self,
        model: nn.Module,
        tokens: Tokens,
        context: int,
        seed: int,
        batch: int,
        device: torch.device,
        flops: float | None = None,
    ) -> None:
        self.model, self.data, self.context = model, tokens, context
        self.seed, self.count, self.device = seed, batch, device
        self.work = Work(batch * context, flops)
        self.sizes = torch.from_numpy(tokens.vocabulary.sizes).to(device)
        windows = self.count_windows("train")
        self.outside = max(1, windows // RESERVED)
        self.ordered = windows - self.outside

    def count_windows(self, split: Split) -> int:
        """Return how many windows a split holds.

        Windows lie end to end. Each shares its last token with the next window: the one predicts it
        and the other reads it.
        """
        return (self.data.shards.streams[split].tokens - 1) // self.context

    def sample_indices(self, index: int) -> Tensor:
        """Return the windows of a batch, each (context + 1) tokens.

        Every window of the order comes once, then all come once more in another order. The windows
        outside it, which have negative indices, do likewise among themselves.
        """
        if index >= 0:
            first, size, order = index * self.count, self.ordered, "order"
        else:
            first, size, order = -(index + 1) * self.count, self.outside, "outside"
        windows = order_indices(first, self.count, size, "text", self.seed, order)
        return self.read_windows("train", windows if index >= 0 else self.ordered + windows)

    def load(self, indices: Tensor) -> Batch:
        words = send(indices, self.device)
        return Batch(words[..., :-1], words[..., 1:], indices.shape[-2])

    def batches(self, split: Split) -> Iterator[Batch]:
        """Yield the batches to score; every byte of them is the target of one prediction."""
        count = min(WINDOWS[split], self.count_windows(split))
        at_once = max(1, SCORED_AT_ONCE // self.context)
        for first in range(0, count, at_once):
            windows = np.arange(first, min(first + at_once, count))
            yield self.load(self.read_windows(split, windows))

    def read_windows(self, split: Split, windows: NDArray[np.int64]) -> Tensor:
        """Return the tokens of windows from the mapped file, in int64."""
        tokens, context = self.data.shards.tokens(split), self.context
        rows = np.empty((len(windows), context + 1), np.int64)
        for row, window in zip(rows, windows.tolist(), strict=True):
            row[:] = tokens[window * context : (window + 1) * context + 1]
        return torch.from_numpy(rows)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        assert batch.targets is not None
        return cross_entropy(output, batch.targets).mean((-2, -1))

    def score(self, model: nn.Module, split: Split) -> dict[str, float]:
        nats, tokens, size = 0.0, 0, 0
        for batch in self.batches(split):
            assert batch.targets is not None
            entropies = cross_entropy(model(batch.inputs), batch.targets)
            nats += float(entropies.sum(dtype=torch.float64))
            tokens += batch.targets.numel()
            size += int(self.sizes[batch.targets].sum())
        return {
            "bits_per_byte": nats / math.log(2) / size,
            "loss": nats / tokens,
            "bytes_per_token": size / tokens,
        }

    @property
    def tokenizer(self) -> TextTokenizer:
        return TextTokenizer(self.data.vocabulary, self.context)
