"""Checkpoints: everything that a run needs to go on bit for bit.

Batches and draws are functions of indices, so the data position is the step and there is no generator of ours to save;
torch's own (that of the CPU) is kept for the sake of a method that draws from it. Only the code, the torch and the kind of device that made
a checkpoint go on from it, compiled if it was: a run of two minds would have one name.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from qbench.runs.environment import commit
from qbench.training.run import Run
from qbench.util.json_files import write_atomically


def made_by(run: Run) -> list[str]:
    ways = {
        "divided": run.divided,
        "compiled": run.compiled is not None,
    }  # divided, each weight has a quantizer of its own
    return [
        str(commit()["commit"]),
        str(torch.__version__),
        run.clock.device.type,
        *(way for way, taken in ways.items() if taken),
    ]


def save(run: Run, step: int, seconds: float, path: Path) -> None:
    """`step` is the next one to be taken, `seconds` what the steps before it took."""
    assert isinstance(run.optimizer, torch.optim.Optimizer)
    state = {
        "made_by": made_by(run),
        "step": step,
        "seconds": seconds,
        "model": run.model.state_dict(),
        "quantizers": [q.state_dict() for q in run.quantizers()],
        "optimizer": run.optimizer.state_dict(),
        "method": run.method.state_dict(),
        "lr_scale": dict(run.lr_scale),
        "generator": torch.get_rng_state(),
        "reference": None if run.reference is None else run.reference.state_dict(),
    }
    if run.divided:
        from qbench.execution.sharded import all_whole

        state = all_whole(state)
    if run.team and run.team.rank:
        return  # one process writes it for all
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def load(run: Run, path: Path) -> tuple[int, float]:
    """Put a run where the checkpoint left it; returns the step to take next and the seconds that went before. (0, 0) where it is another code's."""
    assert isinstance(run.optimizer, torch.optim.Optimizer)
    state: dict[str, Any] = torch.load(path, map_location=run.clock.device, weights_only=True)
    if state["made_by"] != made_by(run):
        return 0, 0.0
    if run.divided:
        from qbench.execution.sharded import divided_like, divided_moments

        state["model"] = divided_like(state["model"], run.model.state_dict())
        state["optimizer"] = divided_moments(state["optimizer"], run.optimizer)
    run.model.load_state_dict(state["model"])
    for quantizer, saved in zip(run.quantizers(), state["quantizers"], strict=True):
        quantizer.load_state_dict(saved)
    run.optimizer.load_state_dict(state["optimizer"])
    run.method.load_state_dict(state["method"])
    run.lr_scale.update(state["lr_scale"])
    torch.set_rng_state(state["generator"].cpu())
    if run.reference is not None:
        run.reference.load_state_dict(state["reference"])
    return int(state["step"]), float(state["seconds"])
