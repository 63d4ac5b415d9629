"""Devices: which one, how long a step takes on it, how much memory, and how much arithmetic it can
do.
"""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import statistics
import sys
import sysconfig
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch

from qbench.errors import UsageError

WARMUP_STEPS = 5


def parse_device(name: str) -> torch.device:
    """`auto` is the first GPU, or the CPU where there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"--device {name}: this machine has no usable CUDA device; use --device cpu or auto"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA device(s), counted from 0"
        )
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: only cpu and cuda are supported")
    return device


def select_device(name: str) -> torch.device:
    """The same, and from now on what names no device is on this one: streams, events, waits."""
    device = parse_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


class Stopwatch:
    """Times steps. On CUDA by events that are read at the end, so that no step waits for the
    device.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.marks: list[Any] = []

    def mark(self) -> None:
        """The end of a step."""
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def skip(self) -> None:
        """What follows until the next mark is not a step."""
        self.marks.append(None)

    def steps(self) -> list[float]:
        """Seconds of each step, the first few left out where there are others."""
        if self.cuda:
            torch.cuda.synchronize()
        pairs = [
            (a, b)
            for a, b in zip(self.marks, self.marks[1:], strict=False)
            if a is not None and b is not None
        ]
        times = [a.elapsed_time(b) / 1e3 if self.cuda else b - a for a, b in pairs]
        return times[WARMUP_STEPS:] if len(times) > 2 * WARMUP_STEPS else times


def quartiles(times: list[float]) -> tuple[float, float, float]:
    """Never outside of what was measured, however few."""
    if len(times) == 1:
        return times[0], times[0], times[0]
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, middle, high


def reset_peak_memory(device: torch.device) -> None:
    """What was used so far is not the next run's. The operating system keeps its own count for a
    process.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device's allocator on CUDA, of the whole process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def find_compiler() -> str | None:
    """What `torch.compile` would make programs with on a CPU; None where it could not."""
    asked = shlex.split(os.environ.get("CXX", "")) or [
        "clang++" if sys.platform == "darwin" else "g++"
    ]
    return (
        shutil.which(asked[0]) if Path(sysconfig.get_path("include"), "Python.h").exists() else None
    )


@cache
def total_memory(device: torch.device) -> int | None:
    """Bytes of a GPU; None of another machine's, and of a CPU, whose memory is shared with
    everybody. What is free is not asked: the answer would take a context, and with it memory, in a
    process that trains nothing.
    """
    known = device.type == "cuda" and torch.cuda.is_available()
    return torch.cuda.get_device_properties(device).total_memory if known else None


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Arithmetic a second of a square matrix product: the best of a few."""
    size, repeats = (8192, 10) if device.type == "cuda" else (512, 4)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    watch = Stopwatch(device)
    for _ in range(repeats + 1):
        torch.mm(a, b)
        watch.mark()
    return float(2 * size**3 / min(watch.steps()))
