"""The audit: what every run must show before its score is believed.

The checks are stored with the result, and a failed one is marked in the board. A public record was
once set by a run whose quantization a compiler had silently removed. So the levels are counted in
the tensors that the independent decoder read from the file, and no quantizer is asked about itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qbench.artefact.pack import Artefact
from qbench.quant.formats import Granularity
from qbench.quant.grid import Grid
from qbench.quant.site import INPUT
from qbench.training.run import TrainingRun

SCORE_TOLERANCE = 1e-5
"""Relative difference allowed between the simulated and the packed score. Both come from the same
weights and the same arithmetic."""
COMPILED_TOLERANCE = 1e-3
"""Relative difference allowed between the losses of the compiled and the eager network."""


@dataclass(frozen=True)
class AuditCheck:
    """The outcome of one check."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Evidence:
    """What was measured while the run was scored, for the audit to judge."""

    grids: Mapping[str, Grid]
    """The grid of each weight site, as it was exported."""
    snapped: Mapping[str, Tensor]
    """The quantized weights in memory."""
    decoded: Mapping[str, NDArray[Any]]
    """The tensors that the independent decoder read from the file."""
    on_grid: bool
    """Whether the latent weights were on their levels already, with no quantized input."""
    simulated: float
    packed: float
    loss_latent: float
    loss_shipped: float
    loss_compiled: float | None
    """The loss of the compiled network as it would ship, if training was compiled."""


def audit_run(run: TrainingRun, artefact: Artefact, evidence: Evidence) -> list[AuditCheck]:
    """Return all checks of a run."""
    loss = evidence.loss_shipped
    checks = [
        _check_levels(evidence),
        _check_decoded_weights(evidence),
        _check_agreement(
            "simulated = packed", evidence.simulated, evidence.packed, SCORE_TOLERANCE
        ),
        _check_coverage(run),
        _check_bits(artefact, len(evidence.grids)),
    ]
    if run.weights or run.inputs:
        checks.append(_check_active(evidence))
    if evidence.loss_compiled is not None:
        checks.append(
            _check_agreement("compiled = eager", evidence.loss_compiled, loss, COMPILED_TOLERANCE)
        )
    return checks


def audit_to_json(checks: list[AuditCheck]) -> dict[str, Any]:
    """Return the audit as result.json holds it."""
    return {"passed": all(c.passed for c in checks), "checks": [asdict(c) for c in checks]}


def count_levels_used(decoded: NDArray[Any], grouping: Granularity) -> int:
    """Return the largest number of distinct values in any group of a decoded weight."""
    rows = decoded.reshape(decoded.shape[0], -1)
    if grouping.name == "tensor":
        groups = rows.reshape(1, -1)
    else:
        groups = rows.reshape(-1, grouping.block or rows.shape[1])
    # In a sorted group, each step from one value to a greater one is one more distinct value.
    steps = np.diff(np.sort(groups, axis=1), axis=1) != 0
    return int(steps.sum(axis=1).max(initial=0)) + 1


def _check_levels(evidence: Evidence) -> AuditCheck:
    """Check that no group of a decoded weight has more values than its format has levels."""
    grids = evidence.grids
    used = {
        name: count_levels_used(evidence.decoded[f"{name}.weight"], grid.grouping)
        for name, grid in grids.items()
    }
    # The codes of the file bound the levels as well, whatever the grid claims.
    allowed = {name: min(grid.levels.count, 2**grid.levels.bits) for name, grid in grids.items()}
    if not used:
        return AuditCheck("levels", True, "nothing quantized")
    wrong = [name for name in grids if used[name] > allowed[name]]
    worst = wrong[0] if wrong else max(used, key=used.__getitem__)
    codes = 2 ** grids[worst].levels.bits
    detail = f"{worst}: {used[worst]} values in a group, {codes} allowed"
    return AuditCheck("levels", not wrong, detail)


def _check_decoded_weights(evidence: Evidence) -> AuditCheck:
    """Check that the decoded weights are the quantized weights in memory, bit for bit."""
    wrong = [
        name
        for name, tensor in evidence.snapped.items()
        if not np.array_equal(evidence.decoded[f"{name}.weight"], tensor.cpu().numpy())
    ]
    equal = f"{len(evidence.snapped)} weights, bit for bit"
    detail = f"{', '.join(wrong)} differ" if wrong else equal
    return AuditCheck("decoded = snapped", not wrong, detail)


def _check_agreement(name: str, a: float, b: float, tolerance: float) -> AuditCheck:
    """Check that two numbers agree up to a relative tolerance. NaN agrees with nothing."""
    difference = abs(a - b) / max(abs(a), abs(b), 1e-12)
    detail = f"{a:.8g} and {b:.8g}, relative difference allowed: {tolerance:g}"
    return AuditCheck(name, difference <= tolerance, detail)


def _check_coverage(run: TrainingRun) -> AuditCheck:
    """Check that every site of the board has a quantizer, unless the method declines the site."""
    network = run.network
    attached = {name for stack in run.weights for name in stack.names}
    attached |= {name + INPUT for name in run.inputs}
    missing = [
        name for name in network.declared if name not in attached and name not in network.declined
    ]
    if missing:
        return AuditCheck("coverage", False, f"no quantizer at {missing[0]}")
    declined = f", {len(network.declined)} left out by the method" if network.declined else ""
    detail = f"{len(attached)} of {len(network.declared)} sites{declined}"
    return AuditCheck("coverage", True, detail)


def _check_bits(artefact: Artefact, weights: int) -> AuditCheck:
    """Check that the counted bits are the bytes of the file."""
    counted = artefact.bits / 8
    # The last byte of each weight's codes may be filled up with zeros.
    passed = counted <= artefact.payload <= counted + weights
    detail = f"{artefact.bits_per_weight:.3f} bits a weight, scales and offsets included"
    return AuditCheck("bits", passed, detail)


def _check_active(evidence: Evidence) -> AuditCheck:
    """Check that quantization changes the loss, unless it has nothing left to change."""
    detail = f"loss {evidence.loss_latent:.6g} without, {evidence.loss_shipped:.6g} with"
    if evidence.on_grid:
        detail += ", weights on the grid already"
    passed = evidence.on_grid or evidence.loss_latent != evidence.loss_shipped
    return AuditCheck("active", passed, detail)
