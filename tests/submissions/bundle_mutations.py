"""Random mutations of a bundle, blind and forged; see `test_fuzz_bundles`."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import random
from collections.abc import Callable
from typing import Any

from qbench.submissions.canonical_zip import CanonicalZip
from tests.bundles import (
    FilesByRun,
    assemble_bundle,
    encode_archive,
    encode_members,
    find_directory,
    read_bundle_files,
)

# ---- Blind mutations: bytes and members ----


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def change_zip_header(data: bytes, rng: random.Random) -> bytes:
    """Change a byte of the first local header or of the central directory."""
    out, directory = bytearray(data), find_directory(data)
    place = rng.choice((rng.randrange(60), rng.randrange(directory, len(data))))
    out[place] = rng.choice((0, 1, 0xFF, out[place] ^ 1, rng.randrange(256)))
    return bytes(out)


def truncate(data: bytes, rng: random.Random) -> bytes:
    cut_end = rng.random() < 0.5
    return data[: rng.randrange(len(data))] if cut_end else data[rng.randrange(1, len(data)) :]


def insert_bytes(data: bytes, rng: random.Random) -> bytes:
    place = rng.choice((0, len(data), rng.randrange(len(data))))
    return data[:place] + rng.randbytes(rng.randrange(1, 40)) + data[place:]


def remove_or_repeat_range(data: bytes, rng: random.Random) -> bytes:
    a, b = sorted(rng.sample(range(len(data)), 2))
    return data[:a] + data[b:] if rng.random() < 0.5 else data[:b] + data[a:]


def read_members(data: bytes) -> list[tuple[str, bytes]]:
    archive = CanonicalZip(io.BytesIO(data))
    return [(name, archive.read_member(name, 1 << 30)) for name in archive.members]


UNUSUAL_NAMES = (
    "../x", "/x", "a\\b", "runs", "manifest.json/", "RUNS/x", "trust.json", "x.pkl",
    "runs/../manifest.json", ".", "", "con", "x" * 99,
)  # fmt: skip


def rename_member(data: bytes, rng: random.Random) -> bytes:
    members = read_members(data)
    i = rng.randrange(len(members))
    name, content = members[i]
    names = (
        rng.choice(UNUSUAL_NAMES),
        name.upper(),
        name.replace("/", "//"),
        rng.choice(members)[0],
    )
    members[i] = (rng.choice(names), content)
    return encode_members(members)


def rearrange_members(data: bytes, rng: random.Random) -> bytes:
    """Repeat, drop or swap members, or give one the content of another."""
    members = read_members(data)
    i, j = rng.randrange(len(members)), rng.randrange(len(members))
    kind = rng.randrange(4)
    if kind == 0:
        members.insert(i, members[j])
    elif kind == 1:
        del members[i]
    elif kind == 2:
        members[i], members[j] = members[j], members[i]
    else:
        members[i] = (members[i][0], members[j][1])
    return encode_members(members)


def change_content(data: bytes, rng: random.Random) -> bytes:
    """Change a member and its checksum in the archive, but not its hash in the manifest."""
    members = read_members(data)
    i = rng.randrange(len(members))
    content = bytearray(members[i][1])
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    suffix = b"" if rng.random() < 0.8 else b" "
    members[i] = (members[i][0], bytes(content) + suffix)
    return encode_members(members)


def change_manifest(data: bytes, rng: random.Random) -> bytes:
    manifest, files = read_bundle_files(data)
    change_json_value(manifest, rng)
    try:
        return encode_archive(manifest, files)
    except (ValueError, UnicodeError):
        return data


BLIND_MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip_bits,
    change_zip_header,
    truncate,
    insert_bytes,
    remove_or_repeat_range,
    rename_member,
    rearrange_members,
    change_content,
    change_manifest,
)


# ---- Forged mutations: the manifest fits ----

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, 1e308, -1e308, 5e-324, 0.1, "",
    "x" * 3000, "\x00", "\x1b[2J", "é", "NaN", "../../x", "=1+1", [], {}, [[]], {"": 0},
    [None] * 50, math.inf, math.nan,
)  # fmt: skip
NAMES = ("more", "", "__proto__", "x" * 200)


def change_json_value(value: Any, rng: random.Random) -> None:
    """Replace, delete, add or nest one entry somewhere inside a JSON value."""
    places: list[tuple[Any, Any]] = []

    def collect_places(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                collect_places(node[key])

    collect_places(value)
    node, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        new_value = copy.deepcopy(rng.choice(VALUES))
        node[rng.choice((*NAMES, key.upper()))] = new_value
    elif kind == 2 and is_moderate_number(node[key]):
        number = node[key]
        node[key] = rng.choice((-number, number + 1, number * 2, number * 1e8, number + 1e-9))
    elif kind == 3:
        nested: Any = node[key]
        for _ in range(rng.choice((1, 5, 200))):
            nested = [nested]
        node[key] = nested
    elif kind == 4:
        other, name = rng.choice(places)
        exists = name in other or (isinstance(other, list) and name < len(other))
        node[key] = json.loads(json.dumps(other[name])) if exists else 0
    else:
        node[key] = copy.deepcopy(rng.choice(VALUES))


def is_moderate_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < 1e300


def change_json_file(files: FilesByRun, key: str, rng: random.Random) -> None:
    name = rng.choice(("spec.json", "env.json", "result.json", "result.json", "curve.jsonl"))
    own_files = files[key]
    if name == "curve.jsonl":
        points = [json.loads(line) for line in own_files[name].splitlines()]
        change_json_value(points, rng)
        own_files[name] = "".join(json.dumps(point) + "\n" for point in points).encode()
        return
    data = json.loads(own_files[name])
    for _ in range(rng.choice((1, 1, 3))):
        change_json_value(data, rng)
    own_files[name] = json.dumps(data).encode()


JSON_FRAGMENTS = (
    b"[" * 5000, b"1" * 400, b"9" * 299 + b"e99", b"1e999", b"NaN", b"Infinity", b'"\\ud800"',
    b"\xff", b"\x00", b'"key": 1, "key": 2,', b"\xef\xbb\xbf", b"}", b"\r\n",
)  # fmt: skip


def insert_json_fragment(files: FilesByRun, key: str, rng: random.Random) -> None:
    """Insert invalid or ambiguous JSON somewhere in a file."""
    name = rng.choice(("spec.json", "env.json", "result.json", "curve.jsonl"))
    text = files[key][name]
    place = rng.randrange(len(text))
    fragment = rng.choice(JSON_FRAGMENTS)
    files[key][name] = text[:place] + fragment + text[place + rng.randrange(3) :]


def change_artefact(files: FilesByRun, key: str, rng: random.Random) -> None:
    """Change the header of the safetensors file, its length, or its tensors."""
    data = bytearray(files[key]["weights.safetensors"])
    header_length = int.from_bytes(data[:8], "little")
    header_end = 8 + header_length
    kind = rng.randrange(5)
    if kind == 0:
        lengths = (0, 1, header_length - 1, header_length + 1, 2**63, 2**64 - 1, len(data))
        data[:8] = rng.choice(lengths).to_bytes(8, "little")
    elif kind == 1:
        place = rng.randrange(8, header_end)
        data[place] = rng.randrange(32, 127)
    elif kind == 2:
        data[rng.randrange(header_end, len(data))] ^= 1 << rng.randrange(8)
    elif kind == 3:
        cut = rng.random() < 0.5
        data = data[: rng.randrange(len(data))] if cut else data + bytes(rng.randrange(1, 20))
    else:
        text = change_artefact_header(bytes(data[8:header_end]), rng)
        data = bytearray(len(text).to_bytes(8, "little") + text + bytes(data[header_end:]))
    files[key]["weights.safetensors"] = bytes(data)


def change_artefact_header(text: bytes, rng: random.Random) -> bytes:
    """Change a value in the safetensors header or in qbench's own header inside it."""
    header = json.loads(text)
    own_header = json.loads(header["__metadata__"]["qbench"])
    change_json_value(own_header if rng.random() < 0.7 else header, rng)
    if isinstance(header.get("__metadata__"), dict) and "qbench" in header["__metadata__"]:
        header["__metadata__"]["qbench"] = json.dumps(own_header)
    return json.dumps(header).encode()


def forge(data: bytes, rng: random.Random) -> bytes:
    """Change a file and make the manifest fit, sometimes also the result to a changed artefact."""
    manifest, files = read_bundle_files(data)
    key = rng.choice(list(files))
    changes = (change_json_file, change_json_file, insert_json_fragment, change_artefact)
    change = rng.choice(changes)
    change(files, key, rng)
    own_files = files[key]
    if change is change_artefact and rng.random() < 0.5:
        artefact, result = own_files["weights.safetensors"], json.loads(own_files["result.json"])
        result["artefact_sha256"] = hashlib.sha256(artefact).hexdigest()
        result["size"]["artefact_bytes"] = len(artefact)
        own_files["result.json"] = json.dumps(result).encode()
    if rng.random() < 0.1:
        del own_files[rng.choice(list(own_files))]
    return assemble_bundle(manifest, files)
