"""What one run is: its resolved configuration, as canonical JSON, and the key that is the hash of it.

Two runs share a key exactly when nothing that can move a score differs. So defaults are filled and types coerced before
hashing (1 and 1.0 do not differ, nor −0.0 and 0.0), and what cannot move a score (paths, devices, workers, micro-batches) is not
in it. Golden tests pin the bytes: a change to them is a change of KEY_VERSION.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from qbench.errors import QbenchError, UsageError, unknown

KEY_VERSION = 1
T = TypeVar("T")

OPTIMIZERS = ("adamw", "sgd", "radam")
SCHEDULES = ("cosine", "wsd", "constant")
PRECISIONS = ("float32", "bf16")
OBJECTIVES = ("task", "distill")


@dataclass(frozen=True)
class Metric:
    """The number a task is judged by."""

    name: str
    unit: str = ""
    better: Literal["lower", "higher"] = "lower"
    floor: float | None = None
    """The best that can be had, where it is known."""
    digits: int = 3
    effect: float | None = None
    """The least difference that anybody should care about; a unit of the last digit where it is not said."""


@dataclass(frozen=True)
class Recipe:
    """Budget, optimizer and schedule: the board's, or the task's where the board is silent; never the method's."""

    steps: int = 300
    batch: int = 64
    optimizer: str = "adamw"
    lr: float = 3e-3
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    momentum: float = 0.9
    clip: float = 1.0
    """Largest norm of the gradient; 0 leaves it alone."""
    schedule: str = "cosine"
    warmup: float = 0.1
    decay: float = 0.2
    floor: float = 0.0
    precision: str = "float32"
    objective: str = "task"
    """`task`, or `distill`: everybody, full precision included, imitates the frozen network that the run started from."""

    def problem(self) -> str | None:
        """A sentence if a number is out of its domain."""
        for name, known in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
            ("objective", OBJECTIVES),
        ):
            if getattr(self, name) not in known:
                return str(unknown(name, getattr(self, name), known))
        for name, low in (("steps", 1), ("batch", 1)):
            if getattr(self, name) < low:
                return f"{name} must be at least {low}, not {getattr(self, name)}"
        for name in ("weight_decay", "clip"):
            if getattr(self, name) < 0:
                return f"{name} must not be negative, not {getattr(self, name)}"
        for name in ("beta1", "beta2", "momentum", "warmup", "decay"):
            if not 0 <= getattr(self, name) < 1:
                return f"{name} must be in [0, 1), not {getattr(self, name)}"
        if not 0 <= self.floor <= 1:
            return f"floor must be in [0, 1], not {self.floor}"
        if not self.lr > 0:
            return f"lr must be positive, not {self.lr}"
        return None


@dataclass(frozen=True)
class Quantization:
    """How the tensors of one role are quantized."""

    format: str
    granularity: str


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run's score. Frozen, resolved, and hashed whole."""

    board_version: int
    method: str
    method_version: int
    method_params: Mapping[str, Any]
    task: str
    task_version: int
    task_params: Mapping[str, Any]
    data: str
    size: str
    weights: Quantization | None
    activations: Quantization | None
    recipe: Recipe
    start: str
    seed: int
    base: str | None = None
    """The key of the finished run that a post-training method takes."""

    def to_json(self) -> dict[str, Any]:
        data = {"key_version": KEY_VERSION, **dataclasses.asdict(self)}
        if self.recipe.objective == OBJECTIVES[0]:
            del data["recipe"]["objective"]  # the word is younger than the keys
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> RunConfig:
        fields = dict(data)
        if (version := fields.pop("key_version", None)) != KEY_VERSION:
            raise QbenchError(
                f"a run of key version {version}; this qbench reads version {KEY_VERSION}"
            )
        for role in ("weights", "activations"):
            fields[role] = None if fields[role] is None else Quantization(**fields[role])
        fields["recipe"] = Recipe(**fields["recipe"])
        return RunConfig(**fields)

    @property
    def key(self) -> str:
        return hashlib.sha256(canonical(self.to_json()).encode()).hexdigest()[:32]

    @property
    def format_label(self) -> str:
        """`int4`, `int4/block-32`, `int2 a:int4`, or `fp32` where nothing is quantized."""

        def one(q: Quantization) -> str:
            return q.format if q.granularity == "channel" else f"{q.format}/{q.granularity}"

        if self.weights is None and self.activations is None:
            return "fp32"
        parts = ([one(self.weights)] if self.weights else []) + (
            [f"a:{self.activations.format}"] if self.activations else []
        )
        return " ".join(parts)


def cell_title(label: str, config: RunConfig, variant: str) -> str:
    """What a cell is called wherever it is named: `ste int4 grammar/xs lr=0.003`."""
    formats = config.format_label if config.weights or config.activations else ""
    return " ".join(filter(None, (label, formats, f"{config.task}/{config.size}", variant)))


def canonical(value: Any) -> str:
    """JSON with sorted keys, no spaces and one spelling for every number."""
    return json.dumps(
        _plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def _plain(value: Any) -> Any:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, (int, float)):
        if not math.isfinite(value):
            raise UsageError(f"{value} cannot be part of a configuration")
        # A whole number is written as one whatever its type; −0.0 is 0.
        return int(value) if float(value).is_integer() and abs(value) < 2**53 else value
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    raise UsageError(f"a {type(value).__name__} cannot be part of a configuration")
