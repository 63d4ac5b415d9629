"""Tokens on disk: a corpus is read once, divided into splits, and from then on mapped into memory by whoever trains on it.

Documents are put in the order of their hashes, and those that come twice are dropped. So a corpus is the set of its documents: how files list
them plays no part, its hash is that of the sorted hashes, and the split that a document belongs to follows from its own hash. Each split is
one stream of tokens with a separator before the first document and after every one.

A folder of the cache holds one set of streams and is named by what is in it. It is made under another name and renamed when it is whole; one
that does not agree with its checksums counts as missing.
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
SHARES = {"test": 1 / 20, "val": 1 / 10}
"""A document whose hash, as a fraction of the largest, lies below the first is for testing, below the second for validation."""
BYTE_SEPARATOR = 255
"""A byte that UTF-8 never uses: bytes need no vocabulary beyond themselves."""
MANIFEST = "manifest.json"
BLOCK = 1 << 20
CHECKED_BLOCKS = 64


class DamagedShards(Exception):
    """A folder of the cache that is not what it says."""


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
            self.dtype, self.hash, self.separator = (
                np.dtype(manifest["dtype"]),
                str(manifest["hash"]),
                int(manifest["separator"]),
            )
            self.vocabulary = str(manifest["vocabulary"])
            """What the tokens mean, as its maker wrote it."""
            self.streams: dict[str, TokenStream] = {
                name: TokenStream(**stream) for name, stream in manifest["streams"].items()
            }
            for name, stream in self.streams.items():
                self._verify(name, stream)
            self._maps = {
                name: np.memmap(self._path(name), self.dtype, "r") for name in self.streams
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedShards(f"{folder}: {error}") from error

    def tokens(self, split: Split) -> NDArray[Any]:
        return self._maps[split]

    def documents(self, split: Split) -> Iterator[bytes]:
        """The documents of a stream of bytes."""
        separator, rest = bytes([self.separator]), b""
        with self._path(split).open("rb") as file:
            file.read(1)
            while block := file.read(64 * BLOCK):
                *whole, rest = (rest + block).split(separator)
                yield from whole

    def _path(self, split: str) -> Path:
        return self.folder / f"{split}.bin"

    def _verify(self, name: str, stream: TokenStream) -> None:
        """All of a small file, and blocks spread evenly over a large one."""
        size = self._path(name).stat().st_size
        if size != stream.tokens * self.dtype.itemsize:
            raise ValueError(f"{name} holds {size} bytes")
        for block in sorted(
            set(np.linspace(0, len(stream.checksums) - 1, CHECKED_BLOCKS).astype(int).tolist())
        ):
            with self._path(name).open("rb") as file:
                file.seek(block * BLOCK)
                if zlib.crc32(file.read(BLOCK)) != stream.checksums[block]:
                    raise ValueError(f"{name} is damaged in block {block}")


def open_shards(folder: Path) -> Shards | None:
    """The shards in a folder; None where they must be made."""
    try:
        return Shards(folder)
    except DamagedShards:
        return None


def cache_path(*parts: str) -> Path:
    """A place in the cache, in a folder that exists."""
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


# ---- making them ----


def ingest_documents(documents: Iterable[bytes], called: str) -> Shards:
    """Read documents into shards of bytes, under the hash of their set."""
    with new_folder(called) as folder:
        digests, lengths = bytearray(), array("q")
        with (folder / "documents").open("wb") as file:
            for document in documents:
                if document:
                    file.write(document)
                    lengths.append(len(document))
                    digests += hashlib.blake2b(document, digest_size=16).digest()
        order, whole = _split_documents(digests, np.frombuffer(lengths, np.int64), called)
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        text = np.memmap(folder / "documents", np.uint8, "r")
        streams: dict[Split, TokenStream] = {}
        for split, members in order.items():
            with (folder / f"{split}.bin").open("wb") as file:
                file.write(bytes([BYTE_SEPARATOR]))
                for index in members:
                    file.write(text[offsets[index] : offsets[index + 1]].data)
                    file.write(bytes([BYTE_SEPARATOR]))
            size = int(sum(lengths[index] for index in members))
            streams[split] = describe_stream(folder, split, size + len(members) + 1, size, len(members))
        del text
        (folder / "documents").unlink()
        return move_into_cache(
            folder,
            cache_path("documents", whole),
            streams,
            hash=whole,
            dtype="uint8",
            separator=BYTE_SEPARATOR,
            vocabulary="",
        )


def _split_documents(
    digests: bytearray, lengths: NDArray[np.int64], called: str
) -> tuple[dict[Split, NDArray[np.int64]], str]:
    """Which documents each split has, in which order, and the hash of them all."""
    pairs = np.frombuffer(digests, ">u8").reshape(-1, 2)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    pairs = pairs[order]
    first = np.ones(len(pairs), bool)
    first[1:] = (pairs[1:] != pairs[:-1]).any(1)
    order, pairs = order[first], pairs[first]
    if len(order) < len(SPLITS):
        raise UsageError(f"{called}: {_describe_shortage(len(order), int(lengths.sum()))}")
    share = pairs[:, 0].astype(np.float64) / 2**64
    # However few documents there are, each split gets one.
    ends, least = [], 1
    for split in ("test", "val"):
        ends.append(
            min(max(int((share < SHARES[split]).sum()), least), len(order) - len(SPLITS) + least)
        )
        least = ends[-1] + 1
    parts = np.split(order, ends)
    return dict(zip(SPLITS, parts, strict=True)), hashlib.sha256(pairs.tobytes()).hexdigest()[:32]


def _describe_shortage(documents: int, size: int) -> str:
    if not size:
        return "the corpus is empty"
    return f"the corpus is too short: {size} bytes make {documents} different documents, and training, validation and test need one each"


@contextmanager
def new_folder(called: str) -> Iterator[Path]:
    """A folder beside the cache's own, gone afterwards unless `finish` renamed it."""
    folder = Path(tempfile.mkdtemp(prefix="new-", dir=cache_path("new").parent))
    try:
        yield folder
    except OSError as error:
        raise UsageError(f"{called}: {error.filename or folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move_into_cache(folder: Path, final: Path, streams: Mapping[Split, TokenStream], **said: Any) -> Shards:
    """Write the manifest and put the folder in its place. Another process may have been first, and what it made is the same."""
    manifest = {**said, "streams": {split: asdict(stream) for split, stream in streams.items()}}
    (folder / MANIFEST).write_text(_add_checksum(manifest), encoding="utf-8")
    for _ in range(8):
        if (there := open_shards(final)) is not None and there.hash == said["hash"]:
            return there
        if final.exists():
            _remove_damaged(final)
        try:
            folder.rename(final)
        except OSError:  # it is there again
            continue
        return Shards(final)
    raise UsageError(f"{final}: other processes keep writing here")


def _add_checksum(manifest: dict[str, Any]) -> str:
    """A manifest with its checksum in front."""
    text = json.dumps(manifest, sort_keys=True)
    return f"{zlib.crc32(text.encode())}\n{text}"


def _remove_damaged(final: Path) -> None:
    aside = Path(tempfile.mkdtemp(prefix="old-", dir=final.parent)) / final.name
    with suppress(OSError):  # somebody else did
        final.rename(aside)
    shutil.rmtree(aside.parent, ignore_errors=True)


def describe_stream(folder: Path, split: str, tokens: int, size: int, documents: int) -> TokenStream:
    """What the manifest says of a stream that is written."""
    with (folder / f"{split}.bin").open("rb") as file:
        checksums = [zlib.crc32(block) for block in iter(lambda: file.read(BLOCK), b"")]
        os.fsync(file.fileno())
    return TokenStream(tokens, size, documents, checksums)
