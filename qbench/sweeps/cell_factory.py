"""Makes cells; asks each plugin each question once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qbench.errors import UsageError
from qbench.plugins import registry
from qbench.runs.config import Quantization, Recipe, RunConfig, canonical
from qbench.sweepfile.config import SweepConfig
from qbench.sweeps.axes import Bed, Entrant
from qbench.sweeps.cells import Cell
from qbench.util.text import spell

if TYPE_CHECKING:
    from qbench.api.method import Method
    from qbench.api.task import Task


@dataclass
class _Maker:
    """Makes cells, and asks each question of a plugin once."""

    sweep: SweepConfig
    refusals: dict[str, str | None] = field(default_factory=dict)
    bases: dict[str, Cell] = field(default_factory=dict)

    def cell(
        self,
        bed: Bed,
        entrant: Entrant,
        weights: Quantization | None,
        activations: Quantization | None,
        start: str | None = None,
    ) -> Cell:
        own = {**entrant.recipe, **dict(zip(("lr",), entrant.lr, strict=False))}
        method, task = entrant.method, bed.task
        config = RunConfig(
            board_version=self.sweep.version,
            method=method.name, method_version=method.version, method_params=method.params,
            task=task.name, task_version=task.version, task_params=bed.params, data=bed.data, size=bed.size,
            weights=weights, activations=activations,
            recipe=dataclasses.replace(bed.recipe, **own), start=start or entrant.start or self.sweep.start, seed=0,
        )  # fmt: skip
        if config.recipe.objective == "distill" and config.start == "scratch":
            raise UsageError(
                f'{self.sweep.file}: objective = "distill" needs a network to imitate: write start = "fp:0.5"'
            )
        variant = spell({**{k: v for k, v in bed.axes.items() if k not in own}, **entrant.axes})
        base = self.base(bed, method, config)
        refusal = (
            f"{base.label}: {base.refusal}" if base and base.refusal else self.refusal(config, task)
        )
        return Cell(config, entrant.label, variant, base, refusal=refusal)

    def base(self, bed: Bed, method: Method, config: RunConfig) -> Cell | None:
        """What a run goes on from: the finished run that a post-training method takes, or the network that everybody starts from."""
        bed = dataclasses.replace(bed, recipe=config.recipe)
        if method.after is not None:
            return self.other(method.after, bed, config, config.start)
        if config.start == "scratch":
            return None
        name, share = config.start.split(":")
        whole = self.untuned(bed, config.recipe)
        recipe = dataclasses.replace(
            whole, steps=max(1, round(float(share) * whole.steps)), objective="task"
        )
        return self.other(name, dataclasses.replace(bed, recipe=recipe), config, "scratch")

    def untuned(self, bed: Bed, recipe: Recipe) -> Recipe:
        """With the values that tuned words have without tuning, and the whole budget: trials start from one network, not each from its own."""
        if bed.usual is None or self.sweep.tuning is None:
            return recipe
        return dataclasses.replace(
            recipe,
            **{word: getattr(bed.usual, word) for word in ("steps", *self.sweep.tuning.axes)},
        )

    def other(self, name: str, bed: Bed, config: RunConfig, start: str) -> Cell:
        method = registry.build("methods", name, {}, self.sweep.file)
        recipes = [recipe and dataclasses.asdict(recipe) for recipe in (bed.recipe, bed.usual)]
        same = canonical([name, start, bed.size, recipes, bed.task.name, bed.params])
        formats = (config.weights, config.activations) if method.quantizes else (None, None)
        same += canonical([q and dataclasses.asdict(q) for q in formats])
        if same not in self.bases:
            self.bases[same] = self.cell(bed, Entrant(method, name), *formats, start=start)
        return self.bases[same]

    def refusal(self, config: RunConfig, task: Task) -> str | None:
        """Why the cell cannot run. Of the recipe the objective alone has a say, and the seed has none."""
        if config.activations and not task.activations:
            return f"{task.name} has no activations to quantize"
        from qbench.execution import workload

        c = config
        asked = (
            c.method,
            c.method_params,
            c.start,
            c.recipe.objective,
            c.task,
            c.task_params,
            c.size,
            *_names(c),
        )
        question = canonical(asked)
        if question not in self.refusals:
            self.refusals[question] = workload.refusal(config)
        return self.refusals[question]


def _names(config: RunConfig) -> list[str | None]:
    return [
        name
        for q in (config.weights, config.activations)
        for name in ((q.format, q.granularity) if q else (None, None))
    ]
