"""Tokens on disk: splits by hash, streams, the cache, vocabularies, and the order of windows."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qbench_tasks import shards as module
from qbench_tasks import tokens as tokens_module
from qbench_tasks.order import order_indices, permute_indices
from qbench_tasks.shards import (
    BYTE_SEPARATOR,
    SPLITS,
    Shards,
    cache_path,
    ingest_documents,
    open_shards,
)
from qbench_tasks.tokens import Tokens, prepare_tokens, read_corpus
from qbench_tasks.vocabulary import BPE, Bytes, Vocabulary, import_tokenizers

from qbench.api.batch import Split
from qbench.errors import UsageError
from tests import SOAK

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "größer",
    "mat",
    "while",
    "文字",
    "ran",
    "<|end|>",
    "away\n",
]


@pytest.fixture(autouse=True)
def use_own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tokens_module, "SETTLED_S", -1.0)  # files are seconds old here


def documents(count: int, seed: int = 0) -> list[bytes]:
    draw = random.Random(seed)
    return [
        f"{i} {' '.join(draw.choices(WORDS, k=draw.randint(1, 60)))}".encode() for i in range(count)
    ]


def corpus(path: Path, texts: list[bytes]) -> str:
    path.write_text("".join(json.dumps({"text": text.decode()}) + "\n" for text in texts))
    return f"path:{path}"


def contents(shards: Shards) -> dict[str, bytes]:
    return {split: shards.tokens(split).tobytes() for split in SPLITS}


def splits_of(shards: Shards) -> dict[bytes, Split]:
    return {document: split for split in SPLITS for document in shards.documents(split)}


# ---- the split ----


def test_every_document_is_in_one_split() -> None:
    texts = documents(1000)
    found = ingest_documents(texts, "x")
    assert splits_of(found).keys() == set(texts)
    assert sum(stream.documents for stream in found.streams.values()) == 1000
    assert sum(stream.bytes for stream in found.streams.values()) == sum(map(len, texts))
    shares = {split: stream.documents / 1000 for split, stream in found.streams.items()}
    assert shares["test"] == pytest.approx(0.05, abs=0.03) and shares["val"] == pytest.approx(
        0.05, abs=0.03
    )


def test_the_order_of_documents_does_not_matter() -> None:
    texts = documents(200)
    one, other = (
        ingest_documents(texts, "x"),
        ingest_documents(random.Random(1).sample(texts, 200), "x"),
    )
    assert one.hash == other.hash and contents(one) == contents(other)
    assert ingest_documents(texts[:-1], "x").hash != one.hash


def test_a_document_stays_in_its_split_when_others_are_added() -> None:
    few, many = (
        splits_of(ingest_documents(documents(300), "x")),
        splits_of(ingest_documents(documents(300) + documents(3000, 1), "x")),
    )
    assert all(many[document] == split for document, split in few.items())


def test_a_document_that_comes_twice_counts_once() -> None:
    texts = documents(50)
    assert (
        ingest_documents(texts + texts[:20] + [b"", b""], "x").hash
        == ingest_documents(texts, "x").hash
    )


@pytest.mark.parametrize("count", range(3, 40))
def test_small_corpora_have_all_three_splits(count: int) -> None:
    found = ingest_documents(documents(count, count), "x")
    assert all(found.streams[split].documents for split in SPLITS)
    assert found.streams["train"].documents >= count - 2 - count // 3


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "the corpus is empty"),
        ([b""], "the corpus is empty"),
        ([b"a", b"b", b"a"], "3 bytes make 2 diff"),
    ],
)
def test_too_little_text_is_one_line(texts: list[bytes], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ingest_documents(texts, "mine")


def test_a_stream_has_a_separator_around_every_document() -> None:
    texts = documents(30)
    for split, stream in contents(found := ingest_documents(texts, "x")).items():
        end = bytes([BYTE_SEPARATOR])
        assert stream.startswith(end) and stream.endswith(end)
        assert stream[1:-1].split(end) == list(found.documents(split))
        assert len(stream) == found.streams[split].tokens


def test_documents_longer_than_a_block_of_reading_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "BLOCK", 7)
    texts = documents(20)
    assert splits_of(ingest_documents(texts, "x")).keys() == set(texts)


# ---- the cache ----


def test_the_second_time_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = corpus(tmp_path / "a.jsonl", documents(50))
    first = read_corpus(name)
    monkeypatch.setattr(tokens_module, "ingest_documents", None)
    assert read_corpus(name).hash == first.hash


def test_a_changed_file_is_read_again_and_an_old_state_is_recognised(tmp_path: Path) -> None:
    name, path = corpus(tmp_path / "a.jsonl", documents(50)), tmp_path / "a.jsonl"
    before, text = read_corpus(name).hash, path.read_text()
    path.write_text(text.replace("cat", "dog"))
    assert read_corpus(name).hash != before
    path.write_text(text)
    assert read_corpus(name).hash == before


def test_a_file_that_has_just_been_written_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "SETTLED_S", 1e6)
    name = corpus(tmp_path / "a.jsonl", documents(50))
    read_corpus(name)
    monkeypatch.setattr(tokens_module, "ingest_documents", None)
    with pytest.raises(TypeError):
        read_corpus(name)


def test_an_interrupted_reading_leaves_no_file(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield from documents(50)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        ingest_documents(broken(), "x")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "manifest", "half", "empty"])
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_a_damaged_shard_is_written_again(damage: str, tokenizer: str, tmp_path: Path) -> None:
    name = corpus(tmp_path / "a.jsonl", documents(200))

    def now() -> Tokens:
        return prepare_tokens(name, "text", 0, tokenizer, 300)

    before = now()
    expected, folder = contents(before.shards), before.shards.folder
    path = folder / "train.bin"
    if damage == "flip":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        os.truncate(path, path.stat().st_size // 2)
    elif damage == "gone":
        path.unlink()
    elif damage == "manifest":
        (folder / "manifest.json").write_text("{}")
    elif damage == "half":
        os.truncate(folder / "manifest.json", 100)
    else:
        for file in folder.iterdir():
            file.unlink()
    assert open_shards(folder) is None
    assert contents(now().shards) == expected and now().hash == before.hash
    assert {p.name for p in folder.parent.iterdir()} == {folder.name}, (
        "nothing is left of the damaged one"
    )


def test_the_file_of_a_vocabulary_may_be_damaged_too(tmp_path: Path) -> None:
    name = corpus(tmp_path / "a.jsonl", documents(200))
    before = prepare_tokens(name, "text", 0, "bpe", 300)
    file = before.shards.folder / "manifest.json"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("cat", "bat"), encoding="utf-8")
    assert file.read_text(encoding="utf-8") != text
    again = prepare_tokens(name, "text", 0, "bpe", 300)
    assert again.hash == before.hash and contents(again.shards) == contents(before.shards)
    assert file.read_text(encoding="utf-8") == text


def test_large_files_are_checked_in_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 64)
    shards = ingest_documents(documents(400), "x")
    assert len(shards.streams["train"].checksums) > 3 * module.CHECKED_BLOCKS
    path = shards.folder / "train.bin"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"?")
    assert open_shards(shards.folder) is None, "the last block is one of them"
    path.write_bytes(data)
    assert open_shards(shards.folder) is not None


def test_concurrent_processes_write_the_same(tmp_path: Path) -> None:
    name = corpus(tmp_path / "a.jsonl", documents(3000 if SOAK else 1000))
    code = (
        "from qbench_tasks.tokens import prepare_tokens\n"
        "for kind in ('bytes', 'bpe'): "
        f"print(prepare_tokens({name!r}, 'text', 0, kind, 300).hash)"
    )
    racers = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(4 if SOAK else 2)  # each imports torch, which takes seconds
    ]
    outputs = {racer.communicate()[0] for racer in racers}
    assert len(outputs) == 1 and not any(racer.returncode for racer in racers)
    assert prepare_tokens(name, "text", 0, "bpe", 300).hash == outputs.pop().split()[1]


def test_a_corpus_can_be_named_by_its_hash(tmp_path: Path) -> None:
    texts, path = documents(100), tmp_path / "a.jsonl"
    found = read_corpus(corpus(path, texts))
    named = f"data:{found.hash}"
    assert contents(read_corpus(named)) == contents(found)
    (found.folder / "val.bin").unlink()
    assert read_corpus(named).hash == found.hash, (
        "it is written again from the file it was read from"
    )
    (found.folder / "val.bin").unlink()
    corpus(path, texts[1:])
    with pytest.raises(UsageError, match=f"no corpus with the hash {found.hash}") as caught:
        read_corpus(named)
    assert "\n" not in str(caught.value)


def test_a_limit_takes_the_first_documents(tmp_path: Path) -> None:
    name = corpus(tmp_path / "a.jsonl", documents(100))
    assert splits_of(read_corpus(name, "text", 40)).keys() == set(documents(100)[:40])
    assert read_corpus(name).hash != read_corpus(name, "text", 40).hash


def test_a_cache_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="set QBENCH_CACHE to a folder"):
        cache_path("documents", "x")


# ---- vocabularies ----


@pytest.fixture
def bpe(tmp_path: Path) -> Tokens:
    pytest.importorskip("tokenizers")
    return prepare_tokens(corpus(tmp_path / "b.jsonl", documents(500)), "text", 0, "bpe", 300)


def test_bpe_keeps_every_byte(bpe: Tokens, tmp_path: Path) -> None:
    plain = read_corpus(f"path:{tmp_path / 'b.jsonl'}")
    for split in SPLITS:
        tokens, words = bpe.shards.tokens(split), bpe.vocabulary
        assert words.decode(tokens.tolist()) == "<|end|>".join(
            ["", *(d.decode() for d in plain.documents(split)), ""]
        )
        assert (
            bpe.vocabulary.sizes[tokens].sum()
            == plain.streams[split].bytes
            == bpe.shards.streams[split].bytes
        )
        assert len(tokens) < 0.7 * plain.streams[split].tokens
        assert (tokens == words.separator).sum() == plain.streams[split].documents + 1, (
            "written <|end|> is five words"
        )
    assert bpe.vocabulary.size == 300 and bpe.vocabulary.separator == 299


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_vocabulary_is_learned_from_the_training_split_alone(
    split: str, bpe: Tokens, tmp_path: Path
) -> None:
    # One more document, full of what training never says.
    held = (f"{'qqq zzz ' * 1000}{i}".encode() for i in range(1000))
    extra = next(
        text
        for text in held
        if splits_of(ingest_documents([*documents(500), text], "x"))[text] == split
    )
    again = prepare_tokens(
        corpus(tmp_path / "c.jsonl", [*documents(500), extra]), "text", 0, "bpe", 300
    )
    assert isinstance(again.vocabulary, BPE) and isinstance(bpe.vocabulary, BPE)
    assert again.hash != bpe.hash and again.vocabulary.text == bpe.vocabulary.text


@pytest.mark.parametrize("threads", ["1", "3"])
def test_a_vocabulary_does_not_depend_on_the_cores(
    threads: str, bpe: Tokens, tmp_path: Path
) -> None:
    path = f"path:{tmp_path / 'b.jsonl'}"
    code = (
        "from qbench_tasks.tokens import prepare_tokens\n"
        f"print(prepare_tokens({path!r}, 'text', 0, 'bpe', 300).hash)"
    )
    env = {
        **os.environ,
        "QBENCH_CACHE": str(tmp_path / threads),
        "RAYON_NUM_THREADS": threads,
        "PYTHONHASHSEED": threads,
    }
    assert (
        subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        ).stdout.strip()
        == bpe.hash
    )


def test_a_vocabulary_too_large_for_its_corpus_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    with pytest.raises(
        UsageError, match=r"vocab = 5000 is too large: the training split teaches \d+ tokens"
    ):
        prepare_tokens(corpus(tmp_path / "a.jsonl", documents(20)), "text", 0, "bpe", 5000)


def test_a_missing_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UsageError, match=r"pip install 'qbench\[hf\]'"):
        prepare_tokens(corpus(tmp_path / "a.jsonl", documents(20)), "text", 0, "bpe", 300)


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
@given(text=st.text())
def test_a_text_comes_back_and_other_libraries_read_it_alike(kind: str, text: str) -> None:
    words = vocabulary(kind)
    tokens = words.encode(text)
    assert (
        words.decode(tokens) == text
        and words.sizes[tokens].sum() == len(text.encode())
        and words.separator not in tokens
    )
    assert words.decode([words.separator, *tokens]) == "<|end|>" + text
    theirs = import_tokenizers().Tokenizer.from_str(json.dumps(words.to_json()))
    assert (
        theirs.token_to_id("<|end|>") == words.separator and theirs.get_vocab_size() == words.size
    )
    if "<|end|>" not in text:  # which another library takes for the separator
        assert theirs.encode(text).ids == tokens
        assert theirs.decode(tokens) == text


_learned: dict[str, Vocabulary] = {"bytes": Bytes()}


def vocabulary(kind: str) -> Vocabulary:
    if kind not in _learned:
        from qbench_tasks.vocabulary import learn_bpe

        _learned[kind] = learn_bpe((text.decode() for text in documents(500)), 300, "x")
    return _learned[kind]


# ---- the order ----


@given(st.integers(1, 3000), st.integers(0, 2**63 - 1))
def test_a_permutation_sends_every_index_somewhere_else(count: int, key: int) -> None:
    assert sorted(permute_indices(np.arange(count), count, key).tolist()) == list(range(count))


def test_a_few_entries_of_a_permutation_of_billions_are_cheap() -> None:
    few = np.arange(1000) + 3_000_000_000
    found = permute_indices(few, 4_000_000_007, 5)
    assert len(set(found.tolist())) == 1000 and found.min() >= 0 and found.max() < 4_000_000_007
    assert found.mean() == pytest.approx(2e9, rel=0.1)


@given(st.integers(1, 300), st.integers(0, 2000), st.integers(1, 400))
def test_an_order_is_one_permutation_after_another(of: int, first: int, count: int) -> None:
    found = order_indices(first, count, of, "key").tolist()
    whole = order_indices(0, (first + count) // of * of + of, of, "key").tolist()
    assert found == whole[first : first + count]
    assert all(
        sorted(whole[start : start + of]) == list(range(of)) for start in range(0, len(whole), of)
    )


def test_orders_of_other_keys_and_epochs_are_others() -> None:
    orders = [
        tuple(order_indices(epoch * 1000, 1000, 1000, "key", seed))
        for seed in range(20)
        for epoch in range(3)
    ]
    assert len(set(orders)) == len(orders)
    fixed = [
        sum(a == b for a, b in zip(x, y, strict=True)) for x in orders[:6] for y in orders[6:12]
    ]
    assert np.mean(fixed) == pytest.approx(1.0, abs=0.6), "two random orders agree in one place"


def test_an_order_prefers_no_place_and_no_neighbour() -> None:
    orders = np.array([order_indices(0, 24, 24, seed) for seed in range(4800)])
    counts = np.array([np.bincount(orders[:, place], minlength=24) for place in range(24)])
    assert ((counts - 200) ** 2 / 200).sum() < 24 * 23 * 1.3, "χ² of 24 × 23 degrees of freedom"
    steps = Counter(((orders[:, 1:] - orders[:, :-1]) % 24).ravel().tolist())
    assert 0 not in steps and max(steps.values()) < 1.08 * min(steps.values())
