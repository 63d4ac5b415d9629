"""An archive with anything that `qbench submit` would not write is refused."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable

import pytest

from qbench.submissions import canonical_zip
from qbench.submissions.strict_json import SubmissionError
from tests.bundles import encode_members, find_directory, open_bundle_data


def test_an_ordinary_zip_of_the_same_files_is_refused(valid_bundle: bytes) -> None:
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        out = io.BytesIO()
        with (
            zipfile.ZipFile(io.BytesIO(valid_bundle)) as source,
            zipfile.ZipFile(out, "w", compression) as target,
        ):
            for name in source.namelist():
                target.writestr(name, source.read(name))
        with pytest.raises(SubmissionError, match="differs from what `qbench submit` writes"):
            open_bundle_data(out.getvalue())


def set_local_flag(data: bytes) -> bytes:
    """Set the flag for encryption in the first local header."""
    return data[:6] + b"\1" + data[7:]


def set_directory_field(offset: int, value: bytes) -> Callable[[bytes], bytes]:
    """Return a function that overwrites a field in the first entry of the central directory."""

    def change(data: bytes) -> bytes:
        place = find_directory(data) + offset
        return data[:place] + value + data[place + len(value) :]

    return change


def make_zip64(data: bytes) -> bytes:
    """Return the archive with an end record that refers to a 64-bit one."""
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, 46, find_directory(data))
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(data) - 22, 1)
    # Fields of which all bits are set say that the 64-bit record holds the value.
    counts, offsets = (0xFFFF, 0xFFFF), (0xFFFFFFFF, 0xFFFFFFFF)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *counts, *offsets, 0)
    return data[:-22] + record + locator + end


ARCHIVE_CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "data before the first member": lambda d: b"#!/bin/sh\n" + d,
    "data after the end": lambda d: d + b"\n",
    "an archive comment": lambda d: d[:-2] + b"\2\0hi",
    "the last byte is missing": lambda d: d[:-1],
    "the second half is missing": lambda d: d[: len(d) // 2],
    "encrypted according to the local header": set_local_flag,
    "encrypted according to the directory": set_directory_field(8, b"\1"),
    "compressed": set_directory_field(10, b"\x08"),
    "a symbolic link": set_directory_field(38, struct.pack("<L", 0o120777 << 16)),
    "another size": set_directory_field(24, b"\1\0\0\0"),
    "another offset": set_directory_field(42, b"\1\0\0\0"),
    "an extra field": set_directory_field(30, b"\4\0"),
    "a second disk": set_directory_field(34, b"\1\0"),
    "64-bit": make_zip64,
    "a newer time": set_directory_field(12, b"\1\1"),
    "fewer entries": lambda d: d[:-14] + struct.pack("<2H", 1, 1) + d[-10:],
    "more entries": lambda d: d[:-14] + struct.pack("<2H", 60000, 60000) + d[-10:],
    "data before the directory": lambda d: (
        d[: find_directory(d)]
        + b"hole"
        + d[find_directory(d) : -6]
        + struct.pack("<LH", find_directory(d) + 4, 0)
    ),
    "a flipped byte of a file": lambda d: d[:200] + bytes([d[200] ^ 1]) + d[201:],
}


@pytest.mark.parametrize("change", ARCHIVE_CHANGES)
def test_an_archive_with_any_other_feature_of_zip_is_refused(
    valid_bundle: bytes, change: str
) -> None:
    data = ARCHIVE_CHANGES[change](valid_bundle)
    assert data != valid_bundle
    with pytest.raises(SubmissionError) as refusal:
        open_bundle_data(data)
    assert "\n" not in str(refusal.value)


def test_overlapping_members_are_refused() -> None:
    """Many directory entries that share the same bytes are a zip bomb without compression."""
    data = bytearray(encode_members([("a", b"x" * 1000), ("b", b"y" * 1000)]))
    # An entry has 46 bytes and the name; the offset of its local header is 42 bytes into it.
    second = find_directory(bytes(data)) + 46 + 1
    data[second + 42 : second + 46] = struct.pack("<L", 0)
    with pytest.raises(SubmissionError):
        canonical_zip.CanonicalZip(io.BytesIO(bytes(data)))


def test_an_archive_above_its_limits_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canonical_zip, "MAX_MEMBERS", 3)
    with pytest.raises(SubmissionError, match="submit fewer runs"):
        encode_members([(f"{n}", b"") for n in range(4)])
    monkeypatch.setattr(canonical_zip, "MAX_BYTES", 100)
    with pytest.raises(SubmissionError, match="submit fewer runs"):
        encode_members([("a", b"x" * 100)])
