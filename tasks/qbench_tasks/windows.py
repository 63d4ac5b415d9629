"""A language model on windows of a stream of tokens: the data order, the loss and the score of every task on real text."""

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

WINDOWS: dict[Split, int] = {"train": 128, "val": 128, "test": 256}
"""How many windows are scored, or all that a split holds: the same for every run."""
SCORED_AT_ONCE = 8192
RESERVED = 32
"""One window of so many is training data outside the order."""


def check_lengths(tokens: Tokens, context: int, corpus: str, size: str) -> None:
    """Two windows to train on, one in the order and one outside it, and one of each kind to be scored."""
    for split, windows in (("train", 2), ("val", 1), ("test", 1)):
        found, needed = tokens.shards.streams[split].tokens, windows * context + 1
        if found < needed:
            raise UsageError(
                f"{corpus}: too short for {size}: its split {split} holds {found} tokens and needs {needed}"
            )


class WindowProblem(Problem):
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
        self.model, self.data, self.context, self.seed, self.count, self.device = (
            model,
            tokens,
            context,
            seed,
            batch,
            device,
        )
        self.work = Work(batch * context, flops)
        self.sizes = torch.from_numpy(tokens.vocabulary.sizes).to(device)
        windows = self.count_windows("train")
        self.outside = max(1, windows // RESERVED)
        self.ordered = windows - self.outside

    def count_windows(self, split: Split) -> int:
        """Windows lie end to end; each has its last token in common with the next, which it predicts and the next one reads."""
        return (self.data.shards.streams[split].tokens - 1) // self.context

    def sample_indices(self, index: int) -> Tensor:
        """Each window of the order once, then all once more in another order; those outside it likewise among themselves."""
        if index >= 0:
            return self.read_windows(
                "train",
                order_indices(index * self.count, self.count, self.ordered, "text", self.seed, "order"),
            )
        outside = order_indices(
            -(index + 1) * self.count, self.count, self.outside, "text", self.seed, "outside"
        )
        return self.read_windows("train", self.ordered + outside)

    def load(self, indices: Tensor) -> Batch:
        words = send(indices, self.device)
        return Batch(words[..., :-1], words[..., 1:], indices.shape[-2])

    def batches(self, split: Split) -> Iterator[Batch]:
        """Every byte of the windows that are scored is the target of one prediction."""
        count, at_once = (
            min(WINDOWS[split], self.count_windows(split)),
            max(1, SCORED_AT_ONCE // self.context),
        )
        for first in range(0, count, at_once):
            yield self.load(self.read_windows(split, np.arange(first, min(first + at_once, count))))

    def read_windows(self, split: Split, windows: NDArray[np.int64]) -> Tensor:
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
            nats += float(
                cross_entropy(model(batch.inputs), batch.targets).sum(dtype=torch.float64)
            )
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
