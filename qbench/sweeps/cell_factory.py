"""Make the cells of a plan from task settings, method settings and formats."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qbench.errors import UsageError
from qbench.plugins import registry
from qbench.runs.config import Quantization, Recipe, RunConfig, canonical_json
from qbench.sweepfile.config import SweepConfig
from qbench.sweeps.axes import MethodSetting, TaskSetting
from qbench.sweeps.cells import Cell
from qbench.util.text import format_parameters

if TYPE_CHECKING:
    from qbench.api.method import Method
    from qbench.api.task import Task


@dataclass
class CellFactory:
    """Makes cells. It remembers what plugins answered, so that each question is asked once."""

    sweep: SweepConfig
    refusals: dict[str, str | None] = field(default_factory=dict)
    """Refusals by the part of the configuration that they depend on."""
    bases: dict[str, Cell] = field(default_factory=dict)
    """Base cells by what distinguishes them, so that cells share one object."""

    def make_cell(
        self,
        task_setting: TaskSetting,
        method_setting: MethodSetting,
        weights: Quantization | None,
        activations: Quantization | None,
        start: str | None = None,
    ) -> Cell:
        """Return the cell of a method on a task in one format, with its base cell."""
        method, task = method_setting.method, task_setting.task
        changes = dict(method_setting.recipe)
        if method_setting.lr is not None:
            changes["lr"] = method_setting.lr  # a rate in the file replaces that of a preset
        config = RunConfig(
            board_version=self.sweep.version,
            method=method.name,
            method_version=method.version,
            method_params=method.params,
            task=task.name,
            task_version=task.version,
            task_params=task_setting.params,
            data=task_setting.data,
            size=task_setting.size,
            weights=weights,
            activations=activations,
            recipe=dataclasses.replace(task_setting.recipe, **changes),
            start=start or method_setting.start or self.sweep.start,
            seed=0,
        )
        if config.recipe.objective == "distill" and config.start == "scratch":
            raise UsageError(
                f'{self.sweep.file}: objective = "distill" needs a network to imitate:'
                ' write start = "fp:0.5"'
            )
        task_axes = {k: v for k, v in task_setting.axes.items() if k not in changes}
        variant = format_parameters({**task_axes, **method_setting.axes})
        base = self.make_base(task_setting, method, config)
        if base and base.refusal:
            refusal: str | None = f"{base.label}: {base.refusal}"
        else:
            refusal = self.find_refusal(config, task)
        return Cell(config, method_setting.label, variant, base, refusal=refusal)

    def make_base(
        self, task_setting: TaskSetting, method: Method, config: RunConfig
    ) -> Cell | None:
        """Return the cell whose runs a cell starts from, or None if it starts from scratch.

        A post-training method starts from the finished run of another method, trained with the
        same recipe. Other methods start from the network that the sweep file names, such as
        `fp:0.5`: half the steps of full precision.
        """
        task_setting = dataclasses.replace(task_setting, recipe=config.recipe)
        if method.post_training is not None:
            return self._make_base_cell(method.post_training, task_setting, config, config.start)
        if config.start == "scratch":
            return None
        name, share = config.start.split(":")
        untuned = self._remove_tuned_values(task_setting, config.recipe)
        steps = max(1, round(float(share) * untuned.steps))
        recipe = dataclasses.replace(untuned, steps=steps, objective="task")
        return self._make_base_cell(
            name, dataclasses.replace(task_setting, recipe=recipe), config, "scratch"
        )

    def find_refusal(self, config: RunConfig, task: Task) -> str | None:
        """Return why a cell cannot run, as a sentence, or None if it can."""
        if config.activations and not task.activations:
            return f"{task.name} has no activations to quantize"
        # Here and not at the top, because it imports torch.
        from qbench.execution import workload

        # Everything that a refusal can depend on: no seed, and of the recipe the objective only.
        # Trials of one cell differ in other words of the recipe, and are asked about once.
        question = canonical_json(
            [
                config.method,
                config.method_params,
                config.start,
                config.recipe.objective,
                config.task,
                config.task_params,
                config.size,
                *_format_names(config),
            ]
        )
        if question not in self.refusals:
            self.refusals[question] = workload.refusal_of(config)
        return self.refusals[question]

    def _remove_tuned_values(self, task_setting: TaskSetting, recipe: Recipe) -> Recipe:
        """Return the recipe with all steps and without the tuned values of a trial.

        All trials then start from one network, and not each from a network of its own.
        """
        if task_setting.untuned_recipe is None or self.sweep.tuning is None:
            return recipe
        names = ("steps", *self.sweep.tuning.axes)
        return dataclasses.replace(
            recipe, **{name: getattr(task_setting.untuned_recipe, name) for name in names}
        )

    def _make_base_cell(
        self, method_name: str, task_setting: TaskSetting, config: RunConfig, start: str
    ) -> Cell:
        """Return the cell of a base's method with its default hyper-parameters."""
        method = registry.build("methods", method_name, {}, self.sweep.file)
        formats = (None, None) if method.full_precision else (config.weights, config.activations)
        recipes = (task_setting.recipe, task_setting.untuned_recipe)
        identity = canonical_json(
            [
                method_name,
                start,
                task_setting.size,
                [recipe and dataclasses.asdict(recipe) for recipe in recipes],
                task_setting.task.name,
                task_setting.params,
                [q and dataclasses.asdict(q) for q in formats],
            ]
        )
        if identity not in self.bases:
            self.bases[identity] = self.make_cell(
                task_setting, MethodSetting(method, method_name), *formats, start=start
            )
        return self.bases[identity]


def _format_names(config: RunConfig) -> list[str | None]:
    """Return format and granularity of the weights and of the activations."""
    return [
        name
        for q in (config.weights, config.activations)
        for name in ((q.format, q.granularity) if q else (None, None))
    ]
