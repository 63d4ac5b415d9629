"""Which device each slot trains on."""

from __future__ import annotations

from qbench.errors import UsageError


def slots(device: str, together: int, limit: int | None) -> list[str]:
    """The first device of each group of so many that a run takes. On the CPU a run takes as many processes, whatever the cores."""
    import torch

    from qbench.engines.worker_process import cores
    from qbench.training.devices import device_named

    found = device_named(device)
    if found.type == "cpu":
        return ["cpu"] * (limit or max(1, cores() // together))
    count = torch.cuda.device_count()
    if found.index is not None:
        raise UsageError(
            f"--device {device} names one device, and gpus_per_run = {together} asks for {together}: write --device cuda"
        )
    if together > count:
        raise UsageError(
            f"gpus_per_run = {together}: this machine has {count} CUDA device(s); ask for fewer, or write --device cpu"
        )
    groups = count // together
    return [f"cuda:{together * (slot % groups)}" for slot in range(limit or groups)]
