"""The decoder of a packed artefact. It needs NumPy and safetensors and knows nothing else of qbench: copy it where you ship.

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
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

CHUNK = 1 << 20  # codes unpacked at a time; a multiple of 8, so that every chunk begins on a byte


def decode(path: Path | str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The tensors of the model by name, and the header."""
    with safe_open(str(path), framework="numpy") as file:
        header: dict[str, Any] = json.loads(file.metadata()["qbench"])
        if header["artefact_version"] != 1:
            raise ValueError(f"{path}: artefact version {header['artefact_version']}; this decoder reads version 1")
        names = set(file.keys())
        tensors = {}
        for name, entry in header["weights"].items():
            offset = file.get_tensor(f"{name}.offset") if f"{name}.offset" in names else None
            tensors[name] = decode_weight(file.get_tensor(f"{name}.codes"), file.get_tensor(f"{name}.scale"), offset, entry)
            names -= {f"{name}.codes", f"{name}.scale", f"{name}.offset"}
        tensors |= {name: file.get_tensor(name) for name in sorted(names)}
    return tensors, header


def decode_weight(
    packed: NDArray[np.uint8], scale: NDArray[np.float32], offset: NDArray[np.float32] | None, entry: dict[str, Any]
) -> NDArray[np.float32]:
    """One weight from its codes and the numbers of its groups."""
    rows, columns = entry["shape"]
    codes = unpack(packed, entry["bits"], rows * columns)
    unit = np.asarray(entry["codebook"], np.float32)[codes] if entry["codebook"] else codes.astype(np.float32) + np.float32(entry["low"])
    grouped = {"tensor": (1, rows * columns), "channel": (rows, columns)}.get(entry["granularity"], (rows, -1, entry["block"]))
    value = unit.reshape(grouped) * scale
    if offset is not None:
        value = value + offset
    return value.reshape(entry["full_shape"])


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes of `bits` bits each as bytes without gaps."""
    flat = codes.reshape(-1)
    parts = []
    for start in range(0, len(flat), CHUNK):
        lanes = np.unpackbits(flat[start : start + CHUNK, None], axis=1, count=bits, bitorder="little")
        parts.append(np.packbits(lanes, bitorder="little"))
    return np.concatenate(parts) if parts else np.empty(0, np.uint8)


def unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """The first `count` codes of `bits` bits each."""
    parts = []
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        lanes = np.unpackbits(packed[start * bits // 8 :], count=size * bits, bitorder="little").reshape(size, bits)
        parts.append(np.packbits(lanes, axis=1, bitorder="little")[:, 0])
    return np.concatenate(parts) if parts else np.empty(0, np.uint8)
