"""A bundle has one spelling, holds what it lists and nothing else, and is read as if it came from an enemy."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qbench.errors import QbenchError, UsageError
from qbench.submissions import bundle, canonical_zip, strict_json
from qbench.submissions.bundle import BUNDLE_VERSION, FILES, MANIFEST, Bundle, opened, spell
from qbench.submissions.strict_json import Refused
from qbench.submissions.submit import submit
from tests.bundles import packed, train_runs, unpack, written


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("trained")
    train_runs(results)
    return results


@pytest.fixture(scope="module")
def good(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return packed(trained, tmp_path_factory.mktemp("bundle") / "b.qbench.zip").read_bytes()


def read(data: bytes) -> Bundle:
    return Bundle(io.BytesIO(data))


# ---- packing ----


def test_the_same_runs_are_the_same_bytes(trained: Path, good: bytes, tmp_path: Path) -> None:
    again = packed(trained, tmp_path / "again.zip")
    keys = [run.key for run in read(good).runs]
    by_key = packed(trained, tmp_path / "keys.zip", *reversed(keys), keys[0][:8])
    assert again.read_bytes() == good
    assert unpack(by_key.read_bytes()) == unpack(good) and not read(by_key.read_bytes()).boards, (
        "a board is carried where it was named"
    )


def test_any_unzip_reads_it_and_finds_only_what_is_allowed(good: bytes, trained: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names.pop(1) == "boards/b.toml"
        assert names[0] == MANIFEST and {name.rpartition("/")[2] for name in names[1:]} == set(
            FILES
        )
        key = names[1].split("/")[1]
        own = trained / "runs" / key[:2] / key / "1"
        assert (
            archive.read(f"runs/{key}/weights.safetensors")
            == (own / "export" / "weights.safetensors").read_bytes()
        )
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_no_other_file_of_the_folder_travels(trained: Path, tmp_path: Path, good: bytes) -> None:
    for name in ("notes.txt", "checkpoint", "trust.json", "export/secret.json"):
        key = read(good).runs[0].key
        (trained / "runs" / key[:2] / key / "1" / name).write_text('{"level": "claimed"}')
    assert packed(trained, tmp_path / "b.zip").read_bytes() == good
    for name in ("notes.txt", "checkpoint", "trust.json", "export/secret.json"):
        (trained / "runs" / key[:2] / key / "1" / name).unlink()


def test_a_run_brings_the_one_that_it_goes_on_from(trained: Path, tmp_path: Path) -> None:
    specs = {
        p.parent.parent.name: json.loads(p.read_text())
        for p in trained.glob("runs/*/*/1/spec.json")
    }
    rtn = next(key for key, spec in specs.items() if spec["method"] == "rtn")
    found = read(packed(trained, tmp_path / "b.zip", rtn).read_bytes())
    assert {run.key for run in found.runs} == {rtn, specs[rtn]["base"]}


def test_what_is_not_finished_stays_and_is_counted(trained: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(trained, results)
    gone = next(
        p
        for p in results.glob("runs/*/*/1/result.json")
        if json.loads(p.read_text())["cost"].get("step_s_median")
    )
    gone.unlink()
    found = submit(results, ["b"], tmp_path / "b.zip")
    assert (found.runs, found.unfinished) == (2, 1) and "; without 1 unfinished run\n" in str(found)
    with pytest.raises(UsageError, match="has not ended"):
        submit(results, [gone.parent.parent.name], tmp_path / "c.zip")


def test_runs_that_would_be_refused_are_not_packed(trained: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(trained, results)
    one = next(results.glob("runs/*/*/1/result.json"))
    data = json.loads(one.read_text())
    one.write_text(json.dumps({**data, "size": {**data["size"], "bits_per_weight": 0.5}}))
    with pytest.raises(QbenchError, match=r"would be refused: run .* bits_per_weight is 0\.5"):
        submit(results, ["b"], tmp_path / "b.zip")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results"]


def test_submit_without_anything_to_submit_is_one_line(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown board or run .nothing"):
        submit(trained, ["nothing"], tmp_path / "b.zip")
    with pytest.raises(QbenchError, match="No such file"):
        submit(trained, ["b"], tmp_path / "nowhere" / "b.zip")


# ---- what is no bundle ----


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "not a zip archive"),
        (b"hello", "not a zip archive"),
        (b"x" * 1000, "not a zip archive"),
        (b"PK\5\6" + bytes(18), "an empty archive"),
    ],
)
def test_what_is_no_bundle_is_one_line(tmp_path: Path, data: bytes, sentence: str) -> None:
    (tmp_path / "b.zip").write_bytes(data)
    with pytest.raises(Refused, match=sentence), opened(tmp_path / "b.zip"):
        pass


def test_a_missing_file_and_a_folder_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"), opened(tmp_path / "b.zip"):
        pass
    with pytest.raises(UsageError, match="directory"), opened(tmp_path):
        pass


def test_an_ordinary_zip_of_the_same_files_is_refused(good: bytes) -> None:
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        out = io.BytesIO()
        with (
            zipfile.ZipFile(io.BytesIO(good)) as source,
            zipfile.ZipFile(out, "w", compression) as target,
        ):
            for name in source.namelist():
                target.writestr(name, source.read(name))
        with pytest.raises(Refused, match="not as qbench submit writes it"):
            read(out.getvalue())


def test_a_newer_format_says_to_upgrade(good: bytes) -> None:
    files = unpack(good)[1]
    with pytest.raises(Refused, match=f"bundle version {BUNDLE_VERSION + 1}.*upgrade"):
        read(written({"bundle_version": BUNDLE_VERSION + 1, "something": "new"}, files))


# ---- names ----

NAMES = [
    "../evil.json", "/etc/passwd", "runs\\evil.json", "runs/../../evil", "C:evil", "runs/x\x00.json", "évil.json", "MANIFEST.JSON", "manifest.json",
    "runs/evil.pkl", "runs/evil/", "x" * 300, "runs/" + "f" * 32 + "/trust.json", "-rf", " ", "a\nb", "\x1b[31mred",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_member_that_is_not_listed_is_refused_whatever_its_name(good: bytes, name: str) -> None:
    out = io.BytesIO()
    members = [
        (n, zipfile.ZipFile(io.BytesIO(good)).read(n))
        for n in zipfile.ZipFile(io.BytesIO(good)).namelist()
    ]
    try:
        canonical_zip.write(out, [*members, (name, b"{}")])
    except UnicodeEncodeError:
        return  # cannot even be written
    with pytest.raises(Refused) as caught:
        read(out.getvalue())
    assert str(caught.value).isprintable()


def test_members_that_are_missing_twice_or_in_another_order_are_refused(good: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    for broken, sentence in (
        (members[:-1], "is missing"),
        ([*members, members[-1]], "is there twice"),
        ([*members[:2], members[3], members[2], *members[4:]], "not in their order"),
        ([members[1], members[0], *members[2:]], "first member is not"),
    ):
        out = io.BytesIO()
        canonical_zip.write(out, broken)
        with pytest.raises(Refused, match=sentence):
            read(out.getvalue())


# ---- the archive itself ----


def directory_of(data: bytes) -> int:
    return int(struct.unpack_from("<L", data, len(data) - 6)[0])


def local_flag(data: bytes) -> bytes:
    return data[:6] + b"\1" + data[7:]


def central_field(offset: int, value: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        place = directory_of(data) + offset
        return data[:place] + value + data[place + len(value) :]

    return change


def zip64(data: bytes) -> bytes:
    """An end record that sends the reader to a 64-bit one."""
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, 46, directory_of(data))
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(data) - 22, 1)
    return (
        data[:-22]
        + record
        + locator
        + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    )


TRICKS: dict[str, Callable[[bytes], bytes]] = {
    "data before": lambda d: b"#!/bin/sh\n" + d,
    "data behind": lambda d: d + b"\n",
    "a comment": lambda d: d[:-2] + b"\2\0hi",
    "cut short": lambda d: d[:-1],
    "half": lambda d: d[: len(d) // 2],
    "encrypted, says the local header": local_flag,
    "encrypted, says the directory": central_field(8, b"\1"),
    "compressed": central_field(10, b"\x08"),
    "a link": central_field(38, struct.pack("<L", 0o120777 << 16)),
    "another size": central_field(24, b"\1\0\0\0"),
    "another offset": central_field(42, b"\1\0\0\0"),
    "an extra field": central_field(30, b"\4\0"),
    "a second disk": central_field(34, b"\1\0"),
    "zip64": zip64,
    "a newer time": central_field(12, b"\1\1"),
    "fewer entries": lambda d: d[:-14] + struct.pack("<2H", 1, 1) + d[-10:],
    "more entries": lambda d: d[:-14] + struct.pack("<2H", 60000, 60000) + d[-10:],
    "a hole": lambda d: (
        d[: directory_of(d)]
        + b"hole"
        + d[directory_of(d) : -6]
        + struct.pack("<LH", directory_of(d) + 4, 0)
    ),
    "a flipped byte of a file": lambda d: d[:200] + bytes([d[200] ^ 1]) + d[201:],
}


@pytest.mark.parametrize("trick", TRICKS)
def test_an_archive_that_is_anything_more_is_refused(good: bytes, trick: str) -> None:
    data = TRICKS[trick](good)
    assert data != good
    with pytest.raises(Refused) as caught:
        read(data)
    assert "\n" not in str(caught.value)


def test_overlapping_members_are_refused() -> None:
    """A zip bomb without compression: many entries of the directory over the same bytes."""
    out = io.BytesIO()
    canonical_zip.write(out, [("a", b"x" * 1000), ("b", b"y" * 1000)])
    data = bytearray(out.getvalue())
    second = directory_of(bytes(data)) + 46 + 1
    data[second + 42 : second + 46] = struct.pack("<L", 0)
    with pytest.raises(Refused):
        canonical_zip.Archive(io.BytesIO(bytes(data)))


def test_a_file_beyond_its_cap_is_not_read(good: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bundle.MOST, "result.json", 100)
    found = read(good)
    with pytest.raises(Refused, match="at most 100 are read"):
        found.read(found.runs[0], "result.json")


def test_too_many_members_and_too_many_bytes_are_refused_when_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(canonical_zip, "MOST_MEMBERS", 3)
    with pytest.raises(Refused, match="submit fewer runs"):
        canonical_zip.write(io.BytesIO(), [(f"{n}", b"") for n in range(4)])
    monkeypatch.setattr(canonical_zip, "MOST_BYTES", 100)
    with pytest.raises(Refused, match="submit fewer runs"):
        canonical_zip.write(io.BytesIO(), [("a", b"x" * 100)])


@pytest.mark.parametrize("lie", [{"sha256": "0" * 64}, {"size": 7}])
def test_a_manifest_that_lies_about_a_file_is_found_out(good: bytes, lie: dict[str, Any]) -> None:
    manifest, files = unpack(good)
    manifest["runs"][0]["files"]["spec.json"].update(lie)
    found = read(written(manifest, files))
    with pytest.raises(Refused, match=r"spec\.json is not the file of the manifest"):
        found.read(found.runs[0], "spec.json")


def test_runs_that_are_listed_twice_or_in_another_order_are_refused(good: bytes) -> None:
    manifest, files = unpack(good)
    for runs in (manifest["runs"][::-1], [manifest["runs"][0], *manifest["runs"]]):
        out, written_names = (
            io.BytesIO(),
            dict.fromkeys(
                (run["key"], name) for run in runs for name in FILES if name in run["files"]
            ),
        )
        members = [(f"runs/{key}/{name}", files[key][name]) for key, name in written_names]
        canonical_zip.write(out, [(MANIFEST, spell({**manifest, "runs": runs})), *members])
        with pytest.raises(Refused, match="order of their keys, each once"):
            read(out.getvalue())


def test_a_manifest_has_one_spelling_too(good: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    for text in (json.dumps(json.loads(members[0][1]), indent=1), members[0][1].decode() + " "):
        out = io.BytesIO()
        canonical_zip.write(out, [(MANIFEST, text.encode()), *members[1:]])
        with pytest.raises(Refused, match="not spelled"):
            read(out.getvalue())


# ---- JSON ----


@pytest.mark.parametrize(
    "text",
    [
        "NaN", "Infinity", "-Infinity", '{"a": 1e999}', '{"a": -1e400}', "[" * 100_000, '{"a":' * 50_000, "1" * 5000, "9" * 299 + "e99", "9" * 199 + "e110", '{"a": 1, "a": 2}', '"\\ud800"',
        '{"\\udc00": 1}', "", "{", "nul", "\ufeff{}", "[1,]", "{'a': 1}", "01", '"\x01"',
    ],
)  # fmt: skip
def test_json_with_two_meanings_or_none_is_refused(text: str) -> None:
    with pytest.raises(Refused) as caught:
        strict_json.loads(text.encode("utf-8", "surrogatepass"), "file")
    assert len(str(caught.value)) < 200


def test_json_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(Refused):
        strict_json.loads(b'"\xff"', "file")
    with pytest.raises(Refused):
        strict_json.loads('{"a": 1}'.encode("utf-16"), "file")


def test_plain_json_is_what_it_says() -> None:
    for value in ({"a": [1, 2.5, None, True, "é \U0001f600"]}, 1e-300, 2**53, -0.0, "1e999"):
        assert strict_json.loads(json.dumps(value).encode(), "file") == value
    assert strict_json.lines(b'{"a": 1}\n{"a": 2}\n', "file") == [{"a": 1}, {"a": 2}]
    with pytest.raises(Refused, match="cut short"):
        strict_json.lines(b'{"a": 1}\n{"a": ', "file")


def test_our_schemas_say_the_same_to_another_validator(good: bytes) -> None:
    """The schemas are JSON Schema, not what one library makes of it."""
    jsonschema = pytest.importorskip("jsonschema")
    _, files = unpack(good)
    own = next(iter(files.values()))
    for name in ("spec", "env", "result"):
        other, value = (
            jsonschema.Draft7Validator(strict_json.read_schema(name)),
            json.loads(own[f"{name}.json"]),
        )
        jsonschema.Draft7Validator.check_schema(strict_json.read_schema(name))
        for changed in variants(value):
            try:
                strict_json.conforms(changed, name, "file")
                ours = True
            except Refused:
                ours = False
            assert ours == other.is_valid(changed), changed
        assert other.is_valid(value)


def variants(value: dict[str, object]) -> list[object]:
    odd: list[object] = [None, True, -1, 1.5, 2**70, "", "x" * 5000, [], {}, [None], {"x": 1}]
    changed: list[object] = [*odd, {**value, "more": 1}]
    for name in value:
        changed += [{**value, name: other} for other in odd] + [
            {k: v for k, v in value.items() if k != name}
        ]
        if isinstance(inner := value[name], dict):
            changed += [{**value, name: other} for other in variants(inner)]
    return changed


def test_the_schema_describes_what_is_written_here() -> None:
    """An environment that says more than the schema knows would make every new run unfit to be submitted."""
    code = (
        "from qbench.runs.environment import environment; from qbench.submissions import strict_json as strict\n"
        "strict.conforms({**environment(), 'device': 'cpu', 'device_name': 'cpu', 'threads': 1, 'accumulate': 1, 'compiled': False}, 'env', 'env')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
