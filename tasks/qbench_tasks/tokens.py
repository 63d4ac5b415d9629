"""From a corpus to tokens on disk.

Everything is written once and kept (`shards`). Files that were read before are recognised by their
size and times, so that they need not be read again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qbench.api import Split, UsageError
from qbench_tasks.corpus import parse_source, resolve_path
from qbench_tasks.shards import (
    SPLITS,
    VERSION,
    Shards,
    TokenStream,
    cache_path,
    describe_stream,
    ingest_documents,
    move_into_cache,
    new_folder,
    open_shards,
)
from qbench_tasks.vocabulary import BPE, Bytes, Vocabulary, learn_bpe

# A vocabulary is learned from at most so many bytes of the training split. Documents lie in the
# order of their hashes, so these are a random sample.
BPE_SAMPLE_BYTES = 64 << 20
# Bytes of text that are handed to the tokenizer's threads at once.
GROUP_BYTES = 4 << 20
# A file that changed so short a time ago may change again within the resolution of its times.
SETTLED_S = 2.0
DATA_HASH_SCHEME = "data"
HASH = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True)
class Tokens:
    """A corpus in tokens."""

    shards: Shards
    vocabulary: Vocabulary

    @property
    def hash(self) -> str:
        """The hash of the documents and the vocabulary."""
        return self.shards.hash


def prepare_tokens(corpus: str, field: str, limit: int, tokenizer: str, vocab: int) -> Tokens:
    """Return a corpus in tokens, read and tokenised now or taken from the cache."""
    documents = read_corpus(corpus, field, limit)
    if tokenizer == "bytes":
        return Tokens(documents, Bytes())
    return encode_with_learned_bpe(documents, vocab, corpus)


def read_corpus(corpus: str, field: str = "text", limit: int = 0) -> Shards:
    """Return the corpus in bytes.

    `data:HASH` names a corpus that was read before, wherever it came from.
    """
    scheme, _, name = corpus.partition(":")
    if scheme == DATA_HASH_SCHEME:
        # The hash names a folder, and may come from a stranger's specification.
        if not HASH.fullmatch(name):
            raise UsageError(f"corpus {corpus!r}: a hash is 32 digits from 0 to f")
        return open_shards(cache_path("documents", name)) or _read_again(name)
    source = parse_source(corpus, field)
    note = {
        "corpus": f"path:{resolve_path(name)}" if scheme == "path" else corpus,
        "field": field,
        "limit": limit,
    }
    signature = source.signature()
    path = record_path("sources", signature, note)
    record = read_record(path)
    if record and record["settled"]:
        shards = open_shards(cache_path("documents", record["hash"]))
        if shards:
            return shards
    # Asked before the files are read: they may change while they are.
    settled = is_settled(signature)
    shards = ingest_documents(itertools.islice(source.documents(), limit or None), corpus)
    write_record(path, {**note, "hash": shards.hash, "settled": settled})
    return shards


def _read_again(name: str) -> Shards:
    """Return a corpus that the cache has lost, if its source still holds the same text."""
    for path in sorted(cache_path("sources", "_").parent.glob("*.json")):
        record = read_record(path)
        if record and record["hash"] == name:
            try:
                shards = read_corpus(record["corpus"], record["field"], record["limit"])
            except UsageError:
                continue
            if shards.hash == name:
                return shards
    raise UsageError(
        f"no corpus with the hash {name} in the cache (QBENCH_CACHE): "
        f'ask once for corpus = "path:…" with the files that hold it'
    )


# ---- records of what files held when they were read ----


def record_path(kind: str, signature: list[Any], *more: object) -> Path:
    """Return where the cache keeps the record of files with this signature."""
    return cache_path(kind, f"{_hash_json(VERSION, *more, signature)}.json")


def read_record(path: Path) -> dict[str, Any] | None:
    """Return a record, or None where there is none or it is damaged."""
    try:
        record = json.loads(path.read_text())
        return record if isinstance(record, dict) and {"hash", "settled"} <= record.keys() else None
    except (OSError, ValueError):
        return None


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record atomically."""
    new = path.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(record, indent=1))
    new.replace(path)


def is_settled(signature: list[Any]) -> bool:
    """Return whether the files of a signature changed long enough ago for it to be trusted."""
    changed = [stamp[3] for stamp in signature if isinstance(stamp, list)]
    return time.time() - max(changed, default=0) / 1e9 > SETTLED_S


def _hash_json(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


# ---- BPE ----


def encode_with_learned_bpe(documents: Shards, vocab: int, label: str) -> Tokens:
    """Return a corpus in a vocabulary that is learned from its training split."""
    folder = cache_path(f"bpe-{vocab}", documents.hash)
    shards = open_shards(folder)
    if shards is None:
        vocabulary = learn_bpe(_sample_training_texts(documents), vocab, label)
        shards = _encode_splits(documents, vocabulary, folder, label)
    return Tokens(shards, BPE(shards.vocabulary))


def encode_with_vocabulary(documents: Shards, vocabulary: Vocabulary, label: str) -> Tokens:
    """Return a corpus in a given vocabulary."""
    name = _hash_json(vocabulary.text, vocabulary.size, vocabulary.separator)
    folder = cache_path(f"tokenizer-{name}", documents.hash)
    shards = open_shards(folder) or _encode_splits(documents, vocabulary, folder, label)
    return Tokens(shards, vocabulary)


def _sample_training_texts(documents: Shards) -> Iterator[str]:
    left = BPE_SAMPLE_BYTES
    for document in documents.documents("train"):
        if left <= 0:
            return
        left -= len(document)
        yield document.decode()


def _encode_splits(documents: Shards, vocabulary: Vocabulary, final: Path, label: str) -> Shards:
    """Write the streams of all splits in tokens and return them."""
    separator = np.array([vocabulary.separator], vocabulary.dtype).tobytes()
    streams = dict[Split, TokenStream]()
    with new_folder(label) as folder:
        for split in SPLITS:
            tokens, size = 1, 0
            with (folder / f"{split}.bin").open("wb") as file:
                file.write(separator)
                for row in _encode_in_groups(vocabulary, documents.documents(split)):
                    file.write(row.tobytes() + separator)
                    tokens, size = tokens + len(row) + 1, size + int(vocabulary.sizes[row].sum())
            plain = documents.streams[split]
            assert size == plain.bytes, "every byte is in one token"
            streams[split] = describe_stream(folder, split, tokens, size, plain.documents)
        return move_into_cache(
            folder,
            final,
            streams,
            hash=_hash_json(documents.hash, vocabulary.text),
            dtype=vocabulary.dtype.name,
            separator=vocabulary.separator,
            vocabulary=vocabulary.text,
        )


def _encode_in_groups(vocabulary: Vocabulary, documents: Iterator[bytes]) -> Iterator[Any]:
    """Yield the tokens of each document, encoded some megabytes at a time on all cores."""
    group, size = [], 0
    for document in documents:
        group.append(document)
        size += len(document)
        if size >= GROUP_BYTES:
            yield from vocabulary.encode_all(group)
            group, size = [], 0
    yield from vocabulary.encode_all(group)
