"""Method: what the author of a method writes.

A method is a dataclass. Its fields are its hyper-parameters, with the paper's defaults, and the one
thing that must be written is `quantizer`. Every other hook does nothing unless it is overridden.
The training loop calls the hooks in this order:

    once            quantizer, param_groups
    every step      recalibrates, probes and probe, schedules, step (or losses),
                    after_backward, after_step
    at the end      finalize
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn

from qbench.quant.quantizer import Quantizer
from qbench.quant.site import Site

if TYPE_CHECKING:
    from qbench.api.batch import Batch
    from qbench.api.run import Run

Provenance = Literal["paper", "reconstructed", "own"]
"""Where a method's formulas come from: a paper that was read, a paper that could not be had, or no
paper at all."""


@dataclass(frozen=True)
class Preset:
    """The recipe of a method's own paper.

    Boards with `track = "as-published"` may use it; fair boards may not.
    """

    source: str
    """Where the recipe is published."""
    params: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """What replaces the board's recipe: optimizer, rate, schedule, decay. Steps and batch stay."""
    start: str | None = None


@dataclass
class Method:
    """A way to train a quantized network.

    The dataclass fields are the hyper-parameters. Subclasses are final: share code by functions.
    """

    # Identity. All of it is printed; name and version are part of every run's key.
    name: ClassVar[str]
    version: ClassVar[int] = 1
    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    provenance: ClassVar[Provenance] = "paper"
    presets: ClassVar[Mapping[str, Preset]] = {}

    # Kind.
    full_precision: ClassVar[bool] = False
    """True for a reference that quantizes nothing, so that formats do not multiply its runs."""
    post_training: ClassVar[str | None] = None
    """The method whose finished run this one quantizes. Nothing is trained then, and each site has
    a quantizer of its own."""

    def quantizer(self, site: Site) -> Quantizer | None:
        """Return the quantizer of a site, or None to leave the site in full precision."""
        raise NotImplementedError(f"{type(self).__name__} has no quantizer")

    def unsupported(self, site: Site) -> str | None:
        """Return a sentence if the method has no rule for this site.

        The cell is then skipped, and the table shows the sentence.
        """
        return None

    def check(self) -> str | None:
        """Return a sentence if a hyper-parameter is out of range. Nothing is trained then."""
        return None

    def param_groups(self, run: Run) -> Mapping[str, list[nn.Parameter]]:
        """Return named groups of the quantizers' own parameters.

        Parameters that are not listed are in the group `quantizer`. None of them decays.
        """
        return {}

    def schedules(self, run: Run) -> Mapping[str, float]:
        """Return this step's numbers, computed from the hyper-parameters and `run.progress`.

        A name of a parameter group (`decay` and `plain`, the model's parameters; `quantizer`; or
        one of `param_groups`) scales that group's learning rate. Every other number is read by
        `run.scalar(name, like=x)` in hooks and by `self.scalar(name, like=x)` in quantizers.

        It must have no side effects if the method is batched. For stacked runs it is called once a
        run, on that run's own hyper-parameters. Do not read a numeric hyper-parameter anywhere else
        after the run has begun, because stacked runs may differ in it. Comparing one with zero is
        fine: runs that differ in that are not stacked.
        """
        return {}

    def recalibrates(self, run: Run) -> bool:
        """Return whether `Quantizer.calibrate` is called again before this step.

        It is asked once more after the last step, when `run.step == run.steps`. Searched scales
        want `return is_tenth(run)`. The calibration before the first step is not asked for.
        """
        return False

    def probes(self, run: Run) -> bool:
        """Return whether `probe` is called before this step."""
        return False

    def probe(self, run: Run, batch: Batch) -> None:
        """Measure something expensive, such as curvature, at the steps that `probes` names.

        `run` is always one run alone, also where several are stacked.
        """

    def losses(self, run: Run, output: Any, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of the loss by name.

        Their sum is differentiated; each is logged. The loss that the board minimises is `task`.
        """
        return {"task": run.loss(output, batch)}

    def step(self, run: Run, batch: Batch) -> dict[str, Tensor]:
        """Take a whole step by hand: leave gradients in `.grad`, and return the terms of the loss.

        Override it only if a step needs several passes or Python state.
        """
        return run.backward(batch)

    def after_backward(self, run: Run) -> None:
        """Change the gradients, once a step and before clipping."""

    def after_step(self, run: Run) -> None:
        """Project or reassign weights after the optimizer's step."""

    def metrics(self, run: Run) -> Mapping[str, float | Tensor]:
        """Return numbers to log with the curve: one, or one for each stacked run."""
        return {}

    def finalize(self, run: Run, batches: Sequence[Batch]) -> None:
        """Make the grids say everything that ships.

        For a post-training method this is the method.
        """

    @property
    def batched(self) -> bool:
        """Whether the method's steps are tensor operations alone.

        Runs of such a method may be stacked, and their steps recorded as a CUDA graph: nothing
        from `losses` to `after_step` asks for a tensor's value or depends on a Python number that
        changes, and what is kept from step to step lies in `run.state`. The default is true
        unless `step` is overridden; `qbench check` tries it.
        """
        return type(self).step is Method.step

    @property
    def params(self) -> dict[str, Any]:
        """The hyper-parameters by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


def is_tenth(run: Run) -> bool:
    """Return whether a tenth of the run ends here: the times at which scales are searched again."""
    return run.step == run.steps or run.step % max(1, run.steps // 10) == 0
