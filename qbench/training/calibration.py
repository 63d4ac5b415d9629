"""Calibration: initialise or search the quantizers' ranges from data."""

from __future__ import annotations

from collections.abc import Sequence

from qbench.api.batch import Batch
from qbench.api.method import Method
from qbench.quant.scaled_quantizer import ScaledQuantizer
from qbench.training.run import TrainingRun

CALIBRATION_BATCHES = 4


def calibrate(run: TrainingRun) -> None:
    """Calibrate all quantizers for the network as it is now: weights first, then inputs."""
    batches = calibration_batches(run) if _needs_batches(run) else []
    calibrate_weights(run, batches)
    run.network.calibrate_inputs(batches)


def calibration_batches(run: TrainingRun) -> list[Batch]:
    """Return the training batches that every calibration looks at."""
    return run.probe_batches(CALIBRATION_BATCHES)


def calibrate_weights(run: TrainingRun, batches: Sequence[Batch]) -> None:
    """Show every weight quantizer its weights, and the Hessian's diagonal where its rule needs
    it.
    """
    for stack in run.weights:
        quantizer = stack.quantizer
        if isinstance(quantizer, ScaledQuantizer) and quantizer.needs_curvature:
            quantizer.curvature.copy_(run.curvature(stack, batches))
        quantizer.calibrate(stack.stack().detach(), first=True)


def recalibrate_if_due(run: TrainingRun) -> None:
    """Calibrate again if the method asks for it at this step.

    Stacked runs usually agree. Where they do not, those that ask are calibrated one by one.
    """
    if type(run.method).recalibrates is Method.recalibrates:
        return
    asking = [one for one in run.runs if one.method.recalibrates(one)]
    if len(asking) == len(run.runs):
        calibrate(run)
    else:
        for one in asking:
            calibrate(one)


def finalize(run: TrainingRun) -> None:
    """Calibrate for the last time and let the method finalize, so that the grids say what ships.

    The input ranges of a post-training method are found after it has rounded the weights.
    """
    method, batches = run.method, calibration_batches(run)
    if method.post_training is not None:
        calibrate_weights(run, batches)
        method.finalize(run, batches)
        run.network.calibrate_inputs(batches)
        return
    recalibrate_if_due(run)
    method.finalize(run, batches)


def _needs_batches(run: TrainingRun) -> bool:
    return bool(run.inputs) or any(
        isinstance(quantizer, ScaledQuantizer) and quantizer.needs_curvature
        for quantizer in run.quantizers()
    )
