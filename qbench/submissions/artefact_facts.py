"""What a submitted artefact contains, as counted by the independent decoder.

The file is untrusted. Its header has a maximum size and must match its schema. Every packed weight
must have exactly the bytes that its shape asks for, and no tensor may be left over that looks like
part of a quantized weight or input but that the header does not list. safetensors itself requires
the tensors to fill the file without gaps.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qbench.artefact.decoder import decode_weight, unpack_codes
from qbench.submissions.strict_json import SubmissionError, parse_json, require_schema

MAX_HEADER_BYTES = 1 << 22
SCALE_BITS = 32
INPUT_TENSORS = ("scale", "offset", "decode_scale", "decode_offset")
"""The tensors of a quantized input: `<layer>.input.<name>`. Only the scale is required."""
Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class PackedWeight:
    """A packed weight: what its header says and what the decoder counted in it."""

    rows: int
    columns: int
    bits: int
    granularity: str
    levels: int
    """How many levels its grid has."""
    levels_used: int
    """The largest number of distinct decoded values in any group."""
    stored_bits: int
    """Bits of its codes, scales and offsets together."""


@dataclass(frozen=True)
class ArtefactFacts:
    """What was counted in an artefact."""

    sha256: str
    file_bytes: int
    weights: Mapping[str, PackedWeight]
    """By site."""
    input_levels: Mapping[str, int]
    """How many levels the grid of each quantized input has, by site."""
    unpacked_elements: int
    """Elements of all tensors that are not packed."""

    @property
    def quantized_parameters(self) -> int:
        return sum(weight.rows * weight.columns for weight in self.weights.values())

    @property
    def bits_per_weight(self) -> float:
        if not self.weights:
            return 32.0
        stored_bits = sum(weight.stored_bits for weight in self.weights.values())
        return stored_bits / self.quantized_parameters

    @property
    def levels(self) -> int | None:
        return max((weight.levels for weight in self.weights.values()), default=None)


def read_artefact_facts(data: bytes, where: str) -> ArtefactFacts:
    """Return the facts of an artefact; refuse one that contradicts its own header.

    `where` names the file in the message of a refusal.
    """
    header, tensors = _parse_artefact(data, where)
    weights, input_levels = {}, {}
    for name, entry in sorted(header["weights"].items()):
        if not name.endswith(".weight"):
            raise SubmissionError(f"{where}: {name} is not the weight of a layer")
        weight = _read_packed_weight(name, entry, tensors, f"{where}: {name}")
        weights[name.removesuffix(".weight")] = weight
    for layer, entry in sorted(header["inputs"].items()):
        site = f"{layer}.input"
        _take_input_tensors(site, tensors, where)
        input_levels[site] = _count_levels(entry, f"{where}: {site}")
    # Each reader above removed its tensors, so what is left belongs to nothing in the header.
    _refuse_leftover_tensors(tensors, where)
    unpacked = sum(tensor.size for tensor in tensors.values())
    digest = hashlib.sha256(data).hexdigest()
    return ArtefactFacts(digest, len(data), weights, input_levels, unpacked)


def _parse_artefact(data: bytes, where: str) -> tuple[dict[str, Any], Tensors]:
    """Return the header, which matches its schema, and the tensors."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    # A safetensors file begins with the length of its JSON header in 8 bytes, little-endian. The
    # strict parser must read this header before the library reads it with a parser of its own.
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(MAX_HEADER_BYTES, len(data) - 8):
        raise SubmissionError(
            f"{where}: no safetensors header, or one of more than {MAX_HEADER_BYTES} bytes"
        )
    safetensors_header = parse_json(data[8 : 8 + length], f"{where}: header")
    is_object = isinstance(safetensors_header, dict)
    metadata = safetensors_header.get("__metadata__") if is_object else None
    if (
        not isinstance(metadata, dict)
        or set(metadata) != {"qbench"}
        or not isinstance(metadata["qbench"], str)
    ):
        raise SubmissionError(f"{where}: its metadata is not that of a qbench artefact")
    header = parse_json(metadata["qbench"].encode("utf-8", "replace"), f"{where}: header")
    require_schema(header, "artefact", f"{where}: header")
    try:
        return header, load(data)
    # The library checks dtypes, shapes and offsets, but reports some faults as plain errors.
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SubmissionError(f"{where}: {error}") from None


def _read_packed_weight(
    name: str, entry: Mapping[str, Any], tensors: Tensors, where: str
) -> PackedWeight:
    """Return a weight after checking its tensors against its header; remove them from `tensors`."""
    rows, columns = map(int, entry["shape"])
    count, bits, granularity = rows * columns, int(entry["bits"]), str(entry["granularity"])
    if name in tensors:
        raise SubmissionError(f"{where} is in the file both packed and unpacked")
    if math.prod(entry["full_shape"]) != count:
        raise SubmissionError(f"{where}: full_shape has another number of elements than shape")
    levels, codes = _count_levels(entry, where), tensors.pop(f"{name}.codes", None)
    # Sizes are compared before anything is unpacked: a header may claim terabytes.
    if codes is None or codes.dtype != np.uint8 or codes.shape != (-(-count * bits // 8),):
        raise SubmissionError(
            f"{where}: its codes are not those of {count} elements of {bits} bits"
        )
    group_size = _check_group_size(entry, where)
    group_shape = {"tensor": (1, 1), "channel": (rows, 1)}.get(
        granularity, (rows, columns // group_size, 1)
    )
    scale, offset = tensors.pop(f"{name}.scale", None), tensors.pop(f"{name}.offset", None)
    for tensor in (scale, offset):
        if tensor is not None and (tensor.shape != group_shape or not _is_finite_float32(tensor)):
            raise SubmissionError(f"{where}: its scale or offset is not one finite float32 a group")
    if scale is None:
        raise SubmissionError(f"{where} has no scale")
    _check_codes(codes, count, bits, levels, where)
    # An extreme scale may overflow to infinity, which is no error here.
    with np.errstate(all="ignore"):
        decoded = decode_weight(codes, scale, offset, dict(entry))
    levels_used = _max_distinct_values(decoded.reshape(-1, group_size))
    stored = count * bits + SCALE_BITS * (scale.size + (0 if offset is None else offset.size))
    return PackedWeight(rows, columns, bits, granularity, levels, levels_used, stored)


def _check_group_size(entry: Mapping[str, Any], where: str) -> int:
    """Return how many elements share a scale; refuse a size that does not divide the rows."""
    rows, columns = map(int, entry["shape"])
    granularity = str(entry["granularity"])
    # The schema allows "tensor", "channel" and "block-N" with N of at least 1.
    group_size = {"tensor": rows * columns, "channel": columns}.get(granularity) or int(
        granularity.removeprefix("block-")
    )
    if granularity != "tensor" and columns % group_size:
        raise SubmissionError(f"{where}: {granularity} does not divide rows of {columns} elements")
    if int(entry["block"]) != (group_size if granularity.startswith("block") else 0):
        raise SubmissionError(f"{where}: block {entry['block']} contradicts {granularity}")
    return group_size


def _check_codes(codes: NDArray[np.uint8], count: int, bits: int, levels: int, where: str) -> None:
    """Refuse codes beyond the last level, and set bits after the last code."""
    used_bits_of_last_byte = count * bits % 8
    if int(unpack_codes(codes, bits, count).max(initial=0)) >= levels:
        raise SubmissionError(f"{where} has codes beyond its {levels} levels")
    # Padding must be zero, or the same weights could be written in several ways.
    if used_bits_of_last_byte and codes[-1] >> used_bits_of_last_byte:
        raise SubmissionError(f"{where} has data after its last code")


def _take_input_tensors(site: str, tensors: Tensors, where: str) -> None:
    """Remove the tensors of a quantized input from `tensors`; refuse unusable ones."""
    taken = {kind: tensors.pop(f"{site}.{kind}", None) for kind in INPUT_TENSORS}
    if taken["scale"] is None:
        raise SubmissionError(f"{where}: {site}.scale is missing")
    for kind, tensor in taken.items():
        if tensor is not None and not _is_finite_float32(tensor):
            raise SubmissionError(f"{where}: {site}.{kind} is not of finite float32 numbers")


def _refuse_leftover_tensors(tensors: Tensors, where: str) -> None:
    suffixes = (".codes", *(f".input.{kind}" for kind in INPUT_TENSORS))
    for name in tensors:
        if name.endswith(suffixes):
            raise SubmissionError(f"{where}: {name} belongs to nothing in the header")


def _max_distinct_values(groups: NDArray[Any]) -> int:
    """Return the largest number of distinct values in any row."""
    # After sorting, each step between neighbours begins a new value.
    steps = np.diff(np.sort(groups, axis=1), axis=1) != 0
    return int(steps.sum(axis=1).max(initial=0)) + 1


def _is_finite_float32(tensor: NDArray[Any]) -> bool:
    return tensor.dtype == np.float32 and bool(np.isfinite(tensor).all())


def _count_levels(entry: Mapping[str, Any], where: str) -> int:
    """Return how many levels the grid of a header entry has; refuse what is no grid."""
    codebook, low, high = entry["codebook"], entry["low"], entry["high"]
    if codebook:
        count = len(codebook)
        is_grid = codebook == sorted(set(codebook)) and (codebook[0], codebook[-1]) == (low, high)
    else:
        count = round(high - low) + 1
        # Uniform levels are one apart and begin at a whole or a half number, all exact in binary.
        is_grid = high - low == count - 1 and low * 2 == round(low * 2)
    if not is_grid or not 1 <= count <= 2 ** entry["bits"]:
        raise SubmissionError(
            f"{where}: {count} levels from {low:g} to {high:g} are no grid of {entry['bits']} bits"
        )
    return count
