"""Problem: one model, one data order, one loss."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from qbench.quant.layers import QuantLayer

if TYPE_CHECKING:
    from qbench.api.batch import Batch, Split
    from qbench.api.language_model import Layout, Tokenizer

__all__ = ["Problem", "with_model"]


P = TypeVar("P", bound="Problem")


def with_model(problem: P, model: nn.Module) -> P:
    """The same problem for another model: all that `beside` needs where the loss reduces over trailing axes and all seeds share the rest."""
    found = copy.copy(problem)
    found.model = model
    return found


class Problem(ABC):
    """One model, one data order and one loss, on one device."""

    model: nn.Module

    def batch(self, index: int) -> Batch:
        """Batch `index` of the data order; negative indices are training data outside it. To be written, or else `drawn` and `batch_of`."""
        drawn = self.drawn(index)
        if drawn is None:
            raise NotImplementedError(
                f"{type(self).__name__} has neither batch nor drawn and batch_of"
            )
        return self.batch_of(drawn)

    def drawn(self, index: int) -> Tensor | None:
        """What the batch is made of, on the CPU, by a task whose seeds share the rest: rows of its data, say. Those of runs side by side then come to
        `batch_of` together, in one go however many they are."""
        return None

    def batch_of(self, drawn: Tensor) -> Batch:
        """The batch, of what was drawn for it; with an axis of runs in front of that, theirs."""
        raise NotImplementedError(f"{type(self).__name__} has drawn and no batch_of")

    @abstractmethod
    def batches(self, split: Split) -> Iterable[Batch]:
        """All of a split, in a fixed order."""

    @abstractmethod
    def loss(self, output: Any, batch: Batch) -> Tensor:
        """The mean loss over a batch."""

    def distances(self, output: Tensor, wanted: Tensor, batch: Batch) -> Tensor:
        """Whose mean is minimised where a board has everybody imitate the network that the run started from: Jeffreys' divergence between the
        distributions of each sample's class (or each next token), squared error where targets are numbers. Any axes in front are samples',
        and of the batch only the kind of its targets may count."""
        if batch.targets is None or batch.targets.is_floating_point():
            return (output - wanted).square()
        log_p, log_q = output.float().log_softmax(-1), wanted.float().log_softmax(-1)
        return ((log_q.exp() - log_p.exp()) * (log_q - log_p)).sum(-1)

    def score(self, model: nn.Module, split: Split) -> dict[str, float]:
        """The metrics on a split by name, the task's metric first. The default is the mean loss."""
        total, count = 0.0, 0
        for batch in self.batches(split):
            total += self.loss(model(batch.inputs), batch).item() * batch.count
            count += batch.count
        return {"loss": total / count}

    def scores(self, model: nn.Module, split: Split) -> Tensor | None:
        """The task's metric of runs side by side, one number each, by a task whose splits are so small that all are scored in one go; None: one by
        one. The model is that of `beside`."""
        return None

    def layers(self) -> dict[str, QuantLayer]:
        """The layers whose weights are quantized: the body. First and last stay in full precision unless a task says otherwise."""
        found = [
            (name, module)
            for name, module in self.model.named_modules()
            if isinstance(module, QuantLayer)
        ]
        return dict(found[1:-1])

    def beside(self, problems: Sequence[Problem], model: nn.Module) -> Problem | None:
        """What is needed of the problem of several runs side by side, of which this one is the first: `model`, its own with an axis of runs in
        front of each parameter, and a loss that gives one number a run for outputs and batches with that axis. None where the task is not
        written for it; then its runs train alone."""
        return None

    def hessian_diagonal(self, layer: QuantLayer) -> Tensor | None:
        """The exact diagonal of the loss's Hessian in a layer's weight, (rows, columns), where it is known."""
        return None

    def input_moment(self, layer: QuantLayer) -> Tensor | None:
        """The exact second moment E[x xᵀ] of a layer's inputs, (columns, columns), where it is known: what GPTQ rounds by."""
        return None

    @property
    def tokenizer(self) -> Tokenizer | None:
        """How text becomes what the model reads; None where it is no language model, and then nothing downstream can be asked of it."""
        return None

    def layout(self) -> Layout | None:
        """The model as Hugging Face's transformers know it, where they do."""
        return None

    @property
    def labels_per_step(self) -> int:
        """Independent labels in a batch: samples, or tokens of a language model; 1 for an exact gradient."""
        return 1

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a language model, samples of anything else."""
        return self.labels_per_step

    @property
    def flops_per_step(self) -> float | None:
        """Arithmetic of a forward and backward pass in full precision, where it is worth counting."""
        return None
