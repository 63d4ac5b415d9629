"""The files beside the page: runs as Parquet, checksums, and the folder, which appears whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbench.errors import QbenchError
from qbench.store.schema import RUN
from qbench.util.text import LONGEST_CELL, plain

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


SUMS = "SHA256SUMS"
MARK = "site_version"
"""The word in board.json by which a folder is known as a site of ours."""


def parquet(runs: pd.DataFrame) -> bytes:
    """A row a run in the order of keys and attempts, each column of the kind that the store has; the same bytes for the same rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"key": str, "attempt": int, "label": str, "provenance": str, "trust": str} | {
        column.name: column.kind for column in RUN
    }
    ordered = runs.sort_values(["key", "attempt"], kind="stable")
    names = [name for name in kinds if name in ordered] + sorted(
        set(map(str, ordered)) - set(kinds)
    )
    columns = {name: _column(ordered[name], kinds.get(name, str)) for name in names}
    out = io.BytesIO()
    pq.write_table(
        pa.table(columns),
        out,
        compression="zstd",
        use_dictionary=True,
        write_statistics=True,
        store_schema=False,
    )
    return out.getvalue()


def _column(values: pd.Series[Any], kind: type) -> pa.Array:
    import pyarrow as pa

    types = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    change = {int: int, float: float, bool: bool}.get(kind, lambda word: plain(word, LONGEST_CELL))
    found = values.astype(object).where(values.notna(), None)
    # The same words come again and again.
    changed = {v: change(v) for v in dict.fromkeys(found) if v is not None}
    return pa.array(
        [None if v is None else changed[v] for v in found], types.get(kind, pa.string())
    )


def sums(files: Mapping[str, bytes]) -> str:
    """As `sha256sum --check` reads it."""
    return "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))


def place(files: Mapping[str, bytes], out: Path) -> None:
    """Write the files and their sums into a folder beside, and let it take the place of the one that is there, if that is a site of ours."""
    _must_be_ours(out, {*files, SUMS})
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for name, data in {**files, SUMS: sums(files).encode()}.items():
            _write(scratch / name, data)
        scratch.chmod(0o755)
        _exchange(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def _exchange(scratch: Path, out: Path) -> None:
    """A folder cannot be renamed onto one that holds something: the old one steps aside first, and comes back if the new one cannot move in."""
    old = scratch.with_name(f"{scratch.name}.old")
    if out.exists():
        os.rename(out, old)
    try:
        os.rename(scratch, out)
    except OSError:
        if old.exists():
            os.rename(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _must_be_ours(out: Path, names: set[str]) -> None:
    """Nothing is replaced but a site that `qbench publish` wrote, and an empty folder."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise QbenchError(f"{out} is not a folder: name another with --out")
    there = {p.name for p in out.iterdir()} if out.exists() else set()
    if not there:
        return
    strangers = sorted(there - names)
    if strangers or not _marked(out / "board.json"):
        raise QbenchError(
            f"{out} holds {plain(strangers[0]) if strangers else 'files'} that qbench publish did not write: name another folder with --out"
        )


def _marked(path: Path) -> bool:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and MARK in data
