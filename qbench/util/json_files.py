"""Write a file whole or not at all; NaN and inf as null plus a kind."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path


def finite(numbers: Mapping[str, float]) -> tuple[dict[str, float | None], dict[str, str]]:
    """Numbers as JSON can hold them, and the kinds of those that are not finite."""
    kinds = {name: _kind(x) for name, x in numbers.items() if not math.isfinite(x)}
    return {name: None if name in kinds else x for name, x in numbers.items()}, kinds


def _kind(x: float) -> str:
    return "nan" if math.isnan(x) else "inf" if x > 0 else "-inf"


def like_other_files(path: Path) -> None:
    """Readable for whoever may read what else is written here: safetensors makes its files for their owner alone."""
    other = path.with_name(f".{path.name}.{os.getpid()}")
    other.touch()
    shutil.copymode(other, path)
    other.unlink()


def write_atomically(path: Path, text: str | bytes) -> None:
    """The whole file or none of it: a temporary name beside it, fsync, rename."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(scratch, "wb") as f:
            f.write(text.encode() if isinstance(text, str) else text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
