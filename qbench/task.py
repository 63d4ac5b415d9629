"""The task contract: data, model by size, loss, metric, splits, which layers are quantized, and the tuning space.

A task (its fields are options) makes a `Problem` for a size and a seed: one model, one data order, one loss. Everything
random in it comes from (task, seed), so that all methods meet the same start and the same batches, and every batch is a
pure function of its index, so that a run resumes at any step with nothing saved.

Losses reduce over trailing axes only: with runs side by side in front, `loss` returns one number a run.
"""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from qbench.config import Metric, Recipe
from qbench.errors import UsageError
from qbench.noise import generator, key_of
from qbench.quantizer import QuantConv2d, QuantLayer, QuantLinear
from qbench.rows import beside_as_laid_out, by_run, cross_entropy, lines, one_by_one, run_by_run, times

__all__ = [
    "Batch",
    "Layout",
    "Metric",
    "Problem",
    "QuantConv2d",
    "QuantLayer",
    "QuantLinear",
    "Question",
    "Quiz",
    "Recipe",
    "Split",
    "Task",
    "Tokenizer",
    "UsageError",
    "beside_as_laid_out",
    "by_run",
    "cross_entropy",
    "generator",
    "key_of",
    "lines",
    "one_by_one",
    "run_by_run",
    "send",
    "times",
    "with_model",
]

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Batch:
    """Inputs and targets of `count` samples (the first axis); both may be None where a loss is known in closed form."""

    inputs: Tensor | None
    targets: Tensor | None
    count: int = 1

    @property
    def device(self) -> torch.device:
        return self.inputs.device if self.inputs is not None else torch.device("cpu")

    def of(self, place: int) -> Batch:
        """The batch of one of several runs side by side."""
        own = [None if x is None else x[place] for x in (self.inputs, self.targets)]
        return Batch(own[0], own[1], self.count)

    @staticmethod
    def beside(batches: Sequence[Batch]) -> Batch:
        """Those of runs side by side: an axis of runs in front, without a copy where all have the same one."""
        first = batches[0]
        if first.inputs is None or first.targets is None:
            return first
        if all(batch is first for batch in batches):
            inputs, targets = (x.expand(len(batches), *x.shape) for x in (first.inputs, first.targets))
            return Batch(inputs, targets, first.count)
        return Batch(torch.stack([b.inputs for b in batches]), torch.stack([b.targets for b in batches]), first.count)  # type: ignore[misc]

    def split(self, parts: int, lead: int = 0) -> list[Batch]:
        """Micro-batches, behind `lead` axes of runs; one without data cannot be split."""
        if parts == 1 or self.inputs is None or self.targets is None:
            return [self]
        pairs = zip(self.inputs.chunk(parts, lead), self.targets.chunk(parts, lead), strict=True)
        return [Batch(inputs, targets, inputs.shape[lead]) for inputs, targets in pairs]


class Tokenizer(Protocol):
    """What a language model reads. It takes int64 tokens (batch, time) and gives logits (batch, time, vocab), the past alone seen."""

    @property
    def context(self) -> int:
        """Tokens that the model can see at once."""

    @property
    def start(self) -> int:
        """The token that every text begins with, and that stands in front of a question without a context. It may end a generated text, too."""

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without `start`; ValueError, in one line, for a text that the model has no words for."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The inverse of `encode`; `start` in the midst of a text is rendered, too."""

    def to_json(self) -> dict[str, Any] | None:
        """The same as a `tokenizer.json` of Hugging Face's tokenizers, where one can say it."""


@dataclass(frozen=True)
class Layout:
    """How a model is written for Hugging Face's transformers: its `config.json`, and for each of their tensors the name of ours."""

    config: Mapping[str, Any]
    names: Mapping[str, str]


@dataclass(frozen=True)
class Question:
    """A beginning and the ways in which it may go on, of which one is right. Between the two stands a blank."""

    context: str
    choices: tuple[str, ...]
    right: int = 0


@dataclass(frozen=True)
class Quiz:
    """What a task asks its language models after training: questions (scored by accuracy), or texts (by bits per byte)."""

    title: str
    make: Callable[[], Sequence[Question] | Sequence[str]]
    """The same items at every call, on every machine. Every problem of the task gets the same."""
    version: int = 1
    chance: float | None = None
    """The accuracy of guessing, and that of a perfect model, where they are known."""
    ceiling: float | None = None


def send(x: Tensor, device: torch.device) -> Tensor:
    """To a device, without waiting for it: from pinned memory the copy takes its place in the queue behind the step before."""
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)


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
            raise NotImplementedError(f"{type(self).__name__} has neither batch nor drawn and batch_of")
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
        found = [(name, module) for name, module in self.model.named_modules() if isinstance(module, QuantLayer)]
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


@dataclass
class Task:
    """A benchmark task. Subclasses are dataclasses whose fields are options."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    title: ClassVar[str] = ""
    metric: ClassVar[Metric]
    sizes: ClassVar[Mapping[str, Mapping[str, Any]]]
    """What each size means, smallest first."""
    tuning: ClassVar[Mapping[str, tuple[float, ...]]] = {}
    """The space that every method is tuned over, unless a board gives its own."""
    exact_hessian: ClassVar[bool] = False
    activations: ClassVar[bool] = False
    """Whether quantized activations make sense."""
    unrecorded: ClassVar[str | None] = None
    """Why a step of its network cannot be recorded once and repeated (`qbench.recorded`), in a sentence: it asks for the value of a tensor, say."""

    @abstractmethod
    def recipe(self, size: str) -> Recipe:
        """Budget, optimizer and schedule, unless a board gives its own."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the data that the task reads or makes."""

    @abstractmethod
    def problem(self, size: str, seed: int, batch: int, device: torch.device) -> Problem:
        """The model, the data order in batches of `batch`, and the loss. Planning, which asks for shapes alone, gives the device `meta`:
        `.to(device)` is then all that a task needs, and one with large networks may leave their weights unmade."""

    def quizzes(self) -> Mapping[str, Quiz]:
        """Downstream tasks of its own by name, which begins with the task's: `grammar_recall`. They fit the smallest size's context."""
        return {}

    def check(self) -> str | None:
        """A sentence if an option is out of its domain."""
        return None

    @property
    def compiled_alike(self) -> bool:
        """Whether runs compiled side by side have the bits that each has compiled alone, on a CPU: `make bench ARGS=alike`. A sweep may then
        compile long ones by itself."""
        return False

    @property
    def keyed(self) -> bool:
        """Whether its options are those of a key. Of one that is not, `params` reads a place on this machine or the network to know what its
        options mean, so a stranger's word must not get there."""
        return True

    @property
    def params(self) -> dict[str, Any]:
        """What a run's key is made of; the options, or for one that names a place what lies there."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
