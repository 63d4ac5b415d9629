"""Search scales and ranges again ten times in a run, and at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qbench.api.batch import Batch
from qbench.quant.scaled_quantizer import ScaledQuantizer
from qbench.training.run import Run

if TYPE_CHECKING:
    from qbench.quant.scale_rules import TrainedScaleRule


def undivided(method: str, rule: TrainedScaleRule) -> str | None:
    """Why a rule cannot be followed by a method whose weights are divided among processes; None where each weight alone says its scale."""
    if rule == "learned":
        return f"{method} with scale = learned has parameters of its own, which are not divided among processes"
    return (
        f"{method} with scale = hessian looks at the gradients of whole weights, which no process holds"
        if rule == "hessian"
        else None
    )


# ---- while a run goes on ----

TIMES = 10
"""How often in a run what no gradient moves is looked at again."""
BATCHES = 4


def settle(run: Run, batches: list[Batch]) -> None:
    """What no gradient moves, for the network as it is now: the curvature where a rule wants it, searched scales, ranges of inputs."""
    for bundle in run.bundles:
        quantizer = bundle.quantizer
        if isinstance(quantizer, ScaledQuantizer):
            if quantizer.rule == "hessian":
                quantizer.curvature.copy_(run.curvature(bundle, batches))
            quantizer.reset(bundle.stack().detach())
    run.calibrate(batches)


def settle_now_and_then(run: Run) -> None:
    """Again at every tenth of the run, if there is anything to settle."""
    if run.step and run.step % max(1, run.steps // TIMES) == 0:
        searches = any(
            isinstance(b.quantizer, ScaledQuantizer) and b.quantizer.searches for b in run.bundles
        )
        if searches or run.inputs:
            settle(run, run.probe_batches(BATCHES))
