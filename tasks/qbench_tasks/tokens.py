"""From a corpus to tokens that lie on disk. Everything is made once and kept (`shards`); files that were read before are known by their stamps."""

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
from qbench_tasks.corpus import place, source_of
from qbench_tasks.shards import (
    SPLITS,
    VERSION,
    Shards,
    Stream,
    cache,
    finish,
    ingest,
    making,
    opened,
    stream_of,
)
from qbench_tasks.vocabulary import BPE, Bytes, Vocabulary, learn

TRAINED_ON = 64 << 20
"""Bytes of the training split that a vocabulary is learned from, at most. Documents lie in the order of their hashes: a sample."""
AT_ONCE = 4 << 20
SETTLED_S = 2.0
"""A file that changed so short a time ago may change again within the resolution of its stamp."""
PREPARED = "data"
HASH = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True)
class Tokens:
    """A corpus in tokens."""

    shards: Shards
    vocabulary: Vocabulary

    @property
    def hash(self) -> str:
        """Of the documents and the vocabulary."""
        return self.shards.hash


def prepare(corpus: str, field: str, limit: int, tokenizer: str, vocab: int) -> Tokens:
    """Read, divide and tokenise a corpus; or open what was made of it before."""
    documents = read(corpus, field, limit)
    return Tokens(documents, Bytes()) if tokenizer == "bytes" else encoded(documents, vocab, corpus)


def read(corpus: str, field: str = "text", limit: int = 0) -> Shards:
    """The corpus in bytes. `data:HASH` is one that was read before, wherever that was."""
    scheme, _, name = corpus.partition(":")
    if scheme == PREPARED:
        # It names a folder, and may come from a stranger's specification.
        if not HASH.fullmatch(name):
            raise UsageError(f"corpus {corpus!r}: a hash is 32 digits from 0 to f")
        return opened(cache("documents", name)) or _reread(name)
    source = source_of(corpus, field)
    note = {
        "corpus": f"path:{place(name)}" if scheme == "path" else corpus,
        "field": field,
        "limit": limit,
    }
    record, signature = fresh_record("sources", source.signature(), note)
    if (
        (known := noted(record))
        and known["settled"]
        and (there := opened(cache("documents", known["hash"])))
    ):
        return there
    trusted = settled(signature)
    shards = ingest(itertools.islice(source.documents(), limit or None), corpus)
    noted(record, {**note, "hash": shards.hash, "settled": trusted})
    return shards


def _reread(name: str) -> Shards:
    """What the cache has lost, made again from where it was read, if that still holds the same."""
    for record in sorted(cache("sources", "_").parent.glob("*.json")):
        if (known := noted(record)) and known["hash"] == name:
            try:
                if (shards := read(known["corpus"], known["field"], known["limit"])).hash == name:
                    return shards
            except UsageError:
                continue
    raise UsageError(
        f'no corpus with the hash {name} in the cache (QBENCH_CACHE): ask once for corpus = "path:…" with the files that hold it'
    )


def fresh_record(kind: str, signature: list[Any], *more: object) -> tuple[Path, list[Any]]:
    """Where it is noted what was found in files with this signature."""
    return cache(kind, f"{_hash(VERSION, *more, signature)}.json"), signature


def noted(record: Path, note: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """What a record says; or write it."""
    if note is not None:
        new = record.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps(note, indent=1))
        new.replace(record)
        return note
    try:
        known = json.loads(record.read_text())
        return known if isinstance(known, dict) and {"hash", "settled"} <= known.keys() else None
    except (OSError, ValueError):
        return None


def settled(signature: list[Any]) -> bool:
    """Whether its stamps are old enough, asked before the files are read."""
    changed = [stamp[3] for stamp in signature if isinstance(stamp, list)]
    return time.time() - max(changed, default=0) / 1e9 > SETTLED_S


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


# ---- BPE ----


def encoded(documents: Shards, vocab: int, called: str) -> Tokens:
    """A corpus in the vocabulary that its training split teaches."""
    folder = cache(f"bpe-{vocab}", documents.hash)
    shards = opened(folder) or _encode(
        documents, learn(_sample(documents), vocab, called), folder, called
    )
    return Tokens(shards, BPE(shards.vocabulary))


def encoded_by(documents: Shards, vocabulary: Vocabulary, called: str) -> Tokens:
    """A corpus in a vocabulary from elsewhere."""
    folder = cache(
        f"tokenizer-{_hash(vocabulary.text, vocabulary.size, vocabulary.separator)}", documents.hash
    )
    return Tokens(opened(folder) or _encode(documents, vocabulary, folder, called), vocabulary)


def _sample(documents: Shards) -> Iterator[str]:
    left = TRAINED_ON
    for document in documents.documents("train"):
        if left <= 0:
            return
        left -= len(document)
        yield document.decode()


def _encode(documents: Shards, vocabulary: Vocabulary, final: Path, called: str) -> Shards:
    end, streams = np.array([vocabulary.separator], vocabulary.dtype), dict[Split, Stream]()
    with making(called) as folder:
        for split in SPLITS:
            tokens, size = 1, 0
            with (folder / f"{split}.bin").open("wb") as file:
                file.write(end.tobytes())
                for row in _in_tokens(vocabulary, documents.documents(split)):
                    file.write(row.tobytes() + end.tobytes())
                    tokens, size = tokens + len(row) + 1, size + int(vocabulary.sizes[row].sum())
            of = documents.streams[split]
            assert size == of.bytes, "every byte is in one token"
            streams[split] = stream_of(folder, split, tokens, size, of.documents)
        name = _hash(documents.hash, vocabulary.text)
        return finish(
            folder,
            final,
            streams,
            hash=name,
            dtype=vocabulary.dtype.name,
            separator=vocabulary.separator,
            vocabulary=vocabulary.text,
        )


def _in_tokens(vocabulary: Vocabulary, documents: Iterator[bytes]) -> Iterator[Any]:
    """Some megabytes at a time, which the library shares out among the cores."""
    group, size = [], 0
    for document in documents:
        group.append(document)
        size += len(document)
        if size >= AT_ONCE:
            yield from vocabulary.encode_all(group)
            group, size = [], 0
    yield from vocabulary.encode_all(group)
