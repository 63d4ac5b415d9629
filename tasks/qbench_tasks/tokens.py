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
from qbench_tasks.corpus import resolve_path, parse_source
from qbench_tasks.shards import (
    SPLITS,
    VERSION,
    Shards,
    TokenStream,
    cache_path,
    move_into_cache,
    ingest_documents,
    new_folder,
    open_shards,
    describe_stream,
)
from qbench_tasks.vocabulary import BPE, Bytes, Vocabulary, learn_bpe

BPE_SAMPLE_BYTES = 64 << 20
"""Bytes of the training split that a vocabulary is learned from, at most. Documents lie in the order of their hashes: a sample."""
GROUP_BYTES = 4 << 20
SETTLED_S = 2.0
"""A file that changed so short a time ago may change again within the resolution of its stamp."""
DATA_HASH_SCHEME = "data"
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


def prepare_tokens(corpus: str, field: str, limit: int, tokenizer: str, vocab: int) -> Tokens:
    """Read, divide and tokenise a corpus; or open what was made of it before."""
    documents = read_corpus(corpus, field, limit)
    return Tokens(documents, Bytes()) if tokenizer == "bytes" else encode_with_learned_bpe(documents, vocab, corpus)


def read_corpus(corpus: str, field: str = "text", limit: int = 0) -> Shards:
    """The corpus in bytes. `data:HASH` is one that was read before, wherever that was."""
    scheme, _, name = corpus.partition(":")
    if scheme == DATA_HASH_SCHEME:
        # It names a folder, and may come from a stranger's specification.
        if not HASH.fullmatch(name):
            raise UsageError(f"corpus {corpus!r}: a hash is 32 digits from 0 to f")
        return open_shards(cache_path("documents", name)) or _read_again(name)
    source = parse_source(corpus, field)
    note = {
        "corpus": f"path:{resolve_path(name)}" if scheme == "path" else corpus,
        "field": field,
        "limit": limit,
    }
    record, signature = find_record("sources", source.signature(), note)
    if (
        (known := noted(record))
        and known["settled"]
        and (there := open_shards(cache_path("documents", known["hash"])))
    ):
        return there
    trusted = is_settled(signature)
    shards = ingest_documents(itertools.islice(source.documents(), limit or None), corpus)
    noted(record, {**note, "hash": shards.hash, "settled": trusted})
    return shards


def _read_again(name: str) -> Shards:
    """What the cache has lost, made again from where it was read, if that still holds the same."""
    for record in sorted(cache_path("sources", "_").parent.glob("*.json")):
        if (known := noted(record)) and known["hash"] == name:
            try:
                if (shards := read_corpus(known["corpus"], known["field"], known["limit"])).hash == name:
                    return shards
            except UsageError:
                continue
    raise UsageError(
        f'no corpus with the hash {name} in the cache (QBENCH_CACHE): ask once for corpus = "path:…" with the files that hold it'
    )


def find_record(kind: str, signature: list[Any], *more: object) -> tuple[Path, list[Any]]:
    """Where it is noted what was found in files with this signature."""
    return cache_path(kind, f"{_hash_json(VERSION, *more, signature)}.json"), signature


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


def is_settled(signature: list[Any]) -> bool:
    """Whether its stamps are old enough, asked before the files are read."""
    changed = [stamp[3] for stamp in signature if isinstance(stamp, list)]
    return time.time() - max(changed, default=0) / 1e9 > SETTLED_S


def _hash_json(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


# ---- BPE ----


def encode_with_learned_bpe(documents: Shards, vocab: int, called: str) -> Tokens:
    """A corpus in the vocabulary that its training split teaches."""
    folder = cache_path(f"bpe-{vocab}", documents.hash)
    shards = open_shards(folder) or _encode_splits(
        documents, learn_bpe(_sample_training_texts(documents), vocab, called), folder, called
    )
    return Tokens(shards, BPE(shards.vocabulary))


def encode_with_vocabulary(documents: Shards, vocabulary: Vocabulary, called: str) -> Tokens:
    """A corpus in a vocabulary from elsewhere."""
    folder = cache_path(
        f"tokenizer-{_hash_json(vocabulary.text, vocabulary.size, vocabulary.separator)}", documents.hash
    )
    return Tokens(open_shards(folder) or _encode_splits(documents, vocabulary, folder, called), vocabulary)


def _sample_training_texts(documents: Shards) -> Iterator[str]:
    left = BPE_SAMPLE_BYTES
    for document in documents.documents("train"):
        if left <= 0:
            return
        left -= len(document)
        yield document.decode()


def _encode_splits(documents: Shards, vocabulary: Vocabulary, final: Path, called: str) -> Shards:
    end, streams = np.array([vocabulary.separator], vocabulary.dtype), dict[Split, TokenStream]()
    with new_folder(called) as folder:
        for split in SPLITS:
            tokens, size = 1, 0
            with (folder / f"{split}.bin").open("wb") as file:
                file.write(end.tobytes())
                for row in _encode_in_groups(vocabulary, documents.documents(split)):
                    file.write(row.tobytes() + end.tobytes())
                    tokens, size = tokens + len(row) + 1, size + int(vocabulary.sizes[row].sum())
            of = documents.streams[split]
            assert size == of.bytes, "every byte is in one token"
            streams[split] = describe_stream(folder, split, tokens, size, of.documents)
        name = _hash_json(documents.hash, vocabulary.text)
        return move_into_cache(
            folder,
            final,
            streams,
            hash=name,
            dtype=vocabulary.dtype.name,
            separator=vocabulary.separator,
            vocabulary=vocabulary.text,
        )


def _encode_in_groups(vocabulary: Vocabulary, documents: Iterator[bytes]) -> Iterator[Any]:
    """Some megabytes at a time, which the library shares out among the cores."""
    group, size = [], 0
    for document in documents:
        group.append(document)
        size += len(document)
        if size >= GROUP_BYTES:
            yield from vocabulary.encode_all(group)
            group, size = [], 0
    yield from vocabulary.encode_all(group)
