"""Write the folder of a site: runs as Parquet, checksums, and the folder itself in one step.

The new folder is written under another name and then renamed, so that a reader or a web server sees
either the old site or the new one, and a failure leaves the old one as it was.
"""

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
from qbench.store.schema import RUN_COLUMNS
from qbench.util.text import MAX_CELL_LENGTH, clean_line

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


CHECKSUM_FILE = "SHA256SUMS"
SITE_KEY = "site_version"
"""A key of board.json: a folder whose board.json has it was written by `qbench publish`."""


def write_site_folder(files: Mapping[str, bytes], out: Path) -> None:
    """Write the files and their checksums to the folder `out`, replacing a site that is there.

    Raises:
        QbenchError: if the folder holds anything that `qbench publish` did not write.
    """
    _check_replaceable(out, {*files, CHECKSUM_FILE})
    out.parent.mkdir(parents=True, exist_ok=True)
    # In the same parent folder, because a rename cannot cross file systems.
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for name, data in {**files, CHECKSUM_FILE: format_checksums(files).encode()}.items():
            _write_file(scratch / name, data)
        scratch.chmod(0o755)  # mkdtemp makes a folder that only its owner may read
        _swap_folders(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def encode_parquet(runs: pd.DataFrame) -> bytes:
    """Return the runs as a Parquet file, which is the same to the byte for the same rows.

    Rows are ordered by key and attempt. Each column has the type that it has in the store.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"key": str, "attempt": int, "label": str, "provenance": str, "trust": str}
    types |= {column.name: column.kind for column in RUN_COLUMNS}
    ordered = runs.sort_values(["key", "attempt"], kind="stable")
    others = sorted(set(map(str, ordered)) - set(types))
    names = [name for name in types if name in ordered] + others
    columns = {name: _encode_column(ordered[name], types.get(name, str)) for name in names}
    out = io.BytesIO()
    pq.write_table(
        pa.table(columns),
        out,
        compression="zstd",
        use_dictionary=True,
        write_statistics=True,
        store_schema=False,  # plain columns can be read without the schema of Arrow
    )
    return out.getvalue()


def format_checksums(files: Mapping[str, bytes]) -> str:
    """Return the SHA-256 of each file, as `sha256sum --check` reads it."""
    return "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))


def _encode_column(values: pd.Series[Any], kind: type) -> pa.Array:
    import pyarrow as pa

    arrow_types = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    casts = {int: int, float: float, bool: bool}
    cast = casts.get(kind, lambda word: clean_line(word, MAX_CELL_LENGTH))
    # pandas writes a missing integer as NaN, Parquet as null.
    objects = values.astype(object).where(values.notna(), None)
    # Most columns repeat a few values: each is converted once.
    converted = {v: cast(v) for v in dict.fromkeys(objects) if v is not None}
    return pa.array(
        [None if v is None else converted[v] for v in objects], arrow_types.get(kind, pa.string())
    )


def _write_file(path: Path, data: bytes) -> None:
    with open(path, "wb") as f:
        f.write(data)
        f.flush()
        # Without fsync, a crash after the rename could leave an empty file in the new folder.
        os.fsync(f.fileno())


def _swap_folders(scratch: Path, out: Path) -> None:
    """Rename `scratch` to `out`.

    A folder cannot be renamed onto a folder that is not empty. The old one is renamed first, and
    renamed back if the new one cannot take its place.
    """
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


def _check_replaceable(out: Path, names: set[str]) -> None:
    """Raise an error unless `out` is missing, empty, or a site with no files but `names`."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise QbenchError(f"{out} is not a folder: name another with --out")
    present = {p.name for p in out.iterdir()} if out.exists() else set()
    if not present:
        return
    foreign = sorted(present - names)
    if foreign or not _is_site_data(out / "board.json"):
        what = clean_line(foreign[0]) if foreign else "files"
        raise QbenchError(
            f"{out} holds {what} that qbench publish did not write: name another folder with --out"
        )


def _is_site_data(path: Path) -> bool:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and SITE_KEY in data
