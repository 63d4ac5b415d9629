"""A language model on generated text whose true entropy is known token by token.

The score is what the model loses over that floor. The text is `grammar_text`'s: agreement over
distance, nesting, and keys to be recalled. The network is `transformer`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from qbench.api import (
    Batch,
    Layout,
    Metric,
    Problem,
    QuantLayer,
    Quiz,
    Recipe,
    Split,
    Task,
    Work,
    cross_entropy,
    generator,
    send,
)
from qbench_tasks import grammar_items
from qbench_tasks import grammar_text as text
from qbench_tasks.grammar_machine import compute_fingerprint
from qbench_tasks.grammar_rules import BOS, VOCAB
from qbench_tasks.transformer import Shape, Transformer

VOCAB_SIZE = len(VOCAB)
SHAPES = {
    "xs": Shape(VOCAB_SIZE, width=64, depth=2, heads=4, mlp=128, context=64),
    "s": Shape(VOCAB_SIZE, width=128, depth=2, heads=4, mlp=256, context=64),
    "m": Shape(VOCAB_SIZE, width=128, depth=4, heads=4, mlp=384, context=128),
    "l": Shape(VOCAB_SIZE, width=256, depth=6, heads=8, mlp=768, context=128),
}
# How many windows are scored. They are the same for every run, except that the training windows
# belong to the run's seed.
WINDOWS: dict[Split, int] = {"train": 256, "val": 128, "test": 256}
SCORED_AT_ONCE = 64
# No step of training reaches the training windows from here on.
OUTSIDE = 2**40
RECIPES = {
    "xs": Recipe(steps=400, batch=8, lr=0.008),
    "s": Recipe(steps=1000, batch=16, lr=0.004),
    "m": Recipe(steps=2000, batch=16, lr=0.004),
    "l": Recipe(steps=4000, batch=32, lr=0.002),
}


@dataclass
class Grammar(Task):
    """Language modelling on a generated grammar."""

    name = "grammar"
    title = "Language model, generated grammar"
    metric = Metric("excess", "nats/token", better="lower", floor=0.0, effect=0.01)
    sizes = {
        name: {"parameters": shape.parameters, **asdict(shape)} for name, shape in SHAPES.items()
    }
    activations = True

    def recipe(self, size: str) -> Recipe:
        return RECIPES[size]

    def fingerprint(self) -> str:
        return compute_fingerprint()

    def problem(self, size: str, seed: int, batch: int, device: torch.device) -> GrammarProblem:
        model = Transformer(SHAPES[size], generator(self.name, seed, "start"))
        return GrammarProblem(model.to(device), seed, batch, device)

    def quizzes(self) -> Mapping[str, Quiz]:
        return grammar_items.make_quizzes()


@dataclass(frozen=True)
class GrammarTokenizer:
    """The tokenizer of the grammar: each word between blanks is a token."""

    context: int
    start: int = BOS

    def encode(self, written: str) -> list[int]:
        try:
            return text.encode(written)
        except KeyError as error:
            word = str(error.args[0])[:40]
            raise ValueError(
                f"the grammar has {VOCAB_SIZE} words, and {word!r} is none of them"
            ) from None

    def decode(self, tokens: Sequence[int]) -> str:
        return text.render(tokens)

    def to_json(self) -> dict[str, Any]:
        start = {"id": self.start, "content": VOCAB[self.start], "special": True}
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        words = {word: token for token, word in enumerate(VOCAB)}
        return {
            "version": "1.0",
            "added_tokens": [start | flags],
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unknown>"},
        }


class GrammarProblem(Problem):
    """Next-word prediction on the windows of one seed."""

    model: Transformer
    seeds_share_data = True

    def __init__(self, model: Transformer, seed: int, batch: int, device: torch.device) -> None:
        self.model, self.seed, self.count, self.device = model, seed, batch, device
        self.context = model.shape.context
        labels = batch * self.context
        self.work = Work(labels, model.shape.flops(labels))
        # Each problem has its own cache: in a common one, stacked seeds would evict each other's
        # chunks.
        self.get_chunk = lru_cache(2)(text.generate_chunk)

    def sample_indices(self, index: int) -> Tensor:
        first = index * self.count if index >= 0 else OUTSIDE - (index + 1) * self.count
        tokens, _ = text.generate_windows(
            self.seed, first, self.count, self.context, "train", self.get_chunk
        )
        return torch.from_numpy(tokens)

    def load(self, indices: Tensor) -> Batch:
        words = send(indices.long(), self.device)
        return Batch(words[..., :-1], words[..., 1:], indices.shape[-2])

    def batches(self, split: Split) -> Iterator[Batch]:
        return (batch for batch, _ in self.scored_batches(split))

    def scored_batches(self, split: Split) -> Iterator[tuple[Batch, float]]:
        """Yield a split's batches, each with the sum of its targets' true −log-probabilities."""
        for first in range(0, WINDOWS[split], SCORED_AT_ONCE):
            seed = self.seed if split == "train" else 0
            tokens, logp = text.generate_windows(seed, first, SCORED_AT_ONCE, self.context, split)
            yield self.load(torch.from_numpy(tokens)), -float(logp[:, 1:].sum(dtype="float64"))

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        assert batch.targets is not None
        return cross_entropy(output, batch.targets).mean((-2, -1))

    def score(self, model: nn.Module, split: Split) -> dict[str, float]:
        total, floor = 0.0, 0.0
        for batch, true_nats in self.scored_batches(split):
            assert batch.targets is not None
            nats = cross_entropy(model(batch.inputs), batch.targets)
            # Summed in float64: the excess is a small difference of two large sums.
            total += float(nats.sum(dtype=torch.float64))
            floor += true_nats
        tokens = WINDOWS[split] * self.context
        return {
            "excess": (total - floor) / tokens,
            "loss": total / tokens,
            "bits": total / tokens / math.log(2),
        }

    def layers(self) -> dict[str, QuantLayer]:
        return dict(self.model.body())

    @property
    def tokenizer(self) -> GrammarTokenizer:
        return GrammarTokenizer(self.context)

    def layout(self) -> Layout:
        return self.model.layout()
