"""The resolved configuration of one run, its canonical JSON, and the key that is the hash of it.

Two runs share a key exactly when nothing differs that can change a score. Defaults are therefore
filled in and types coerced before hashing (1 and 1.0 do not differ, nor do −0.0 and 0.0), and what
cannot change a score (paths, devices, workers, micro-batches) is left out. Golden tests pin the
bytes: whoever changes them must raise KEY_VERSION.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qbench.errors import QbenchError, UsageError, unknown_name_error

KEY_VERSION = 1

OPTIMIZERS = ("adamw", "sgd", "radam")
SCHEDULES = ("cosine", "wsd", "constant")
PRECISIONS = ("float32", "bf16")
OBJECTIVES = ("task", "distill")


@dataclass(frozen=True)
class Metric:
    """The score of a task: its name, unit, direction and precision."""

    name: str
    unit: str = ""
    better: Literal["lower", "higher"] = "lower"
    floor: float | None = None
    """The best possible value, if it is known."""
    digits: int = 3
    effect: float | None = None
    """The smallest difference that matters in practice; by default one unit of the last digit."""


@dataclass(frozen=True)
class Recipe:
    """Budget, optimizer and schedule of a run.

    They come from the board, or from the task where the board does not set them; never from the
    method.
    """

    steps: int = 300
    batch: int = 64
    optimizer: str = "adamw"
    lr: float = 3e-3
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    momentum: float = 0.9
    clip: float = 1.0
    """The largest gradient norm; 0 turns clipping off."""
    schedule: str = "cosine"
    warmup: float = 0.1
    decay: float = 0.2
    floor: float = 0.0
    precision: str = "float32"
    objective: str = "task"
    """`task`, or `distill`: every run, full precision included, is trained to match the outputs of
    the frozen network that it started from."""

    def find_problem(self) -> str | None:
        """Return one sentence about the first field that is out of its domain, or None."""
        for name, choices in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
            ("objective", OBJECTIVES),
        ):
            if getattr(self, name) not in choices:
                return str(unknown_name_error(name, getattr(self, name), choices))
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
    """All that determines a run's score, with every default filled in. It is hashed as a whole."""

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
    """The key of the finished run that a post-training method starts from."""

    def to_json(self) -> dict[str, Any]:
        data = {"key_version": KEY_VERSION, **dataclasses.asdict(self)}
        if self.recipe.objective == OBJECTIVES[0]:
            # Older keys were made before this field existed, so its default must not be hashed.
            del data["recipe"]["objective"]
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> RunConfig:
        fields = dict(data)
        if (version := fields.pop("key_version", None)) != KEY_VERSION:
            raise QbenchError(
                f"the run has key version {version}, but this qbench reads version {KEY_VERSION}"
            )
        for role in ("weights", "activations"):
            fields[role] = None if fields[role] is None else Quantization(**fields[role])
        fields["recipe"] = Recipe(**fields["recipe"])
        return RunConfig(**fields)

    @property
    def key(self) -> str:
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()[:32]

    @property
    def format_label(self) -> str:
        """`int4`, `int4/block-32`, `int2 a:int4`, or `fp32` if nothing is quantized."""
        parts = []
        if self.weights:
            # `channel` is the usual granularity and is left out.
            plain = self.weights.granularity == "channel"
            name = self.weights.format
            parts.append(name if plain else f"{name}/{self.weights.granularity}")
        if self.activations:
            parts.append(f"a:{self.activations.format}")
        return " ".join(parts) or "fp32"


def format_cell_title(label: str, config: RunConfig, variant: str) -> str:
    """Return the name of a cell as every output writes it: `ste int4 grammar/xs lr=0.003`."""
    formats = config.format_label if config.weights or config.activations else ""
    return " ".join(filter(None, (label, formats, f"{config.task}/{config.size}", variant)))


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys, no spaces and exactly one spelling of every number."""
    # ASCII alone makes the bytes independent of encodings and of Unicode normalization.
    return json.dumps(
        _normalize_value(value),
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=True,
        allow_nan=False,
    )


def _normalize_value(value: Any) -> Any:
    """Return a value as plain JSON types, with numbers in one spelling."""
    # bool is a subclass of int, so it must be handled before the numbers.
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, (int, float)):
        if not math.isfinite(value):
            raise UsageError(f"{value} cannot be part of a configuration")
        # A whole number is written as an integer whatever its type, so −0.0 becomes 0. From 2**53
        # on, floats no longer hold every whole number, and the two types are kept apart.
        return int(value) if float(value).is_integer() and abs(value) < 2**53 else value
    if isinstance(value, Mapping):
        return {str(name): _normalize_value(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_normalize_value(item) for item in value]
    raise UsageError(f"a {type(value).__name__} cannot be part of a configuration")
