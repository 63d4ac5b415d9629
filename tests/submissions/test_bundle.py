"""A bundle holds exactly what its manifest lists, in one order and with the right hashes."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from qbench.errors import UsageError
from qbench.submissions import bundle
from qbench.submissions.bundle import (
    BUNDLE_VERSION,
    MANIFEST,
    RUN_FILES,
    encode_manifest,
    open_bundle,
)
from qbench.submissions.strict_json import SubmissionError
from tests.bundles import encode_archive, encode_members, open_bundle_data, read_bundle_files

# ---- Files that are not bundles ----


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a zip archive"),
        (b"hello", "not a zip archive"),
        (b"x" * 1000, "not a zip archive"),
        (b"PK\5\6" + bytes(18), "the archive is empty"),
    ],
)
def test_a_file_that_is_not_a_bundle_gives_a_one_line_error(
    tmp_path: Path, data: bytes, message: str
) -> None:
    (tmp_path / "b.zip").write_bytes(data)
    with pytest.raises(SubmissionError, match=message), open_bundle(tmp_path / "b.zip"):
        pass


def test_a_missing_file_and_a_folder_give_one_line_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"), open_bundle(tmp_path / "b.zip"):
        pass
    with pytest.raises(UsageError, match="directory"), open_bundle(tmp_path):
        pass


def test_the_error_for_a_newer_format_says_to_upgrade(valid_bundle: bytes) -> None:
    files = read_bundle_files(valid_bundle)[1]
    with pytest.raises(SubmissionError, match=f"bundle version {BUNDLE_VERSION + 1}.*upgrade"):
        open_bundle_data(
            encode_archive({"bundle_version": BUNDLE_VERSION + 1, "something": "new"}, files)
        )


# ---- Names and order of members ----

UNLISTED_NAMES = [
    "../evil.json", "/etc/passwd", "runs\\evil.json", "runs/../../evil", "C:evil",
    "runs/x\x00.json", "évil.json", "MANIFEST.JSON", "manifest.json", "runs/evil.pkl", "runs/evil/",
    "x" * 300, "runs/" + "f" * 32 + "/trust.json", "-rf", " ", "a\nb", "\x1b[31mred",
]  # fmt: skip


@pytest.mark.parametrize("name", UNLISTED_NAMES)
def test_a_member_that_the_manifest_does_not_list_is_refused_whatever_its_name(
    valid_bundle: bytes, name: str
) -> None:
    try:
        data = encode_members([*unzip(valid_bundle), (name, b"{}")])
    except UnicodeEncodeError:
        return  # such an archive cannot even be written
    with pytest.raises(SubmissionError) as refusal:
        open_bundle_data(data)
    assert str(refusal.value).isprintable()


def test_missing_repeated_and_reordered_members_are_refused(valid_bundle: bytes) -> None:
    members = unzip(valid_bundle)
    for changed, message in (
        (members[:-1], "is missing"),
        ([*members, members[-1]], "is in the archive twice"),
        ([*members[:2], members[3], members[2], *members[4:]], "in another order"),
        ([members[1], members[0], *members[2:]], "the first member is not"),
    ):
        with pytest.raises(SubmissionError, match=message):
            open_bundle_data(encode_members(changed))


def unzip(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


# ---- Hashes and the manifest ----


def test_a_file_above_its_size_limit_is_not_read(
    valid_bundle: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bundle.MAX_BYTES_OF_FILE, "result.json", 100)
    opened = open_bundle_data(valid_bundle)
    with pytest.raises(SubmissionError, match="at most 100 are allowed"):
        opened.read_file(opened.runs[0], "result.json")


@pytest.mark.parametrize("wrong_entry", [{"sha256": "0" * 64}, {"size": 7}])
def test_a_manifest_with_a_wrong_hash_or_size_is_detected(
    valid_bundle: bytes, wrong_entry: dict[str, Any]
) -> None:
    manifest, files = read_bundle_files(valid_bundle)
    manifest["runs"][0]["files"]["spec.json"].update(wrong_entry)
    opened = open_bundle_data(encode_archive(manifest, files))
    with pytest.raises(SubmissionError, match=r"spec\.json does not match its hash in manifest"):
        opened.read_file(opened.runs[0], "spec.json")


def test_repeated_and_reordered_runs_in_the_manifest_are_refused(valid_bundle: bytes) -> None:
    manifest, files = read_bundle_files(valid_bundle)
    for runs in (manifest["runs"][::-1], [manifest["runs"][0], *manifest["runs"]]):
        # The archive has each file once, in the order of the manifest, so that only this is wrong.
        names = dict.fromkeys(
            (run["key"], name) for run in runs for name in RUN_FILES if name in run["files"]
        )
        members = [(f"runs/{key}/{name}", files[key][name]) for key, name in names]
        new_manifest = (MANIFEST, encode_manifest({**manifest, "runs": runs}))
        with pytest.raises(SubmissionError, match="not sorted by key, each once"):
            open_bundle_data(encode_members([new_manifest, *members]))


def test_a_manifest_can_be_written_in_one_way_only(valid_bundle: bytes) -> None:
    (_, manifest), *others = unzip(valid_bundle)
    for text in (json.dumps(json.loads(manifest), indent=1), manifest.decode() + " "):
        with pytest.raises(SubmissionError, match="not formatted as"):
            open_bundle_data(encode_members([(MANIFEST, text.encode()), *others]))
