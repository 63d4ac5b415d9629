"""Read the documents of one file.

A file is plain text, .jsonl or .parquet, and the first two may be packed by gzip or zstd.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from qbench.api import UsageError

# The longest document that is cut out of a plain file.
PIECE_BYTES = 16 * 1024
READ_BYTES = 1 << 20  # bytes that are read at a time


def read_documents(path: Path, field: str) -> Iterator[bytes]:
    """Yield the documents of a file, whose suffix says what it holds.

    Args:
        path: The file.
        field: The field of a record, or the column of a table, that holds the text.

    Raises:
        UsageError: In one line, if the file is damaged or holds no such text.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packing = suffixes.pop() if suffixes and suffixes[-1] in OPENERS else ""
    try:
        if suffixes[-1:] == [".parquet"] and not packing:
            yield from _read_parquet(path, field)
            return
        with OPENERS.get(packing, _open_plain)(path) as stream:
            yield from (
                _read_json_lines(stream, path, field)
                if suffixes[-1:] in ([".jsonl"], [".ndjson"])
                else _read_pieces(stream, path)
            )
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(f"{path}: cut short or damaged ({error})") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error


def _read_pieces(stream: IO[bytes], path: Path) -> Iterator[bytes]:
    """Yield a plain file in pieces that end with a line.

    So a file of any length can be divided into splits.
    """
    rest, before = b"", 0  # `before` counts the bytes of the file in front of `rest`
    while block := stream.read(READ_BYTES):
        rest, start = rest + block, 0
        while len(rest) - start > PIECE_BYTES:
            end = _find_cut(rest, start)
            yield _check_utf8(rest[start:end], path, before + start)
            start = end
        rest, before = rest[start:], before + start
    yield _check_utf8(rest, path, before)


def _find_cut(text: bytes, start: int) -> int:
    """Return where a piece that begins at `start` ends.

    This is after the last line's end within the largest length, or before a character where no line
    ends.
    """
    end = text.rfind(b"\n", start, start + PIECE_BYTES) + 1
    if end:
        return end
    end = start + PIECE_BYTES
    # The bytes of a character after its first are 10xxxxxx, and there are at most three.
    return next((e for e in range(end, end - 4, -1) if text[e] & 0xC0 != 0x80), end)


def _check_utf8(text: bytes, path: Path, before: int) -> bytes:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {before + error.start}") from None
    return text


def _read_json_lines(stream: IO[bytes], path: Path, field: str) -> Iterator[bytes]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{path}:{number}: not JSON ({error})") from None
        text = record.get(field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            names = ", ".join(record) if isinstance(record, dict) else "it is no object"
            raise UsageError(
                f"{path}:{number}: no text in the field {field!r} (fields: {names}): "
                f"name it by field ="
            )
        try:
            yield text.encode()
        except UnicodeEncodeError:
            raise UsageError(
                f"{path}:{number}: half of a surrogate pair, which UTF-8 cannot hold"
            ) from None


def _read_parquet(path: Path, field: str) -> Iterator[bytes]:
    try:
        import pyarrow.parquet as parquet
        from pyarrow import ArrowException
    except ImportError:
        raise UsageError(
            f"{path}: pyarrow, which reads parquet, is not installed: pip install 'qbench[hf]'"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            if field not in (names := file.schema_arrow.names):
                raise UsageError(
                    f"{path}: no column {field!r} (columns: {', '.join(names)}): name it by field ="
                )
            values = (
                value
                for batch in file.iter_batches(columns=[field])
                for value in batch.column(0).to_pylist()
            )
            for number, value in enumerate(values, 1):
                if not isinstance(value, str):
                    raise UsageError(f"{path}: row {number}: the column {field!r} holds no text")
                yield value.encode()
    except ArrowException as error:
        raise UsageError(f"{path}: cut short or damaged ({str(error).splitlines()[0]})") from error


def _open_plain(path: Path) -> IO[bytes]:
    return path.open("rb")


def _open_gzip(path: Path) -> IO[bytes]:
    return io.BufferedReader(gzip.GzipFile(path), READ_BYTES)


def _open_zstd(path: Path) -> IO[bytes]:
    try:
        import zstandard
    except ImportError:
        raise UsageError(
            f"{path}: zstandard, which unpacks .zst, is not installed: pip install 'qbench[hf]'"
        ) from None
    return io.BufferedReader(_ZstdReader(path, zstandard), READ_BYTES)


class _ZstdReader(io.RawIOBase):
    """The content of a file of zstd frames.

    The library's own reader is not used, because it reads a file that was cut short without an
    error.
    """

    def __init__(self, path: Path, library: Any) -> None:
        self.file, self.library = path.open("rb"), library
        self.frame: Any = None
        self.packed = self.ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            self.packed = self.packed or self.file.read(READ_BYTES)
            if not self.packed:
                if self.frame is not None:
                    raise EOFError("the last zstd frame has no end")
                return 0
            self.frame = self.frame or self.library.ZstdDecompressor().decompressobj()
            try:
                self.ready = self.frame.decompress(self.packed)
            except self.library.ZstdError as error:
                raise EOFError(error) from error
            self.packed = self.frame.unused_data if self.frame.eof else b""
            self.frame = None if self.frame.eof else self.frame
        count = min(len(buffer), len(self.ready))
        buffer[:count], self.ready = self.ready[:count], self.ready[count:]
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


OPENERS: dict[str, Callable[[Path], IO[bytes]]] = {".gz": _open_gzip, ".zst": _open_zstd}
