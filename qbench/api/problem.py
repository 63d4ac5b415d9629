"""Problem: one model, one data order and one loss, on one device."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor, nn

from qbench.quant.layers import QuantLayer

if TYPE_CHECKING:
    from qbench.api.batch import Batch, Split
    from qbench.api.language_model import Layout, Tokenizer


@dataclass(frozen=True)
class Work:
    """What a step of training works on."""

    labels: int = 1
    """Independent labels in a batch: samples, or tokens of a language model. 1 means that the
    gradient is exact."""
    flops: float | None = None
    """Arithmetic of a forward and backward pass in full precision, where it is worth counting."""


class Problem(ABC):
    """One model, one data order and one loss, on one device.

    Everything random follows from (task, seed). Losses reduce over trailing axes only, so that
    stacked runs, which have one more axis in front, get one number each.
    """

    model: nn.Module
    seeds_share_data: ClassVar[bool] = False
    """True if problems of other seeds differ only in the model and the order of the data. Their
    runs can then be stacked as they are."""
    work: Work = Work()

    def batch(self, index: int) -> Batch:
        """Return batch `index` of the data order, a pure function of the index.

        Negative indices are training data outside of the order. Write this, or else
        `sample_indices` and `load`.
        """
        indices = self.sample_indices(index)
        if indices is None:
            raise NotImplementedError(
                f"{type(self).__name__} has neither batch nor sample_indices and load"
            )
        return self.load(indices)

    @abstractmethod
    def batches(self, split: Split) -> Iterable[Batch]:
        """Return a whole split in a fixed order."""

    @abstractmethod
    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Return the mean loss over a batch."""

    def score(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Return the metrics of a split, the task's metric first. The default is the mean loss."""
        total, count = 0.0, 0
        for batch in self.batches(split):
            total += self.loss(model(batch.inputs), batch).item() * batch.count
            count += batch.count
        return {"loss": total / count}

    def layers(self) -> dict[str, QuantLayer]:
        """Return the layers to quantize. The default is all but the first and the last."""
        found = [
            (name, module)
            for name, module in self.model.named_modules()
            if isinstance(module, QuantLayer)
        ]
        return dict(found[1:-1])

    # ---- stacked runs: optional ----

    def stack(self, problems: Sequence[Problem], model: nn.Module) -> Problem | None:
        """Return one problem for several stacked runs, or None if they must train alone.

        Args:
            problems: The problems of the runs; this one is the first.
            model: This problem's model, with an axis of runs in front of each parameter.
        """
        return self.with_model(model) if self.seeds_share_data else None

    def with_model(self, model: nn.Module) -> Self:
        """Return a copy of this problem for another model."""
        other = copy.copy(self)
        other.model = model
        return other

    def sample_indices(self, index: int) -> Tensor | None:
        """Return the numbers, on the CPU, of which `load` makes batch `index`.

        A task whose seeds share their data may write these two instead of `batch`. The batches of
        all stacked runs are then loaded in one call.
        """
        return None

    def load(self, indices: Tensor) -> Batch:
        """Return the batch of these samples, or the batches of stacked runs."""
        raise NotImplementedError(f"{type(self).__name__} has sample_indices and no load")

    def score_stacked(self, model: nn.Module, split: Split) -> Tensor | None:
        """Return the task's metric of each stacked run, or None to have them scored one by one.

        It is worth writing where a split is so small that all runs are scored in one pass.
        """
        return None

    # ---- knowledge of the network: optional ----

    def distances(self, output: Tensor, reference: Tensor, batch: Batch) -> Tensor:
        """Return elementwise distances from the reference; their mean is the distillation loss.

        The default is Jeffreys' divergence between the distributions of each sample's class (or
        each next token), and the squared error where targets are numbers. They may
        depend on the batch only by the kind of its targets.
        """
        if batch.targets is None or batch.targets.is_floating_point():
            return (output - reference).square()
        log_p, log_q = output.float().log_softmax(-1), reference.float().log_softmax(-1)
        return ((log_q.exp() - log_p.exp()) * (log_q - log_p)).sum(-1)

    def hessian_diagonal(self, layer: QuantLayer) -> Tensor | None:
        """Return the exact diagonal of the loss's Hessian in a layer's weight, where it is
        known.
        """
        return None

    def input_moment(self, layer: QuantLayer) -> Tensor | None:
        """Return the exact E[x xᵀ] of a layer's inputs, (columns, columns), where it is known."""
        return None

    @property
    def tokenizer(self) -> Tokenizer | None:
        """How a language model reads text. Nothing downstream can be asked where it is None."""
        return None

    def layout(self) -> Layout | None:
        """Return how Hugging Face's transformers write the model, where they can."""
        return None
