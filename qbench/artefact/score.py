"""Scoring a trained run: what ships is exported, decoded again, and that is what is evaluated.

Beside the packed score stand the simulated one (the quantizers in memory; it must agree), the score of the latent weights
in full precision, and the mean and deviation over randomised roundings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from qbench.artefact.audit import Evidence, audit, levels_used, to_json
from qbench.artefact.pack import Artefact, export, load_into_model
from qbench.quant.grid import Grid
from qbench.quant.site import INPUT
from qbench.runs.config import Metric, RunConfig
from qbench.training.run import TrainingRun
from qbench.training.setup import list_sites
from qbench.util.json_files import replace_non_finite

ROUNDINGS = 5


@torch.no_grad()
def score(run: TrainingRun, config: RunConfig, metric: Metric, folder: Path) -> dict[str, Any]:
    """Export the run and score it; the model is left as it ships."""
    problem, model = run.problem, run.model
    sample = next(iter(problem.batches("val")))

    def measure() -> float:
        return problem.score(model, "test")[metric.name]

    def loss(network: Callable[[Any], Any] = model) -> float:
        return problem.loss(network(sample.inputs), sample).item()

    with run.network.in_full_precision():
        latent, loss_latent = measure(), loss()
    roundings = []
    for draw in range(ROUNDINGS if run.weights else 0):
        with run.network.randomly_rounded(draw):
            roundings.append(measure())
    with run.network.as_shipped():
        simulated, loss_shipped = measure(), loss()
        snapped = {
            name: layer.quantized_weight.clone()
            for b in run.weights
            for name, layer in zip(b.names, b.layers, strict=True)
        }
        on_grid = not run.inputs and all(
            torch.equal(layer.quantized_weight, layer.weight)
            for b in run.weights
            for layer in b.layers
        )
    loss_compiled = None
    if run.passes.compiled_output is not None:
        with run.network.evaluating(), torch.no_grad():
            loss_compiled = loss(run.passes.compiled_output)

    grids = {name: grid for name, _, grid in run.network.grids()}
    artefact = export(run, folder)
    decoded = load_into_model(artefact.path, model)
    model.eval()
    metrics, validation = problem.score(model, "test"), problem.score(model, "val")[metric.name]
    packed = metrics[metric.name]
    seen = Evidence(
        grids,
        snapped,
        decoded,
        on_grid,
        simulated,
        packed,
        loss_latent,
        loss_shipped,
        loss_compiled,
    )

    scores = {"packed": packed, "validation": validation, "simulated": simulated, "latent": latent}
    if roundings:
        drawn = torch.tensor(
            roundings, dtype=torch.float64
        )  # may hold what is not finite, which the module statistics does not bear
        scores |= {"rr_mean": float(drawn.mean()), "rr_std": float(drawn.std())}
    values, kinds = replace_non_finite(scores)
    return {
        "scores": {**values, "rr_count": len(roundings)},
        "metrics": replace_non_finite(metrics)[0],
        "kinds": kinds,
        "size": size(artefact, grids),
        "audit": to_json(audit(run, artefact, seen)),
        "sites": describe_sites(run, config, seen),
        "artefact_sha256": artefact.sha256,
    }


def size(artefact: Artefact, grids: Mapping[str, Grid]) -> dict[str, Any]:
    return {
        "parameters": artefact.parameters,
        "quantized_parameters": artefact.quantized,
        "bits_per_weight": artefact.bits_per_weight,
        "artefact_bytes": artefact.size,
        "levels": max((grid.levels.count for grid in grids.values()), default=None),
    }


def describe_sites(run: TrainingRun, config: RunConfig, seen: Evidence) -> list[dict[str, Any]]:
    """Every site that the board quantizes, with its levels as allowed and as found."""
    listed = []
    for site in list_sites(run.problem, config):
        entry: dict[str, Any] = {
            key: getattr(site, key) for key in ("name", "role", "format", "granularity")
        } | {"shape": list(site.shape)}
        if grid := seen.grids.get(site.name):
            entry |= {
                "levels": grid.levels.count,
                "levels_used": levels_used(seen.decoded[f"{site.name}.weight"], grid.grouping),
            }
        elif quantizer := run.inputs.get(site.name.removesuffix(INPUT)):
            entry["levels"] = quantizer.grid(
                torch.zeros(1, 1, device=quantizer.key.device)
            ).levels.count
        listed.append(entry)
    return listed
