"""What a submitted artefact holds, counted by the independent decoder. The file is a stranger's: its header is read under a cap and must be of
the schema's shape, its tensors must lie in it without gaps, and every packed weight must have the bytes that its shape asks for.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qbench.artefact.decoder import decode_weight, unpack
from qbench.submissions import strict_json
from qbench.submissions.strict_json import Refused

LONGEST_HEADER = 1 << 22
SCALE_BITS = 32
NUMBERS = ("scale", "offset", "decode_scale", "decode_offset")
Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Weight:
    """A packed weight: what its header says, and what was counted in it."""

    rows: int
    columns: int
    bits: int
    granularity: str
    levels: int
    used: int
    """Most distinct values in any group, as decoded."""
    stored_bits: int


@dataclass(frozen=True)
class Facts:
    sha256: str
    size: int
    weights: Mapping[str, Weight]
    """By site."""
    inputs: Mapping[str, int]
    """Levels of the grids of layers' inputs, by site."""
    others: int
    """Elements of the tensors that are not packed."""

    @property
    def quantized(self) -> int:
        return sum(w.rows * w.columns for w in self.weights.values())

    @property
    def bits_per_weight(self) -> float:
        return (
            sum(w.stored_bits for w in self.weights.values()) / self.quantized
            if self.weights
            else 32.0
        )

    @property
    def levels(self) -> int | None:
        return max((w.levels for w in self.weights.values()), default=None)


def read(data: bytes, where: str) -> Facts:
    """The facts of an artefact, or why it is none."""
    header, tensors = _open(data, where)
    weights, inputs = {}, {}
    for name, entry in sorted(header["weights"].items()):
        if not name.endswith(".weight"):
            raise Refused(f"{where}: {name} is not the weight of a layer")
        weights[name.removesuffix(".weight")] = _weight(name, entry, tensors, where)
    for layer, entry in sorted(header["inputs"].items()):
        found = [tensors.pop(f"{layer}.input.{kind}", None) for kind in NUMBERS]
        if found[0] is None or not all(t is None or _numbers(t) for t in found):
            raise Refused(
                f"{where}: {layer}.input.scale is missing or not of positive finite numbers"
            )
        inputs[f"{layer}.input"] = _levels(entry, f"{where}: {layer}.input")
    if mixed := [
        name
        for name in tensors
        if name.endswith((".codes", *(f".input.{kind}" for kind in NUMBERS)))
    ]:
        raise Refused(f"{where}: {mixed[0]} belongs to nothing in the header")
    others = sum(tensor.size for tensor in tensors.values())
    return Facts(hashlib.sha256(data).hexdigest(), len(data), weights, inputs, others)


def _open(data: bytes, where: str) -> tuple[dict[str, Any], Tensors]:
    """The header under its schema, and the tensors."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(LONGEST_HEADER, len(data) - 8):
        raise Refused(f"{where}: no safetensors header, or one of more than {LONGEST_HEADER} bytes")
    outer = strict_json.loads(data[8 : 8 + length], f"{where}: header")
    metadata = outer.get("__metadata__") if isinstance(outer, dict) else None
    if (
        not isinstance(metadata, dict)
        or set(metadata) != {"qbench"}
        or not isinstance(metadata["qbench"], str)
    ):
        raise Refused(f"{where}: its metadata is not that of a qbench artefact")
    header = strict_json.loads(metadata["qbench"].encode("utf-8", "replace"), f"{where}: header")
    strict_json.conforms(header, "artefact", f"{where}: header")
    try:
        return header, load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"{where}: {error}") from None


def _weight(name: str, entry: Mapping[str, Any], tensors: Tensors, where: str) -> Weight:
    where = f"{where}: {name}"
    rows, columns = map(int, entry["shape"])
    count, bits, granularity = rows * columns, int(entry["bits"]), str(entry["granularity"])
    if name in tensors or math.prod(entry["full_shape"]) != count:
        raise Refused(f"{where} is there in full besides, or of another shape than its codes")
    levels, packed = _levels(entry, where), tensors.pop(f"{name}.codes", None)
    if packed is None or packed.dtype != np.uint8 or packed.shape != (-(-count * bits // 8),):
        raise Refused(f"{where} has not the codes of {count} elements of {bits} bits")
    block = {"tensor": count, "channel": columns}.get(granularity) or int(
        granularity.removeprefix("block-")
    )
    if (granularity != "tensor" and columns % block) or int(entry["block"]) != (
        block if granularity.startswith("block") else 0
    ):
        raise Refused(f"{where}: {granularity} does not fit rows of {columns} elements")
    groups = {"tensor": (1, 1), "channel": (rows, 1)}.get(granularity, (rows, columns // block, 1))
    scale, offset = tensors.pop(f"{name}.scale", None), tensors.pop(f"{name}.offset", None)
    if scale is None or any(
        t is not None and (t.shape != groups or not _numbers(t)) for t in (scale, offset)
    ):
        raise Refused(f"{where} has no finite float32 scale, or offset, a group")
    codes = unpack(packed, bits, count)
    if int(codes.max(initial=0)) >= levels or (
        count * bits % 8 and packed[-1] >> (count * bits % 8)
    ):
        raise Refused(f"{where} has codes beyond its {levels} levels")
    with np.errstate(all="ignore"):
        decoded = decode_weight(packed, scale, offset, dict(entry))
    stored = count * bits + SCALE_BITS * (scale.size + (0 if offset is None else offset.size))
    return Weight(
        rows, columns, bits, granularity, levels, _used(decoded.reshape(-1, block)), stored
    )


def _used(groups: NDArray[Any]) -> int:
    return int((np.diff(np.sort(groups, axis=1), axis=1) != 0).sum(axis=1).max(initial=0)) + 1


def _numbers(tensor: NDArray[Any]) -> bool:
    return tensor.dtype == np.float32 and bool(np.isfinite(tensor).all())


def _levels(entry: Mapping[str, Any], where: str) -> int:
    """How many levels a header's grid has: those of its codebook, or the whole steps from low to high."""
    book, low, high = entry["codebook"], entry["low"], entry["high"]
    if book:
        fits = book == sorted(set(book)) and (book[0], book[-1]) == (low, high)
        count = len(book)
    else:
        count = round(high - low) + 1
        fits = high - low == count - 1 and low * 2 == round(low * 2)
    if not fits or not 1 <= count <= 2 ** entry["bits"]:
        raise Refused(
            f"{where}: {count} levels from {low:g} to {high:g} are no grid of {entry['bits']} bits"
        )
    return count
