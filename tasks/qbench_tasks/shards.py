"""Tokens on disk, which every training process maps into memory.

A corpus is read once and divided into splits. Documents are put in the order of their hashes, and
those that come twice are dropped. So a corpus is the set of its documents: the order in which files
list them does not matter, the hash of the corpus is that of the sorted hashes, and the split that a
document belongs to follows from its own hash. Each split is one stream of tokens with a separator
before the first document and after every one.

A folder of the cache holds one set of streams and is named by their hash. It is written under
another name and renamed when it is complete. A folder that does not agree with its checksums counts
as missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qbench.api import Split, UsageError

VERSION = 1
SPLITS: tuple[Split, ...] = ("test", "val", "train")
# A document is for testing if its hash, as a fraction of the largest, lies below the first number,
# for validation if it lies below the second, and for training otherwise.
SHARES = {"test": 1 / 20, "val": 1 / 10}
# UTF-8 never uses this byte, so bytes need no vocabulary beyond themselves.
BYTE_SEPARATOR = 255
MANIFEST = "manifest.json"
BLOCK = 1 << 20  # bytes that share one checksum
CHECKED_BLOCKS = 64


class DamagedShards(Exception):
    """A folder of the cache is missing, or does not hold what its manifest says."""


@dataclass(frozen=True)
class TokenStream:
    """One split's tokens, as the manifest describes them."""

    tokens: int
    bytes: int
    documents: int
    checksums: list[int]


class Shards:
    """The streams in a folder, mapped into memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            text = (folder / MANIFEST).read_text(encoding="utf-8")
            manifest = json.loads(text.partition("\n")[2])
            if text != _add_checksum(manifest):
                raise ValueError("its manifest is damaged")
            self.dtype, self.hash = np.dtype(manifest["dtype"]), str(manifest["hash"])
            self.separator = int(manifest["separator"])
            # The vocabulary's own description of the tokens, which is empty for bytes.
            self.vocabulary = str(manifest["vocabulary"])
            self.streams: dict[str, TokenStream] = {
                name: TokenStream(**stream) for name, stream in manifest["streams"].items()
            }
            for name, stream in self.streams.items():
                self._verify_stream(name, stream)
            self._maps = {
                name: np.memmap(self._path(name), self.dtype, "r") for name in self.streams
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedShards(f"{folder}: {error}") from error

    def tokens(self, split: Split) -> NDArray[Any]:
        """Return a split's stream, of which only the parts that are used are read."""
        return self._maps[split]

    def documents(self, split: Split) -> Iterator[bytes]:
        """Yield the documents of a stream of bytes."""
        separator, rest = bytes([self.separator]), b""
        with self._path(split).open("rb") as file:
            file.read(1)
            while block := file.read(64 * BLOCK):
                *complete, rest = (rest + block).split(separator)
                yield from complete

    def _path(self, split: str) -> Path:
        return self.folder / f"{split}.bin"

    def _verify_stream(self, name: str, stream: TokenStream) -> None:
        """Raise if the file does not match its checksums.

        A small file is checked completely, a large one in blocks spread evenly over it.
        """
        size = self._path(name).stat().st_size
        if size != stream.tokens * self.dtype.itemsize:
            raise ValueError(f"{name} holds {size} bytes")
        blocks = np.linspace(0, len(stream.checksums) - 1, CHECKED_BLOCKS).astype(int)
        for block in sorted(set(blocks.tolist())):
            with self._path(name).open("rb") as file:
                file.seek(block * BLOCK)
                if zlib.crc32(file.read(BLOCK)) != stream.checksums[block]:
                    raise ValueError(f"{name} is damaged in block {block}")


def open_shards(folder: Path) -> Shards | None:
    """Return the shards in a folder, or None where they must be written first."""
    try:
        return Shards(folder)
    except DamagedShards:
        return None


def cache_path(*parts: str) -> Path:
    """Return a path in the cache, whose parent folder exists."""
    root = os.environ.get("QBENCH_CACHE")
    path = (Path(root) if root else Path.home() / ".cache" / "qbench").joinpath(
        f"text-{VERSION}", *parts
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{path.parent}: {error.strerror}: set QBENCH_CACHE to a folder for tokenised text"
        ) from None
    return path


# ---- writing shards ----


def ingest_documents(documents: Iterable[bytes], label: str) -> Shards:
    """Read documents into shards of bytes, which are cached under the hash of their set.

    Args:
        documents: The texts in UTF-8, in any order; empty ones are skipped.
        label: The corpus as errors name it.
    """
    with new_folder(label) as folder:
        digests, lengths = bytearray(), array("q")
        # All documents go to one file first: they may be larger than the memory, and their order
        # is known only when the last hash is.
        with (folder / "documents").open("wb") as file:
            for document in documents:
                if document:
                    file.write(document)
                    lengths.append(len(document))
                    digests += hashlib.blake2b(document, digest_size=16).digest()
        members, corpus_hash = _split_documents(digests, np.frombuffer(lengths, np.int64), label)
        streams = {
            split: _write_split(folder, split, lengths, indices)
            for split, indices in members.items()
        }
        (folder / "documents").unlink()
        return move_into_cache(
            folder,
            cache_path("documents", corpus_hash),
            streams,
            hash=corpus_hash,
            dtype="uint8",
            separator=BYTE_SEPARATOR,
            vocabulary="",
        )


def _write_split(
    folder: Path, split: Split, lengths: array[int], members: NDArray[np.int64]
) -> TokenStream:
    """Write the stream of a split's documents, in the order of `members`."""
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    text = np.memmap(folder / "documents", np.uint8, "r")
    with (folder / f"{split}.bin").open("wb") as file:
        file.write(bytes([BYTE_SEPARATOR]))
        for index in members:
            file.write(text[offsets[index] : offsets[index + 1]].data)
            file.write(bytes([BYTE_SEPARATOR]))
    size = int(sum(lengths[index] for index in members))
    return describe_stream(folder, split, size + len(members) + 1, size, len(members))


def _split_documents(
    digests: bytearray, lengths: NDArray[np.int64], label: str
) -> tuple[dict[Split, NDArray[np.int64]], str]:
    """Return the documents of each split in their order, and the hash of them all."""
    pairs = np.frombuffer(digests, ">u8").reshape(-1, 2)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    pairs = pairs[order]
    # After sorting, equal documents are neighbours, and only the first of them is kept.
    is_new = np.ones(len(pairs), bool)
    is_new[1:] = (pairs[1:] != pairs[:-1]).any(1)
    order, pairs = order[is_new], pairs[is_new]
    if len(order) < len(SPLITS):
        raise UsageError(f"{label}: {_describe_shortage(len(order), int(lengths.sum()))}")
    share = pairs[:, 0].astype(np.float64) / 2**64
    # However few documents there are, each split gets one.
    ends, least = [], 1
    for split in ("test", "val"):
        end = max(int((share < SHARES[split]).sum()), least)
        ends.append(min(end, len(order) - len(SPLITS) + least))
        least = ends[-1] + 1
    parts = np.split(order, ends)
    return dict(zip(SPLITS, parts, strict=True)), hashlib.sha256(pairs.tobytes()).hexdigest()[:32]


def _describe_shortage(documents: int, size: int) -> str:
    """Return what is wrong with a corpus of too few documents."""
    if not size:
        return "the corpus is empty"
    return (
        f"the corpus is too short: {size} bytes make {documents} different documents, "
        f"and training, validation and test need one each"
    )


@contextmanager
def new_folder(label: str) -> Iterator[Path]:
    """Give a new folder in the cache, which is deleted at the end unless it was renamed."""
    folder = Path(tempfile.mkdtemp(prefix="new-", dir=cache_path("new").parent))
    try:
        yield folder
    except OSError as error:
        raise UsageError(f"{label}: {error.filename or folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move_into_cache(
    folder: Path, final: Path, streams: Mapping[Split, TokenStream], **facts: Any
) -> Shards:
    """Write the manifest, rename the folder to its final path and return its shards.

    If another process was first, its folder is used, because it holds the same.
    """
    manifest = {**facts, "streams": {split: asdict(stream) for split, stream in streams.items()}}
    (folder / MANIFEST).write_text(_add_checksum(manifest), encoding="utf-8")
    # A folder cannot be replaced atomically. So a damaged one is moved away first, and another
    # process may put its own there before this one does; then all starts again.
    for _ in range(8):
        if (present := open_shards(final)) is not None and present.hash == facts["hash"]:
            return present
        if final.exists():
            _remove_damaged(final)
        try:
            folder.rename(final)
        except OSError:  # another process was first
            continue
        return Shards(final)
    raise UsageError(f"{final}: other processes keep writing here")


def _add_checksum(manifest: dict[str, Any]) -> str:
    """Return the text of a manifest with its checksum in the first line."""
    text = json.dumps(manifest, sort_keys=True)
    return f"{zlib.crc32(text.encode())}\n{text}"


def _remove_damaged(final: Path) -> None:
    # Renamed before it is deleted, so that nobody ever opens half of it.
    aside = Path(tempfile.mkdtemp(prefix="old-", dir=final.parent)) / final.name
    with suppress(OSError):  # another process moved it away
        final.rename(aside)
    shutil.rmtree(aside.parent, ignore_errors=True)


def describe_stream(
    folder: Path, split: str, tokens: int, size: int, documents: int
) -> TokenStream:
    """Return the manifest's entry for a stream that is written, and flush it to the disk."""
    with (folder / f"{split}.bin").open("rb") as file:
        checksums = [zlib.crc32(block) for block in iter(lambda: file.read(BLOCK), b"")]
        os.fsync(file.fileno())
    return TokenStream(tokens, size, documents, checksums)
