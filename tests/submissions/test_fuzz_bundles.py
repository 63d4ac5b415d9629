"""Bundles that somebody has meddled with, by the ten thousand: none crashes the reader, none is taken for what it is not, nothing is written.

What may be accepted: a bundle of which every file is, byte for byte, one that was packed, for the run that it was packed for. So only what the
manifest says in its own name (`note`, `made`) may differ, and runs may be left out. A second kind of mutation, by somebody who knows the format and
makes the manifest fit, may change what only training can tell; then whatever can be counted must still be what the result says.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qbench.errors import QbenchError
from qbench.runs.config import canonical
from qbench.submissions import artefact_facts, canonical_zip
from qbench.submissions.bundle import MANIFEST, Bundle, spell
from qbench.submissions.report import Report
from qbench.submissions.strict_json import Refused
from qbench.submissions.verify import examine
from tests import SOAK
from tests.bundles import Files, assemble, packed, train_runs, unpack, written

COUNT = 12_000
MANY = 300_000
Chance = random.Random


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """One run in full precision and one rounded: the least that has everything."""
    results = tmp_path_factory.mktemp("trained")
    train_runs(results)
    ste = next(
        p.parent.parent.name
        for p in results.glob("runs/*/*/1/spec.json")
        if json.loads(p.read_text())["method"] == "ste"
    )
    return packed(results, results / "b.qbench.zip", ste).read_bytes()


@pytest.fixture(autouse=True)
def nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Any attempt to open a file for writing, make a folder or remove one is a failure."""
    import builtins

    honest = builtins.open

    def only_read(file: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
        assert not set(mode) & set("wxa+"), f"{file} opened for writing"
        return honest(file, mode, *more, **options)

    def forbidden(*what: Any, **how: Any) -> None:
        raise AssertionError(f"the reader touched {what}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builtins, "open", only_read)
    for name in (
        "mkdir",
        "makedirs",
        "rename",
        "replace",
        "remove",
        "unlink",
        "symlink",
        "link",
        "rmdir",
    ):
        monkeypatch.setattr(os, name, forbidden)


def judge(data: bytes) -> Report | None:
    """What the reader makes of a bundle: None where it is none. Anything but a QbenchError of one printable line is a crash."""
    report = Report()
    try:
        examine(Bundle(io.BytesIO(data)), report, score=False)
    except QbenchError as error:
        assert isinstance(error, Refused) and str(error).isprintable() and len(str(error)) <= 400
        return None
    assert all(str(finding).isprintable() for finding in report.findings)
    return report if report.passed else None


# ---- whoever does not know the format ----


def flip(data: bytes, chance: Chance) -> bytes:
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        out[chance.randrange(len(out))] ^= 1 << chance.randrange(8)
    return bytes(out)


def flip_headers(data: bytes, chance: Chance) -> bytes:
    """Where the archive's own words are."""
    out, directory = bytearray(data), struct.unpack_from("<L", data, len(data) - 6)[0]
    place = chance.choice((chance.randrange(60), chance.randrange(directory, len(data))))
    out[place] = chance.choice((0, 1, 0xFF, out[place] ^ 1, chance.randrange(256)))
    return bytes(out)


def truncate(data: bytes, chance: Chance) -> bytes:
    return (
        data[: chance.randrange(len(data))]
        if chance.random() < 0.5
        else data[chance.randrange(1, len(data)) :]
    )


def insert(data: bytes, chance: Chance) -> bytes:
    place = chance.choice((0, len(data), chance.randrange(len(data))))
    return data[:place] + chance.randbytes(chance.randrange(1, 40)) + data[place:]


def splice(data: bytes, chance: Chance) -> bytes:
    a, b = sorted(chance.sample(range(len(data)), 2))
    return data[:a] + data[b:] if chance.random() < 0.5 else data[:b] + data[a:]


def members_of(data: bytes) -> list[tuple[str, bytes]]:
    archive = canonical_zip.Archive(io.BytesIO(data))
    return [(name, archive.read(name, 1 << 30)) for name in archive.members]


def zipped_again(members: list[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    canonical_zip.write(out, members)
    return out.getvalue()


ODD_NAMES = (
    "../x",
    "/x",
    "a\\b",
    "runs",
    "manifest.json/",
    "RUNS/x",
    "trust.json",
    "x.pkl",
    "runs/../manifest.json",
    ".",
    "",
    "con",
    "x" * 99,
)


def rename(data: bytes, chance: Chance) -> bytes:
    members = members_of(data)
    i = chance.randrange(len(members))
    name = chance.choice(
        (
            chance.choice(ODD_NAMES),
            members[i][0].upper(),
            members[i][0].replace("/", "//"),
            chance.choice(members)[0],
        )
    )
    members[i] = (name, members[i][1])
    return zipped_again(members)


def shuffle(data: bytes, chance: Chance) -> bytes:
    """Members doubled, dropped, in another order, or with another's bytes."""
    members = members_of(data)
    i, j = chance.randrange(len(members)), chance.randrange(len(members))
    kind = chance.randrange(4)
    if kind == 0:
        members.insert(i, members[j])
    elif kind == 1:
        del members[i]
    elif kind == 2:
        members[i], members[j] = members[j], members[i]
    else:
        members[i] = (members[i][0], members[j][1])
    return zipped_again(members)


def change_member(data: bytes, chance: Chance) -> bytes:
    """Another content under a checksum that fits, but not the manifest's hash."""
    members = members_of(data)
    i = chance.randrange(len(members))
    body = bytearray(members[i][1])
    if body:
        body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
    members[i] = (members[i][0], bytes(body) if chance.random() < 0.8 else bytes(body) + b" ")
    return zipped_again(members)


def lie(data: bytes, chance: Chance) -> bytes:
    """A manifest that says something else."""
    manifest, files = unpack(data)
    mutate(manifest, chance)
    try:
        return written(manifest, files)
    except (ValueError, UnicodeError):
        return data


IGNORANT: tuple[Callable[[bytes, Chance], bytes], ...] = (
    *(flip, flip_headers, truncate, insert, splice, rename, shuffle, change_member, lie),
)


def allowed(data: bytes, report: Report, originals: Files) -> bool:
    """Every file of an accepted bundle is the one that was packed, for its run."""
    _, files = unpack(data)
    return set(report.trust) == set(files) and all(
        originals.get(key) == own for key, own in files.items()
    )


# ---- whoever does ----

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, 1e308, -1e308, 5e-324, 0.1, "", "x" * 3000, "\x00", "\x1b[2J", "é", "NaN", "../../x",
    "=1+1", [], {}, [[]], {"": 0}, [None] * 50, math.inf, math.nan,
)  # fmt: skip


def mutate(value: Any, chance: Chance) -> None:
    """One entry somewhere inside becomes another, goes, comes, or is nested without end."""
    spots: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            spots.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(value)
    node, key = chance.choice(spots)
    kind = chance.randrange(8)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[chance.choice(("more", "", "__proto__", "x" * 200, key.upper()))] = copy.deepcopy(
            chance.choice(VALUES)
        )
    elif (
        kind == 2
        and isinstance(node[key], int | float)
        and not isinstance(node[key], bool)
        and abs(node[key]) < 1e300
    ):
        node[key] = chance.choice(
            (-node[key], node[key] + 1, node[key] * 2, node[key] * 1e8, node[key] + 1e-9)
        )
    elif kind == 3:
        deep: Any = node[key]
        for _ in range(chance.choice((1, 5, 200))):
            deep = [deep]
        node[key] = deep
    elif kind == 4:
        other, name = chance.choice(spots)
        node[key] = (
            json.loads(json.dumps(other[name]))
            if name in other or (isinstance(other, list) and name < len(other))
            else 0
        )
    else:
        node[key] = copy.deepcopy(chance.choice(VALUES))


def change_json(files: Files, key: str, chance: Chance) -> None:
    name = chance.choice(("spec.json", "env.json", "result.json", "result.json", "curve.jsonl"))
    own = files[key]
    if name == "curve.jsonl":
        points = [json.loads(line) for line in own[name].splitlines()]
        mutate(points, chance)
        own[name] = "".join(json.dumps(point) + "\n" for point in points).encode()
        return
    data = json.loads(own[name])
    for _ in range(chance.choice((1, 1, 3))):
        mutate(data, chance)
    own[name] = json.dumps(data).encode()


def change_text(files: Files, key: str, chance: Chance) -> None:
    """JSON as bytes: cut, nested, doubled keys, numbers without end."""
    name = chance.choice(("spec.json", "env.json", "result.json", "curve.jsonl"))
    text = files[key][name]
    place = chance.randrange(len(text))
    words = (
        b"[" * 5000,
        b"1" * 400,
        b"9" * 299 + b"e99",
        b"1e999",
        b"NaN",
        b"Infinity",
        b'"\\ud800"',
        b"\xff",
        b"\x00",
        b'"key": 1, "key": 2,',
        b"\xef\xbb\xbf",
        b"}",
        b"\r\n",
    )
    files[key][name] = text[:place] + chance.choice(words) + text[place + chance.randrange(3) :]


def change_artefact(files: Files, key: str, chance: Chance) -> None:
    """The header of the safetensors file, its length, or its tensors."""
    data = bytearray(files[key]["weights.safetensors"])
    length = int.from_bytes(data[:8], "little")
    kind = chance.randrange(5)
    if kind == 0:
        data[:8] = chance.choice(
            (0, 1, length - 1, length + 1, 2**63, 2**64 - 1, len(data))
        ).to_bytes(8, "little")
    elif kind == 1:
        place = chance.randrange(8, 8 + length)
        data[place] = chance.randrange(32, 127)
    elif kind == 2:
        data[chance.randrange(8 + length, len(data))] ^= 1 << chance.randrange(8)
    elif kind == 3:
        data = (
            data[: chance.randrange(len(data))]
            if chance.random() < 0.5
            else data + bytes(chance.randrange(1, 20))
        )
    else:
        header = json.loads(data[8 : 8 + length])
        inner = json.loads(header["__metadata__"]["qbench"])
        mutate(inner if chance.random() < 0.7 else header, chance)
        if isinstance(header.get("__metadata__"), dict) and "qbench" in header["__metadata__"]:
            header["__metadata__"]["qbench"] = json.dumps(inner)
        text = json.dumps(header).encode()
        data = bytearray(len(text).to_bytes(8, "little") + text + bytes(data[8 + length :]))
    files[key]["weights.safetensors"] = bytes(data)


def forge(data: bytes, chance: Chance) -> bytes:
    """Files changed and the manifest made to fit; now and then the result made to fit a changed artefact as well."""
    manifest, files = unpack(data)
    key = chance.choice(list(files))
    kind = chance.choice((change_json, change_json, change_text, change_artefact))
    kind(files, key, chance)
    own = files[key]
    if kind is change_artefact and chance.random() < 0.5:
        result = json.loads(own["result.json"])
        result["artefact_sha256"] = hashlib.sha256(own["weights.safetensors"]).hexdigest()
        result["size"]["artefact_bytes"] = len(own["weights.safetensors"])
        own["result.json"] = json.dumps(result).encode()
    if chance.random() < 0.1:
        del own[chance.choice(list(own))]
    return assemble(manifest, files)


def holds(data: bytes) -> bool:
    """What any accepted bundle says of itself, looked at again without the code under test."""
    bundle = Bundle(io.BytesIO(data))
    for run in bundle.runs:
        files = {name: bundle.read(run, name) for name in run.files}
        spec, result = (
            json.loads(files["spec.json"] or b""),
            json.loads(files["result.json"] or b""),
        )
        key = hashlib.sha256(canonical(spec).encode()).hexdigest()[:32]
        if not run.key == key == result["key"] or not all(
            map(finite, (spec, result, json.loads(files.get("env.json") or b"{}")))
        ):
            return False
        if (weights := files.get("weights.safetensors")) is not None:
            facts, size = artefact_facts.read(weights, "a"), result["size"]
            counted = (
                facts.quantized,
                facts.bits_per_weight,
                facts.levels,
                len(weights),
                facts.sha256,
            )
            told = (
                size["quantized_parameters"],
                size["bits_per_weight"],
                size["levels"],
                size["artefact_bytes"],
                result["artefact_sha256"],
            )
            if counted != told:
                return False
        steps = [
            json.loads(line)["step"] for line in (files.get("curve.jsonl") or b"").splitlines()
        ]
        if steps != sorted(set(steps)) or any(
            not 1 <= step <= spec["recipe"]["steps"] for step in steps
        ):
            return False
        if (
            result["state"] == "ok"
            and result["metrics"][result["metric"]["name"]] != result["scores"]["packed"]
        ):
            return False
    return True


def finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


# ---- the tests ----


def fuzz(good: bytes, count: int, seed: int) -> tuple[int, int]:
    """So many bundles; how many were accepted of those by the ignorant and by forgers."""
    originals, accepted = unpack(good)[1], [0, 0]
    for n in range(count):
        chance = random.Random(f"{seed}/{n}")
        forger = n % 2
        try:
            data = forge(good, chance) if forger else IGNORANT[n // 2 % len(IGNORANT)](good, chance)
        except (UnicodeEncodeError, Refused, struct.error):
            continue  # cannot even be written
        report = judge(data)
        if report is None:
            continue
        accepted[forger] += data != good
        fine = holds(data) if forger else allowed(data, report, originals)
        assert fine, f"mutation {seed}/{n} was accepted"
    return accepted[0], accepted[1]


@pytest.mark.parametrize("seed", range(4))
def test_no_meddled_bundle_crashes_the_reader_or_deceives_it(good: bytes, seed: int) -> None:
    assert judge(good)
    blind, forged = fuzz(good, COUNT // 4, seed)
    # Now and then a note, a maker, or a number that only training can tell: were there none, the fuzzer would only make noise.
    assert blind > 0 and 0 < forged < COUNT // 40


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not SOAK, reason="`make soak` runs it")
def test_nor_do_many_more(good: bytes) -> None:
    fuzz(good, MANY, 1000)


def test_the_archive_accepts_only_what_it_would_write(good: bytes) -> None:
    """Whatever bytes are accepted as an archive are those that its members would be written as."""
    small = zipped_again([("a", b"alpha"), ("b/c", b""), ("d", bytes(range(50)))])
    chance = random.Random(7)
    for _ in range(5000):
        data = chance.choice((flip, truncate, insert, splice))(small, chance)
        try:
            members = members_of(data)
        except Refused:
            continue
        assert zipped_again(members) == data


def test_every_single_byte_of_an_archives_own_words_counts() -> None:
    small = zipped_again([("a", b"alpha"), ("b", b"beta")])
    for place in range(len(small)):
        for value in {0, 0xFF, small[place] ^ 1, small[place] ^ 0x80} - {small[place]}:
            data = small[:place] + bytes([value]) + small[place + 1 :]
            try:
                assert zipped_again(members_of(data)) == data
            except (Refused, UnicodeEncodeError):
                continue


def test_a_checksum_that_is_forged_does_not_help(good: bytes) -> None:
    """A byte of a file flipped, and both its checksums made to fit: the manifest's hash is left."""
    archive = canonical_zip.Archive(io.BytesIO(good))
    member = list(archive.members.values())[2]
    out = bytearray(good)
    out[member.data] ^= 1
    crc = struct.pack("<L", zlib.crc32(bytes(out[member.data : member.data + member.size])))
    directory = struct.unpack_from("<L", good, len(good) - 6)[0]
    place = good.index(member.name.encode(), directory) - 46
    out[member.offset + 14 : member.offset + 18] = out[place + 16 : place + 20] = crc
    assert members_of(bytes(out)) and judge(bytes(out)) is None


def test_spelling_a_manifest_again_changes_nothing(good: bytes) -> None:
    manifest, _ = unpack(good)
    assert dict(members_of(good))[MANIFEST] == spell(manifest)
