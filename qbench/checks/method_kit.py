"""Trains a method under test on the toy task."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from qbench.api.method import Method
from qbench.checks.toy_task import STEPS, Toy
from qbench.engines.dispatch import run_one
from qbench.execution import workload
from qbench.execution.assignment import Assignment, Execution
from qbench.plugins import registry
from qbench.runs.config import Quantization, RunConfig
from qbench.training.run import Run
from qbench.training.setup import attach, open_problem

FORMATS = ("int1", "int2", "int3", "int4", "int8", "fp4")
QUICK_FORMATS = ("int2", "int4", "fp4")
GRANULARITIES = ("tensor", "channel", "block-32")


@dataclass(frozen=True)
class Finding:
    """What one check found in one configuration."""

    check: str
    where: str
    passed: bool
    detail: str = ""


@dataclass
class Kit:
    """A method under test: trains it where a check asks for it, and keeps what it has trained."""

    method: str
    folder: Path
    quick: bool = False
    done: dict[str, tuple[dict[str, Any], Path]] = field(default_factory=dict)

    def config(
        self,
        weights: str,
        granularity: str = "channel",
        activations: str | None = None,
        steps: int = STEPS,
        method: str | None = None,
    ) -> RunConfig:
        instance: Method = registry.build("methods", method or self.method, {})
        quantizes = instance.quantizes
        base = None
        if instance.after:
            base = self.config(weights, granularity, method=instance.after, steps=steps).key
        return RunConfig(
            board_version=0, method=instance.name, method_version=instance.version, method_params=instance.params,
            task="toy", task_version=1, task_params={}, data="toy-1", size="xs",
            weights=Quantization(weights, granularity) if quantizes else None,
            activations=Quantization(activations, "tensor") if quantizes and activations else None,
            recipe=dataclasses.replace(Toy().recipe("xs"), steps=steps), start="scratch", seed=0, base=base,
        )  # fmt: skip

    def supported(self) -> Iterator[RunConfig]:
        """The method in every format and granularity that it has a rule for."""
        formats, granularities = (
            (QUICK_FORMATS, GRANULARITIES[1:2]) if self.quick else (FORMATS, GRANULARITIES)
        )
        configs = [
            self.config(name, granularity) for name in formats for granularity in granularities
        ]
        for config in {
            c.key: c for c in [*configs, self.config("int4", activations="int4")]
        }.values():
            if workload.refusal(config) is None:
                yield config

    def run(
        self,
        config: RunConfig,
        execution: Execution = Execution(compile=False),
        again: bool = False,
        resume: Path | None = None,
    ) -> tuple[dict[str, Any], Path]:
        """Train a configuration once, eagerly on every device; `again` trains it anew."""
        if config.key in self.done and not again and resume is None:
            return self.done[config.key]
        base = None
        if config.base is not None:
            after = registry.build("methods", config.method, config.method_params).after
            assert config.weights is not None
            base = self.run(
                self.config(
                    config.weights.format,
                    config.weights.granularity,
                    method=after,
                    steps=config.recipe.steps,
                )
            )[1]
        folder = Path(tempfile.mkdtemp(dir=self.folder)) / "1"
        found = run_one(Assignment(config, folder, resume, base), execution), folder
        if not execution.compile:
            self.done.setdefault(config.key, found)
        return found

    def one(self) -> RunConfig:
        """The configuration for checks that need only one: int4 by channel, or whatever the method does."""
        usual = self.config("int4")
        return next(self.supported()) if workload.refusal(usual) else usual

    def attached(self, config: RunConfig) -> Run:
        """The method on a fresh toy problem."""
        _, problem = open_problem(config, torch.device("cpu"))
        run = attach(
            problem, registry.build("methods", config.method, config.method_params), config
        )
        for bundle in run.bundles:
            bundle.quantizer.reset(bundle.stack().detach())
        return run
