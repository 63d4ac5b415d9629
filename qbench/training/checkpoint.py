"""Checkpoints: everything that a run needs to go on bit for bit.

Batches and random numbers are functions of indices, so the position in the data is the step, and
there is no generator of ours to save. torch's own generator of the CPU is saved for the sake of a
method that draws from it. A run goes on only from a checkpoint of the same code, the same torch and
the same kind of device, and only if both are compiled or both are not: otherwise one key would
stand for two trainings.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from qbench.runs.environment import find_commit
from qbench.training.run import TrainingRun
from qbench.util.json_files import write_atomically


def describe_maker(run: TrainingRun) -> list[str]:
    """Return what must be the same where a checkpoint is made and where it is resumed."""
    return [
        str(find_commit()["commit"]),
        str(torch.__version__),
        run.network.device.type,
        *(["compiled"] if run.passes.compiled_output is not None else []),
    ]


def save_checkpoint(run: TrainingRun, step: int, seconds: float, path: Path) -> None:
    """Save a run of one seed.

    Args:
        run: The run.
        step: The step to take next.
        seconds: How long the steps before it took.
        path: The file to write.
    """
    if run.team and run.team.rank:
        return  # one process writes it for all
    assert isinstance(run.optimizer, torch.optim.Optimizer)
    state = {
        "made_by": describe_maker(run),
        "step": step,
        "seconds": seconds,
        "model": run.model.state_dict(),
        "quantizers": [q.state_dict() for q in run.quantizers()],
        "optimizer": run.optimizer.state_dict(),
        "state": dict(run.state),
        "generator": torch.get_rng_state(),
        "reference": None if run.reference is None else run.reference.state_dict(),
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(run: TrainingRun, path: Path) -> tuple[int, float]:
    """Put a run where a checkpoint left it.

    Returns:
        The step to take next and the seconds that the steps before it took; (0, 0) if other code
        made the checkpoint, so that the run starts anew.
    """
    assert isinstance(run.optimizer, torch.optim.Optimizer)
    state: dict[str, Any] = torch.load(path, map_location=run.network.device, weights_only=True)
    if state["made_by"] != describe_maker(run):
        return 0, 0.0
    run.model.load_state_dict(state["model"])
    for quantizer, saved in zip(run.quantizers(), state["quantizers"], strict=True):
        quantizer.load_state_dict(saved)
    run.optimizer.load_state_dict(state["optimizer"])
    run.state.update(state["state"])
    torch.set_rng_state(state["generator"].cpu())
    if run.reference is not None:
        run.reference.load_state_dict(state["reference"])
    return int(state["step"]), float(state["seconds"])
