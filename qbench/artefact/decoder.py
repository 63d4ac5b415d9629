"""The decoder of a packed artefact. It needs nothing but NumPy: copy the file where you ship.

    python decode.py weights.safetensors tensors.npz

An artefact is one safetensors file. Its metadata holds `qbench`, a JSON header:

    {"artefact_version": 1,
     "weights": {name: {"shape": [rows, columns], "full_shape": [...],
                        "bits": b, "low": l, "high": h, "codebook": [...],
                        "granularity": g, "block": n}},
     "inputs":  {layer: {"bits": b, "low": l, "high": h, "codebook": [...], "granularity": g}}}

For a quantized weight `name` the file holds `name.codes` (codes of b bits each, packed without
gaps, the lowest bit first), `name.scale` and, if the grid has one, `name.offset`: one float32 a
group. Every other tensor of the model is stored whole, under its own name. The grid of a layer's
quantized input is stored under `layer.input.scale` (and `.offset`, and `.decode_scale`,
`.decode_offset` if it decodes by other numbers than it encodes by).

    value = scale · unit + offset,   unit = low + code, or codebook[code]

in float32, a product and then a sum, so that any other decoder that does these two operations gets
the same bits.
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
CHUNK = 1 << 20
"""Codes that are unpacked at a time: a multiple of 8, so that every chunk begins on a byte."""


def decode(path: Path | str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the tensors of the model by name, and the header."""
    tensors, metadata = read_tensors(path)
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


def read_tensors(path: Path | str) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Return the tensors of a safetensors file and its metadata."""
    tensors = {}
    with open(path, "rb") as file:
        # The file begins with the length of a JSON header, which gives the offsets of each tensor.
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        for name, entry in sorted(header.items()):
            first, last = entry["data_offsets"]
            dtype = np.dtype(DTYPES[entry["dtype"]])
            file.seek(8 + length + first)
            # A bytearray can be written to, so that torch can use the array without a copy.
            data = bytearray(file.read(last - first))
            tensors[name] = np.frombuffer(data, dtype).reshape(entry["shape"])
    return tensors, metadata


def decode_weight(
    packed: NDArray[np.uint8],
    scale: NDArray[np.float32],
    offset: NDArray[np.float32] | None,
    entry: dict[str, Any],
) -> NDArray[np.float32]:
    """Return a weight, from its codes and the numbers of its groups."""
    rows, columns = entry["shape"]
    codes = unpack_codes(packed, entry["bits"], rows * columns)
    if entry["codebook"]:
        unit = np.asarray(entry["codebook"], np.float32)[codes]
    else:
        unit = codes.astype(np.float32) + np.float32(entry["low"])
    shapes = {"tensor": (1, rows * columns), "channel": (rows, columns)}
    grouped = shapes.get(entry["granularity"], (rows, -1, entry["block"]))
    # A product and then a sum, each rounded to float32: this order defines the bits of a value.
    value = unit.reshape(grouped) * scale
    if offset is not None:
        value = value + offset
    return value.reshape(entry["full_shape"])


def pack_codes(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return codes of `bits` bits each as bytes without gaps, the lowest bit first."""
    flat = codes.reshape(-1)
    parts = []
    for start in range(0, len(flat), CHUNK):
        chunk = flat[start : start + CHUNK, None]
        # One row of bits a code. Read as one long row, they are packed eight to a byte.
        lanes = np.unpackbits(chunk, axis=1, count=bits, bitorder="little")
        parts.append(np.packbits(lanes, bitorder="little"))
    return np.concatenate(parts) if parts else np.empty(0, np.uint8)


def unpack_codes(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """Return the first `count` codes of `bits` bits each."""
    parts = []
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        # A chunk is a multiple of 8 codes, so its first bit is the first bit of a byte.
        rest = packed[start * bits // 8 :]
        lanes = np.unpackbits(rest, count=size * bits, bitorder="little").reshape(size, bits)
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
