"""Corpora: all formats give the same documents, and a faulty file is one line that names it."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from qbench_tasks import files
from qbench_tasks.corpus import Files, Hub, Library, parse_source

from qbench.errors import UsageError

TEXTS = ["first\n\nof three", "zweiter: größer, 文字, \u2028 and a line\n", "", "third"]
LINES = b"".join(
    json.dumps({"id": i, "text": text}).encode() + b"\n" for i, text in enumerate(TEXTS)
)


def packed(path: Path, data: bytes) -> Path:
    """`data` in a file, packed as its name says."""
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = pytest.importorskip("zstandard").compress(data)
    path.write_bytes(data)
    return path


def parquet(path: Path, column: str = "text", values: list[object] | None = None) -> Path:
    arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    writer.write_table(
        arrow.table({"id": list(range(len(values or TEXTS))), column: values or TEXTS}), path
    )
    return path


def read(path: Path, field: str = "text") -> list[str]:
    return [document.decode() for document in Files(path, field).documents()]


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.ndjson", "A.JSONL", "a.jsonl.gz", "a.jsonl.zst", "a.b.jsonl.gz"]
)
def test_lines_of_json_are_read_as_records(name: str, tmp_path: Path) -> None:
    assert read(packed(tmp_path / name, LINES.replace(b"\n", b"\n\n"))) == TEXTS, (
        "blank lines are no records"
    )


def test_columns_of_parquet_are_read_as_records(tmp_path: Path) -> None:
    assert read(parquet(tmp_path / "a.parquet")) == TEXTS
    assert read(parquet(tmp_path / "b.parquet", "body"), "body") == TEXTS


@pytest.mark.parametrize("name", ["json", "parquet", "text"])
def test_the_code_that_reads_the_hub_reads_files(name: str, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    if name == "text":  # its records are lines
        file, expected = packed(tmp_path / "a.txt", b"one\ntwo\n"), ["one", "two"]
    else:
        file, expected = (
            (
                packed(tmp_path / "a.jsonl", LINES)
                if name == "json"
                else parquet(tmp_path / "a.parquet")
            ),
            TEXTS,
        )
    assert [text.decode() for text in Hub(name, files=(str(file),)).documents()] == expected


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a", "a.txt.gz", "a.txt.zst", "a.zst"])
def test_a_plain_file_is_cut_where_lines_end(name: str, tmp_path: Path) -> None:
    text = "".join(f"{i} {'ä' * (i * 37 % 300)}\n" for i in range(9000))
    assert len(text.encode()) > 2 * files.READ_BYTES
    pieces = read(packed(tmp_path / name, text.encode()))
    assert "".join(pieces) == text and all(piece.endswith("\n") for piece in pieces)
    assert (
        max(len(piece.encode()) for piece in pieces)
        <= files.PIECE_BYTES
        < 1.1 * min(len(piece.encode()) for piece in pieces[:-1])
    )


def test_a_line_without_end_is_cut_between_characters(tmp_path: Path) -> None:
    text = "x" + "文" * 30_000 + "y"
    pieces = read(packed(tmp_path / "a.txt", text.encode()))
    assert "".join(pieces) == text and len(pieces) == 6


def test_several_compressed_frames_are_one_file(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(LINES) + zstandard.compress(LINES))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(LINES) + gzip.compress(LINES))
    assert read(tmp_path) == 4 * TEXTS


def test_a_folder_is_all_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "deep" / ".hidden").mkdir(parents=True)
    packed(tmp_path / "deep" / "b.txt.gz", b"two")
    packed(tmp_path / "deep" / ".hidden" / "x.txt", b"never")
    packed(tmp_path / ".x", b"never")
    packed(tmp_path / "a.jsonl", LINES)
    assert read(tmp_path) == [*TEXTS, "two"]
    assert [document.decode() for document in parse_source(f"path:{tmp_path}").documents()] == [
        *TEXTS,
        "two",
    ]


def test_the_library_is_that_of_this_python() -> None:
    library = Library()
    documents = list(library.documents())
    assert Path(json.decoder.__file__).read_bytes() in documents and len(documents) > 300
    assert not any(b"import unittest\n\nclass" in text for text in documents)
    names = {path.relative_to(library.root).as_posix() for path in library.paths()}
    assert {"json/decoder.py", "argparse.py"} <= names
    assert not [
        name
        for name in names
        if name.startswith(("test/", "site-packages/", "encodings/", "_sysconfigdata", "idlelib/"))
    ]


def test_modules_that_are_not_utf8_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text("ä = 1\n", encoding="utf-8")
    (tmp_path / "latin.py").write_bytes(b"# \xe4\n")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "x.py").write_text("")
    assert list(Library(tmp_path).documents()) == ["ä = 1\n".encode()]


def test_every_change_of_a_file_changes_the_signature(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.txt", b"one")
    before = Files(path, "text").signature()
    assert before == Files(path, "text").signature()
    stat = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert Files(path, "text").signature() != before, "as long, and its time set back"
    assert Files(tmp_path, "text").signature() == Files(path, "text").signature()
    packed(tmp_path / "b.txt", b"")
    assert Files(tmp_path, "text").signature() != Files(path, "text").signature()


# ---- what is wrong is one line ----


def cut(path: Path, share: float = 0.6) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    return path


WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda at: at / "no.txt", "no.txt: no such file or folder"),
    "no files": (lambda at: at, "no file in this folder"),
    "not UTF-8": (lambda at: packed(at / "a.txt", b"abc\xff"), "a.txt: not UTF-8 at byte 3"),
    "far not UTF-8": (
        lambda at: packed(at / "a.txt", b"line\n" * 500_000 + b"\xc3"),
        "a.txt: not UTF-8 at byte 2500000",
    ),
    "text gz cut": (
        lambda at: cut(packed(at / "a.txt.gz", os.urandom(3000).hex().encode())),
        "a.txt.gz: cut short or damaged",
    ),
    "jsonl gz cut": (
        lambda at: cut(packed(at / "a.jsonl.gz", LINES)),
        "a.jsonl.gz: cut short or damaged",
    ),
    "jsonl zst cut": (
        lambda at: cut(packed(at / "a.jsonl.zst", LINES)),
        "a.jsonl.zst: cut short or damaged",
    ),
    "no gz": (
        lambda at: packed(at / "a.txt", b"text").rename(at / "a.txt.gz"),
        "a.txt.gz: cut short or damaged",
    ),
    "no zst": (
        lambda at: packed(at / "a.txt", b"text").rename(at / "a.txt.zst"),
        "a.txt.zst: cut short or damaged",
    ),
    "no field": (
        lambda at: packed(at / "a.jsonl", LINES + b'{"body": "x"}\n'),
        "a.jsonl:5: no text in the field 'text' (fields: body)",
    ),
    "no text": (
        lambda at: packed(at / "a.jsonl", b'{"text": 3}\n'),
        "a.jsonl:1: no text in the field 'text'",
    ),
    "no object": (
        lambda at: packed(at / "a.jsonl", b'\n"text"\n'),
        "a.jsonl:2: no text in the field 'text'",
    ),
    "no JSON": (lambda at: packed(at / "a.jsonl", LINES + b"{\n"), "a.jsonl:5: not JSON"),
    "surrogate": (
        lambda at: packed(at / "a.jsonl", b'{"text": "\\ud800"}\n'),
        "a.jsonl:1: half of a surrogate pair",
    ),
    "lines not UTF-8": (
        lambda at: packed(at / "a.jsonl", b'{"text": "\xff"}\n'),
        "a.jsonl:1: not JSON",
    ),
    "no column": (
        lambda at: parquet(at / "a.parquet", "body"),
        "a.parquet: no column 'text' (columns: id, body)",
    ),
    "column of numbers": (
        lambda at: parquet(at / "a.parquet", values=[1, 2]),
        "a.parquet: row 1: the column 'text' holds no text",
    ),
    "parquet cut": (lambda at: cut(parquet(at / "a.parquet")), "a.parquet: cut short or damaged"),
}


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.replace(" ", "-"))
def test_a_faulty_file_is_one_line(case: str, tmp_path: Path) -> None:
    make, message = WRONG[case]
    with pytest.raises(UsageError) as caught:
        read(make(tmp_path))
    assert (
        message in str(caught.value)
        and "\n" not in str(caught.value)
        and str(tmp_path) in str(caught.value)
    )


@pytest.mark.parametrize(
    "corpus",
    ["stdlb", "", "path:", "hf:", "hf:c4", "hf:a/b/c/d", "hf:a/b c", "https://x.org/a.txt", "data"],
)
def test_an_error_about_an_unknown_scheme_lists_the_known_ones(corpus: str) -> None:
    with pytest.raises(UsageError, match='write "stdlib", "path:FILE-OR-FOLDER"'):
        parse_source(corpus)


def test_names_on_the_hub_are_parsed() -> None:
    assert parse_source("hf:a/b", "body") == Hub("a/b", None, None, "body")
    assert parse_source("hf:a/b-c.d/en@0123abc") == Hub("a/b-c.d", "en", "0123abc")
    assert parse_source("hf:a/b@refs/pr/1") == Hub("a/b", None, "refs/pr/1")


def test_a_record_of_the_hub_without_the_field_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(
        UsageError, match=r"hf:json: record 1 has no text 'body' \(it has id, text\)"
    ):
        list(
            Hub("json", field="body", files=(str(packed(tmp_path / "a.jsonl", LINES)),)).documents()
        )


@pytest.mark.parametrize("offline", ["0", "1"])
def test_without_a_network_the_hub_is_one_line_at_once(offline: str) -> None:
    pytest.importorskip("datasets")
    code = (
        "import time, datasets, huggingface_hub\n"
        "from qbench_tasks.corpus import *\n"
        "began = time.monotonic()\n"
        "try: list(parse_source('hf:a/b').documents())\n"
        "except UsageError as error: print(error)\n"
        "print(time.monotonic() - began)"
    )
    env = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": offline}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    message, seconds = done.stdout.splitlines()
    assert (
        message.startswith("hf:a/b: the hub cannot be reached (") and 'corpus = "path:…"' in message
    )
    assert float(seconds) < 5


@pytest.mark.parametrize(("library", "name"), [("zstandard", "a.zst"), ("pyarrow", "a.parquet")])
def test_a_library_that_is_missing_is_named(
    library: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = (
        parquet(tmp_path / name) if name.endswith("parquet") else packed(tmp_path / name, b"text")
    )
    for module in [m for m in sys.modules if m.split(".")[0] == library] + [library]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        UsageError, match=rf"{library}, which .* is not installed: pip install 'qbench\[hf\]'"
    ):
        read(path)


def test_reading_is_a_stream(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.jsonl", LINES * 100_000)
    began = time.perf_counter()
    next(Files(path, "text").documents())
    assert time.perf_counter() - began < 0.1
