"""Write files atomically, and replace numbers that JSON cannot hold."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path


def replace_non_finite(
    numbers: Mapping[str, float],
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Return the numbers with NaN and infinities replaced by None, and the kinds of those.

    JSON has no NaN and no infinity. The second dictionary holds "nan", "inf" or "-inf" for each
    name whose number was replaced.
    """
    kinds = {name: _name_kind(x) for name, x in numbers.items() if not math.isfinite(x)}
    return {name: None if name in kinds else x for name, x in numbers.items()}, kinds


def _name_kind(x: float) -> str:
    return "nan" if math.isnan(x) else "inf" if x > 0 else "-inf"


def apply_default_permissions(path: Path) -> None:
    """Give a file the permissions that a newly created file gets in its folder.

    safetensors creates its files readable by their owner alone, whatever the umask allows.
    """
    # The umask cannot be read without setting it, which would affect other threads. A new file
    # shows the permissions instead.
    sample = _scratch_path(path)
    sample.touch()
    shutil.copymode(sample, path)
    sample.unlink()


def write_atomically(path: Path, text: str | bytes) -> None:
    """Write a file so that readers see either its old or its new content, never a part of it."""
    scratch = _scratch_path(path)
    try:
        with open(scratch, "wb") as f:
            f.write(text.encode() if isinstance(text, str) else text)
            f.flush()
            # Without fsync a crash of the machine could leave an empty file under the new name.
            os.fsync(f.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def _scratch_path(path: Path) -> Path:
    """Return a hidden name in the same folder that no other process uses."""
    return path.with_name(f".{path.name}.{os.getpid()}")
