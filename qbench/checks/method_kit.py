"""Kit: trains a method under test on the toy task."""

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
from qbench.execution.assignment import Assignment, Execution
from qbench.execution.workload import refusal_of
from qbench.plugins import registry
from qbench.runs.config import Quantization, RunConfig
from qbench.training.calibration import calibrate_weights
from qbench.training.run import TrainingRun
from qbench.training.setup import make_run, open_problem

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
    """A method under test. It is trained where a check asks for it, and what it has trained is
    kept.
    """

    method: str
    folder: Path
    quick: bool = False
    trained: dict[str, tuple[dict[str, Any], Path]] = field(default_factory=dict)

    def build_method(self) -> Method:
        """Return the method with its default hyper-parameters."""
        method: Method = registry.build("methods", self.method, {})
        return method

    def make_config(
        self,
        weights: str,
        granularity: str = "channel",
        activations: str | None = None,
        steps: int = STEPS,
        method: str | None = None,
    ) -> RunConfig:
        """Return the configuration of a run of the method on the toy task."""
        instance: Method = registry.build("methods", method or self.method, {})
        base = None
        if instance.post_training:
            start = self.make_config(
                weights, granularity, method=instance.post_training, steps=steps
            )
            base = start.key
        quantizes = not instance.full_precision
        inputs = Quantization(activations, "tensor") if quantizes and activations else None
        return RunConfig(
            board_version=0,
            method=instance.name,
            method_version=instance.version,
            method_params=instance.params,
            task="toy",
            task_version=1,
            task_params={},
            data="toy-1",
            size="xs",
            weights=Quantization(weights, granularity) if quantizes else None,
            activations=inputs,
            recipe=dataclasses.replace(Toy().recipe("xs"), steps=steps),
            start="scratch",
            seed=0,
            base=base,
        )

    def supported_configs(self) -> Iterator[RunConfig]:
        """Yield the method in every format and granularity that it has a rule for."""
        formats = QUICK_FORMATS if self.quick else FORMATS
        granularities = GRANULARITIES[1:2] if self.quick else GRANULARITIES
        configs = [
            self.make_config(name, granularity) for name in formats for granularity in granularities
        ]
        configs.append(self.make_config("int4", activations="int4"))
        for config in {config.key: config for config in configs}.values():
            if refusal_of(config) is None:
                yield config

    def usual_config(self) -> RunConfig:
        """Return the configuration for checks that need only one: int4 by channel, if it can be."""
        usual = self.make_config("int4")
        return next(self.supported_configs()) if refusal_of(usual) else usual

    def run(
        self,
        config: RunConfig,
        execution: Execution = Execution(compile=False),
        again: bool = False,
        resume: Path | None = None,
    ) -> tuple[dict[str, Any], Path]:
        """Train a configuration, and return its result and its folder.

        Args:
            config: What to train.
            execution: How it is trained: eagerly on every device by default.
            again: Whether it is trained again if it was trained before.
            resume: The folder of an earlier attempt to go on from.
        """
        if config.key in self.trained and not again and resume is None:
            return self.trained[config.key]
        base = None
        if config.base is not None:
            method = registry.load("methods", config.method)
            assert config.weights is not None
            start = self.make_config(
                config.weights.format,
                config.weights.granularity,
                method=method.post_training,
                steps=config.recipe.steps,
            )
            base = self.run(start)[1]
        folder = Path(tempfile.mkdtemp(dir=self.folder)) / "1"
        finished = run_one(Assignment(config, folder, resume, base), execution), folder
        if not execution.compile:
            self.trained.setdefault(config.key, finished)
        return finished

    def attach(self, config: RunConfig) -> TrainingRun:
        """Return a run of the method on a fresh toy problem, with its weights calibrated."""
        _, problem = open_problem(config, torch.device("cpu"))
        method: Method = registry.build("methods", config.method, config.method_params)
        run = make_run(problem, method, config)
        calibrate_weights(run, run.probe_batches(1))
        return run
