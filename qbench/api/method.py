"""The method contract: what an author writes.

A method is a set of hyper-parameters (its fields, by name, with the paper's defaults) and the hooks that the one
training loop calls. Only `quantizer` must be written. A hook that is not overridden does nothing and costs nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn

from qbench.quant.quantizer import Quantizer
from qbench.quant.site import Site

if TYPE_CHECKING:
    from qbench.api.batch import Batch
    from qbench.training.run import Run


Provenance = Literal["paper", "reconstructed"]


@dataclass(frozen=True)
class Preset:
    """A method's own published recipe, by name: for boards of the as-published track, never in a fair one."""

    source: str
    """Where it is published."""
    params: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Over the board's: optimizer, rate, schedule, decay. Steps and batch stay the board's."""
    start: str | None = None


@dataclass
class Method:
    """A way to train a quantized network. Subclasses are final dataclasses; share by functions, not by inheritance."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    provenance: ClassVar[Provenance] = "paper"
    quantizes: ClassVar[bool] = True
    """False: full precision, so formats and granularities do not multiply its runs."""
    after: ClassVar[str | None] = None
    """A post-training method names the method whose finished run it takes; it is not trained again."""
    presets: ClassVar[Mapping[str, Preset]] = {}
    knobs: ClassVar[tuple[str, ...]] = ()
    """Hyper-parameters, at most two, that a board may tune for this method beside the recipe's that it tunes for all."""
    varies: ClassVar[tuple[str, ...]] = ()
    """Hyper-parameters, and `format` for that of the weights, in which runs side by side may differ. Hooks read such a number through
    `run.own`; a quantizer keeps it, and what follows from it, as an attribute, and gets tensors there. Zero and other numbers never meet."""
    compiled_alike: ClassVar[bool] = False
    """Whether, with its usual hyper-parameters, runs compiled side by side have the bits that each has compiled alone: on a CPU a sweep may then
    compile long ones by itself. Sums and products have; a compiler may compute an `exp2` by one formula alone and by another in company."""
    bundles: ClassVar[bool] = True
    """False: one quantizer a site, for a method that treats sites of one shape differently."""

    def quantizer(self, site: Site) -> Quantizer | None:
        """The one thing an author must write; None leaves the site in full precision."""
        raise NotImplementedError(f"{type(self).__name__} has no quantizer")

    def unsupported(self, site: Site) -> str | None:
        """A sentence if the method has no rule for the site: the cell is skipped and the table says why."""
        return None

    def alone(self) -> str | None:
        """A sentence if its runs cannot train side by side, with an axis of runs in front of every tensor, in one pass. None says that the
        quantizers and hooks reduce over trailing axes only, and that what runs do not share is a tensor or stands in `state_dict`."""
        return f"{self.name} has not been written for runs side by side"

    def undivided(self) -> str | None:
        """Why it cannot train a network whose weights are divided among processes, in a sentence; None if it can: its rule then looks at one
        weight alone, its gradient is linear in the one that arrives, and it has no parameters of its own."""
        return f"{self.name} is not written for weights that are divided among processes"

    def unrecorded(self) -> str | None:
        """Why its steps cannot be recorded once and repeated (`qbench.recorded`), in a sentence. None says that nothing from `step` to `after_step`
        depends on a number of Python's that changes, and that what goes from step to step is written into tensors that stay where they are."""
        return f"{self.name} is not written for steps that are recorded"

    def check(self) -> str | None:
        """A sentence if a hyper-parameter is out of its domain: refused before anything trains."""
        return None

    def prepare(self, run: Run, batches: list[Batch]) -> None:
        """Ranges from training data, before the first step."""

    def param_groups(self, run: Run) -> Mapping[str, list[nn.Parameter]]:
        """Groups of the quantizers' own parameters beside the default one (`quantizer`), by name. Never weight decay."""
        return {}

    def before_step(self, run: Run, batch: Batch) -> None:
        """Schedules read run.progress here."""

    def losses(self, run: Run, output: Any, batch: Batch) -> dict[str, Tensor]:
        """The whole objective in named terms; they are summed, and logged by name."""
        return {run.objective: run.loss(output, batch)}

    def step(self, run: Run, batch: Batch) -> dict[str, Tensor]:
        """The escape hatch for methods of several passes: leaves gradients in `.grad` and returns the terms."""
        return run.backward(batch)

    def after_backward(self, run: Run) -> None:
        """Once a step, on the accumulated gradient, before clipping."""

    def after_step(self, run: Run) -> None:
        """Projections, re-assignment, pulls."""

    def metrics(self, run: Run) -> Mapping[str, float | Tensor]:
        """Numbers of the method's own to record in the curve; one each for runs side by side, or one for all."""
        return {}

    def finalize(self, run: Run, batches: list[Batch]) -> None:
        """Fold extras and calibrate what is left, so that grids and codes say it all."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold beside the model, the quantizers and the optimizer."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state, f"{self.name} saved {sorted(state)} and does not load it"

    @property
    def needs_reference(self) -> bool:
        """Whether it learns from the network that the run started from, which a run from scratch does not have."""
        return False

    @property
    def params(self) -> dict[str, Any]:
        """The hyper-parameters by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
