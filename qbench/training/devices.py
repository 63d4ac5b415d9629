"""The device of a run: its choice, the time of a step on it, its memory and its peak arithmetic."""

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
"""Steps at the beginning that are not counted: they allocate memory and compile kernels."""


def parse_device(name: str) -> torch.device:
    """Return the device of this name, or raise a `UsageError` if this machine does not have it.

    `auto` is the first GPU, or the CPU if there is none.
    """
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
        count = torch.cuda.device_count()
        raise UsageError(
            f"--device {name}: this machine has {count} CUDA device(s), counted from 0"
        )
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: only cpu and cuda are supported")
    return device


def select_device(name: str) -> torch.device:
    """Return the device of this name and make it the current one of this process."""
    device = parse_device(name)
    if device.type == "cuda":
        # Streams, events and synchronization use the current device if none is named.
        torch.cuda.set_device(device)
    return device


class Stopwatch:
    """Measures the time of training steps.

    On CUDA it records events and reads them at the end, so that no step waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.is_cuda = device.type == "cuda"
        # CUDA events or seconds; None where the interval that follows is not a step.
        self.ends: list[Any] = []

    def mark(self) -> None:
        """Record the end of a step, or the beginning of the first one."""
        if self.is_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.ends.append(event)
        else:
            self.ends.append(time.perf_counter())

    def skip(self) -> None:
        """Do not count the time until the next mark as a step."""
        self.ends.append(None)

    def steps(self) -> list[float]:
        """Return the seconds of each step, without the warm-up if enough others remain."""
        if self.is_cuda:
            # The time between two events can be read only after both have happened.
            torch.cuda.synchronize()
        intervals = [
            (start, end)
            for start, end in zip(self.ends, self.ends[1:], strict=False)
            if start is not None and end is not None
        ]
        # CUDA gives milliseconds.
        times = [
            start.elapsed_time(end) / 1e3 if self.is_cuda else end - start
            for start, end in intervals
        ]
        return times[WARMUP_STEPS:] if len(times) > 2 * WARMUP_STEPS else times


def quartiles(times: list[float]) -> tuple[float, float, float]:
    """Return the three quartiles of at least one time."""
    if len(times) == 1:
        return times[0], times[0], times[0]
    # The inclusive method never extrapolates beyond the measured times, even if there are only two.
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, middle, high


def reset_peak_memory(device: torch.device) -> None:
    """Make `peak_memory` of a GPU count from now on.

    On a CPU nothing happens: the operating system has one peak for the life of a process.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of torch's allocator on CUDA, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # ru_maxrss is in bytes on macOS and in KiB on Linux.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def find_compiler() -> str | None:
    """Return the path of the C++ compiler that `torch.compile` would use on a CPU.

    The result is None if it would fail for want of a compiler or of Python's headers.
    """
    command = shlex.split(os.environ.get("CXX", "")) or [
        "clang++" if sys.platform == "darwin" else "g++"
    ]
    has_headers = Path(sysconfig.get_path("include"), "Python.h").exists()
    return shutil.which(command[0]) if has_headers else None


@cache
def total_memory(device: torch.device) -> int | None:
    """Return the memory of a GPU of this machine in bytes, or None.

    It is None for a CPU, whose memory is shared by all programs, and for a GPU elsewhere.
    """
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    # The properties do not need a CUDA context. Asking for the free memory would create one, which
    # takes memory of the GPU, in a process that may train nothing.
    return torch.cuda.get_device_properties(device).total_memory


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of a large matrix product, best of a few."""
    size, repeats = (8192, 10) if device.type == "cuda" else (512, 4)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    watch = Stopwatch(device)
    # One more product than intervals: the first mark comes after the first product, the warm-up.
    for _ in range(repeats + 1):
        torch.mm(a, b)
        watch.mark()
    return float(2 * size**3 / min(watch.steps()))
