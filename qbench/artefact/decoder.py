"""The decoder of a packed artefact. It needs NumPy and nothing else, qbench least of all: copy it where you ship.

    python decode.py weights.safetensors tensors.npz

An artefact is one safetensors file. Its metadata holds `qbench`, a JSON header:

    {"artefact_version": 1,
     "weights": {name: {"shape": [rows, columns], "full_shape": [...], "bits": b, "low": l, "codebook": [...], "granularity": g, "block": n}},
     "inputs":  {layer: {"bits": b, "low": l, "high": h, "codebook": [...], "granularity": g}}}

For a quantized weight `name` the file holds `name.codes` (codes of b bits each, packed without gaps, the lowest bit
first), `name.scale` and, where the grid has one, `name.offset`: one float32 a group. Every other tensor of the model is there
whole, under its own name. A layer's quantized input has its grid under `layer.input.scale` (and `.offset`, and
`.decode_scale`, `.decode_offset` where it decodes by other numbers than it encodes by).

    value = scale · unit + offset,   unit = low + code, or codebook[code]

in float32, a product and then a sum, so that any other decoder that does these two operations gets the same bits.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
CHUNK = 1 << 20  # codes unpacked at a time; a multiple of 8, so that every chunk begins on a byte


def decode(path: Path | str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The tensors of the model by name, and the header."""
    tensors, metadata = read(path)
    header: dict[str, Any] = json.loads(metadata["qbench"])
    if header["artefact_version"] != 1:
        raise ValueError(
            f"{path}: artefact version {header['artefact_version']}; this decoder reads version 1"
        )
    weights = {}
    for name, entry in header["weights"].items():
        codes, scale, offset = (
            tensors.pop(f"{name}.{kind}", None) for kind in ("codes", "scale", "offset")
        )
        weights[name] = decode_weight(codes, scale, offset, entry)  # type: ignore[arg-type]
    return weights | tensors, header


def read(path: Path | str) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The tensors of a safetensors file and its metadata. It begins with the length of a JSON header, which says where each tensor's bytes lie."""
    tensors = {}
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        for name, entry in sorted(header.items()):
            first, last = entry["data_offsets"]
            dtype = np.dtype(DTYPES[entry["dtype"]])
            file.seek(8 + length + first)
            tensors[name] = np.frombuffer(bytearray(file.read(last - first)), dtype).reshape(
                entry["shape"]
            )
    return tensors, metadata


def decode_weight(
    packed: NDArray[np.uint8],
    scale: NDArray[np.float32],
    offset: NDArray[np.float32] | None,
    entry: dict[str, Any],
) -> NDArray[np.float32]:
    """One weight from its codes and the numbers of its groups."""
    rows, columns = entry["shape"]
    codes = unpack(packed, entry["bits"], rows * columns)
    unit = (
        np.asarray(entry["codebook"], np.float32)[codes]
        if entry["codebook"]
        else codes.astype(np.float32) + np.float32(entry["low"])
    )
    grouped = {"tensor": (1, rows * columns), "channel": (rows, columns)}.get(
        entry["granularity"], (rows, -1, entry["block"])
    )
    value = unit.reshape(grouped) * scale
    if offset is not None:
        value = value + offset
    return value.reshape(entry["full_shape"])


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes of `bits` bits each as bytes without gaps."""
    flat = codes.reshape(-1)
    parts = []
    for start in range(0, len(flat), CHUNK):
        lanes = np.unpackbits(
            flat[start : start + CHUNK, None], axis=1, count=bits, bitorder="little"
        )
        parts.append(np.packbits(lanes, bitorder="little"))
    return np.concatenate(parts) if parts else np.empty(0, np.uint8)


def unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """The first `count` codes of `bits` bits each."""
    parts = []
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        lanes = np.unpackbits(
            packed[start * bits // 8 :], count=size * bits, bitorder="little"
        ).reshape(size, bits)
        parts.append(np.packbits(lanes, axis=1, bitorder="little")[:, 0])
    return np.concatenate(parts) if parts else np.empty(0, np.uint8)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python decode.py weights.safetensors tensors.npz")
    try:
        np.savez(sys.argv[2], **decode(sys.argv[1])[0])  # type: ignore[arg-type]
    except OSError as error:
        sys.exit(f"{error.filename or sys.argv[1]}: {error.strerror or error}")
    except (ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError) as error:
        sys.exit(f"{sys.argv[1]}: not an artefact that this decoder reads: {error}")
