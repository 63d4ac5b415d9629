"""The devices on which a machine's worker slots run."""

from __future__ import annotations

from qbench.errors import UsageError


def list_slot_devices(device: str, gpus_per_run: int, limit: int | None) -> list[str]:
    """Return the first device of each slot, where a slot holds a run of several processes.

    Process n of a run uses the n-th device after the first. On the CPU all processes of a run share
    the cores.

    Args:
        device: The user's choice: auto, cpu or cuda.
        gpus_per_run: The number of processes of a run.
        limit: The number of slots. None means as many as the machine has room for.
    """
    import torch

    from qbench.engines.worker_process import count_cores
    from qbench.training.devices import parse_device

    chosen = parse_device(device)
    if chosen.type == "cpu":
        return ["cpu"] * (limit or max(1, count_cores() // gpus_per_run))
    count = torch.cuda.device_count()
    if chosen.index is not None:
        raise UsageError(
            f"--device {device} names one device, and gpus_per_run = {gpus_per_run} asks for"
            f" {gpus_per_run}: write --device cuda"
        )
    if gpus_per_run > count:
        raise UsageError(
            f"gpus_per_run = {gpus_per_run}: this machine has {count} CUDA device(s);"
            " ask for fewer, or write --device cpu"
        )
    # With a limit above the number of device groups, slots share their devices in turn.
    device_groups = count // gpus_per_run
    return [
        f"cuda:{gpus_per_run * (slot % device_groups)}" for slot in range(limit or device_groups)
    ]
