"""The audit: what every run must show before its score is believed. Findings are stored; a failed one marks the row.

A public record was once set by a run whose quantization a compiler had removed in silence. So nothing is taken on
trust: the levels are counted in the tensors that the independent decoder made, not in what the quantizer says of itself.
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

AGREEMENT = 1e-5
"""Relative distance allowed between the simulated and the packed score: the same weights, the same arithmetic."""
COMPILED = 1e-3
"""The same between the compiled network's loss and the eager one's."""


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Evidence:
    """What was seen on the way, for the audit to judge."""

    grids: Mapping[str, Grid]
    """The grid of each weight site, as it was exported."""
    snapped: Mapping[str, Tensor]
    """The weights that the quantizers made in memory."""
    decoded: Mapping[str, NDArray[Any]]
    """The tensors that the independent decoder made of the file."""
    on_grid: bool
    """The latent weights lay on their levels already, and no input is quantized."""
    simulated: float
    packed: float
    loss_latent: float
    loss_shipped: float
    loss_compiled: float | None
    """The loss of the compiled network as it would ship, where training was compiled."""


def audit(run: TrainingRun, artefact: Artefact, seen: Evidence) -> list[Check]:
    """All checks of a run."""
    checks = [
        _levels(seen),
        _same_weights(seen),
        _agree("simulated = packed", seen.simulated, seen.packed, AGREEMENT),
        _coverage(run),
        _bits(artefact, len(seen.grids)),
    ]
    if run.weights or run.inputs:
        checks.append(_active(seen))
    if seen.loss_compiled is not None:
        checks.append(_agree("compiled = eager", seen.loss_compiled, seen.loss_shipped, COMPILED))
    return checks


def to_json(checks: list[Check]) -> dict[str, Any]:
    return {"passed": all(c.passed for c in checks), "checks": [asdict(c) for c in checks]}


def levels_used(decoded: NDArray[Any], grouping: Granularity) -> int:
    """The largest number of distinct values in any group of a decoded weight."""
    rows = decoded.reshape(decoded.shape[0], -1)
    grouped = (
        rows.reshape(1, -1)
        if grouping.name == "tensor"
        else rows.reshape(-1, grouping.block or rows.shape[1])
    )
    return int((np.diff(np.sort(grouped, axis=1), axis=1) != 0).sum(axis=1).max(initial=0)) + 1


def _levels(seen: Evidence) -> Check:
    used = {
        name: levels_used(seen.decoded[f"{name}.weight"], grid.grouping)
        for name, grid in seen.grids.items()
    }
    wrong = [
        name
        for name, grid in seen.grids.items()
        if used[name] > min(grid.levels.count, 2**grid.levels.bits)
    ]
    if not used:
        return Check("levels", True, "nothing quantized")
    worst = wrong[0] if wrong else max(used, key=used.__getitem__)
    return Check(
        "levels",
        not wrong,
        f"{worst}: {used[worst]} values in a group, {2 ** seen.grids[worst].levels.bits} allowed",
    )


def _same_weights(seen: Evidence) -> Check:
    wrong = [
        name
        for name, tensor in seen.snapped.items()
        if not np.array_equal(seen.decoded[f"{name}.weight"], tensor.cpu().numpy())
    ]
    return Check(
        "decoded = snapped",
        not wrong,
        f"{', '.join(wrong)} differ" if wrong else f"{len(seen.snapped)} weights, bit for bit",
    )


def _agree(name: str, a: float, b: float, tolerance: float) -> Check:
    distance = abs(a - b) / max(abs(a), abs(b), 1e-12)
    return Check(
        name,
        distance <= tolerance,
        f"{a:.8g} and {b:.8g}, allowed to differ by {tolerance:g} of it",
    )


def _coverage(run: TrainingRun) -> Check:
    """Every site that the board quantizes has a quantizer, but those that the method leaves out by design."""
    attached = {name for bundle in run.weights for name in bundle.names} | {
        name + INPUT for name in run.inputs
    }
    missing = [
        name
        for name in run.network.declared
        if name not in attached and name not in run.network.declined
    ]
    note = f", {len(run.network.declined)} left out by the method" if run.network.declined else ""
    return Check(
        "coverage",
        not missing,
        f"no quantizer at {missing[0]}"
        if missing
        else f"{len(attached)} of {len(run.network.declared)} sites{note}",
    )


def _bits(artefact: Artefact, weights: int) -> Check:
    """The bits that are counted are the bytes that were written, but for the last byte of each weight."""
    counted = artefact.bits / 8
    return Check(
        "bits",
        counted <= artefact.payload <= counted + weights,
        f"{artefact.bits_per_weight:.3f} bits a weight, scales and offsets included",
    )


def _active(seen: Evidence) -> Check:
    detail = f"loss {seen.loss_latent:.6g} without, {seen.loss_shipped:.6g} with" + (
        ", weights on the grid already" if seen.on_grid else ""
    )
    return Check("active", seen.on_grid or seen.loss_latent != seen.loss_shipped, detail)
