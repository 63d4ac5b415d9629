"""Scores of a trained run.

The run is exported and decoded again, and the decoded model is evaluated: that is the packed score.
Three others are recorded with it: the simulated score (the quantizers in memory, which must agree),
the score of the latent weights in full precision, and the mean and standard deviation over
randomised roundings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qbench.artefact.audit import Evidence, audit_run, audit_to_json, count_levels_used
from qbench.artefact.pack import Artefact, export_artefact, load_into_model
from qbench.quant.grid import Grid
from qbench.quant.site import INPUT
from qbench.runs.config import Metric, RunConfig
from qbench.training.run import TrainingRun
from qbench.training.setup import list_sites
from qbench.util.json_files import replace_non_finite

ROUNDINGS = 5
"""Randomised roundings that are scored."""


@dataclass(frozen=True)
class _MemoryScores:
    """Scores and losses of the model in memory, before it is exported."""

    latent: float
    loss_latent: float
    roundings: list[float]
    simulated: float
    loss_shipped: float
    snapped: dict[str, Tensor]
    on_grid: bool
    loss_compiled: float | None


@torch.no_grad()
def score_run(run: TrainingRun, config: RunConfig, metric: Metric, folder: Path) -> dict[str, Any]:
    """Export the run and score it. The model is left as it ships."""
    problem, model = run.problem, run.model
    memory = _score_in_memory(run, metric)

    # From here on the model computes with what was read back from the file.
    grids = {name: grid for name, _, grid in run.network.grids()}
    artefact = export_artefact(run, folder)
    decoded = load_into_model(artefact.path, model)
    model.eval()
    metrics, validation = problem.score(model, "test"), problem.score(model, "val")[metric.name]
    packed = metrics[metric.name]
    evidence = Evidence(
        grids=grids,
        snapped=memory.snapped,
        decoded=decoded,
        on_grid=memory.on_grid,
        simulated=memory.simulated,
        packed=packed,
        loss_latent=memory.loss_latent,
        loss_shipped=memory.loss_shipped,
        loss_compiled=memory.loss_compiled,
    )

    scores = {
        "packed": packed,
        "validation": validation,
        "simulated": memory.simulated,
        "latent": memory.latent,
    }
    if memory.roundings:
        # Not the module statistics, which refuses numbers that are not finite.
        roundings = torch.tensor(memory.roundings, dtype=torch.float64)
        scores |= {"rr_mean": float(roundings.mean()), "rr_std": float(roundings.std())}
    values, kinds = replace_non_finite(scores)
    return {
        "scores": {**values, "rr_count": len(memory.roundings)},
        "metrics": replace_non_finite(metrics)[0],
        "kinds": kinds,
        "size": describe_size(artefact, grids),
        "audit": audit_to_json(audit_run(run, artefact, evidence)),
        "sites": describe_sites(run, config, evidence),
        "artefact_sha256": artefact.sha256,
    }


def _score_in_memory(run: TrainingRun, metric: Metric) -> _MemoryScores:
    """Score the latent weights, randomised roundings and the quantizers in memory."""
    problem, model, network = run.problem, run.model, run.network
    sample = next(iter(problem.batches("val")))

    def measure_score() -> float:
        return problem.score(model, "test")[metric.name]

    def measure_loss(model: Callable[[Any], Any] = model) -> float:
        return problem.loss(model(sample.inputs), sample).item()

    with network.in_full_precision():
        latent, loss_latent = measure_score(), measure_loss()
    roundings = []
    for number in range(ROUNDINGS if run.weights else 0):
        with network.randomly_rounded(number):
            roundings.append(measure_score())
    layers = {
        name: layer
        for stack in run.weights
        for name, layer in zip(stack.names, stack.layers, strict=True)
    }
    with network.as_shipped():
        simulated, loss_shipped = measure_score(), measure_loss()
        # Cloned, because the next quantization writes into the same tensors.
        snapped = {name: layer.quantized_weight.clone() for name, layer in layers.items()}
        # Weights that lie on their levels do not change when they are quantized. The audit must not
        # take that for a quantizer that was removed.
        on_grid = not run.inputs and all(
            torch.equal(layer.quantized_weight, layer.weight) for layer in layers.values()
        )
    # The compiled network is measured too: a compiler may have removed the quantizers.
    loss_compiled = None
    if run.passes.compiled_output is not None:
        with network.evaluating():
            loss_compiled = measure_loss(run.passes.compiled_output)
    return _MemoryScores(
        latent,
        loss_latent,
        roundings,
        simulated,
        loss_shipped,
        snapped,
        on_grid,
        loss_compiled,
    )


def describe_size(artefact: Artefact, grids: Mapping[str, Grid]) -> dict[str, Any]:
    """Return the size of an artefact as result.json holds it."""
    return {
        "parameters": artefact.parameters,
        "quantized_parameters": artefact.quantized,
        "bits_per_weight": artefact.bits_per_weight,
        "artefact_bytes": artefact.size,
        "levels": max((grid.levels.count for grid in grids.values()), default=None),
    }


def describe_sites(run: TrainingRun, config: RunConfig, evidence: Evidence) -> list[dict[str, Any]]:
    """Return every site that the board quantizes, with its levels: those allowed and those used."""
    entries = []
    for site in list_sites(run.problem, config):
        entry: dict[str, Any] = {
            "name": site.name,
            "role": site.role,
            "format": site.format,
            "granularity": site.granularity,
            "shape": list(site.shape),
        }
        if grid := evidence.grids.get(site.name):
            decoded = evidence.decoded[f"{site.name}.weight"]
            entry["levels"] = grid.levels.count
            entry["levels_used"] = count_levels_used(decoded, grid.grouping)
        elif quantizer := run.inputs.get(site.name.removesuffix(INPUT)):
            sample = torch.zeros(1, 1, device=quantizer.key.device)
            entry["levels"] = quantizer.grid(sample).levels.count
        entries.append(entry)
    return entries
