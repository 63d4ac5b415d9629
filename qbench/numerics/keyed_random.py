"""Random numbers that are a function of a key and a position, without a state to save or disturb.

Training needs draws that stay the same when a forward pass is recomputed, when a batch is split
into micro-batches, when a run is resumed and when runs are stacked. So nothing here touches a
global generator. Element i of the stream `key` is a hash of (key, i): two rounds of the 64-bit
finalizer of MurmurHash3, in which every input bit flips every output bit with probability ½, to
within a few parts in a thousand. The hash needs only that products of int64 wrap around, which
they do in torch on every device and under compilation.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

# Multipliers of the finalizer, 0xFF51AFD7ED558CCD and 0xC4CEB9FE1A85EC53 as signed integers.
_MULTIPLIER_1 = -49064778989728563
_MULTIPLIER_2 = -4265267296055464877
# 0x9E3779B97F4A7C15, 2⁶⁴ over the golden ratio: this increment keeps neighbouring keys apart.
_GOLDEN = -7046029254386353131


def key_of(*parts: object) -> int:
    """Return a 63-bit key made of words and numbers. It is the same in every process."""
    # Python's own hash() of a string differs from process to process.
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Return a logical right shift. The shift of an int64 is arithmetic: it copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix_bits(x: Tensor) -> Tensor:
    """Return the 64-bit hash of each element: the finalizer of MurmurHash3."""
    x = (x ^ _shift_right(x, 33)) * _MULTIPLIER_1
    x = (x ^ _shift_right(x, 33)) * _MULTIPLIER_2
    return x ^ _shift_right(x, 33)


def uniform(key: Tensor, step: Tensor, shape: tuple[int, ...], first: Tensor | int = 0) -> Tensor:
    """Return float32 draws in [0, 1).

    Args:
        key: int64 keys of the streams, ending in two axes of length 1.
        step: The step of training as int64, shaped like `key` or a scalar.
        shape: The result's shape, `(*key.shape[:-2], rows, columns)`.
        first: The row at which the result begins in a taller tensor, for a part of a batch.
    """
    rows, columns = shape[-2:]
    position = torch.arange(rows * columns, device=key.device).view(rows, columns) + first * columns
    stream = mix_bits(key + step * _GOLDEN)
    # XOR with `stream` twice changes no bit. Without it a compiler folds position times constant
    # at compile time, and fails because the product does not fit.
    position = (position ^ stream) ^ stream
    # float32 has 24 bits of precision, so the upper 24 bits of the hash give exact draws below 1.
    return (_shift_right(mix_bits(stream + position * _GOLDEN), 40)).to(torch.float32) * 2.0**-24


def generator(*parts: object) -> torch.Generator:
    """Return a new CPU generator seeded by a key such as (task, seed, purpose).

    Initial weights and the order of data are drawn on the CPU whatever the device, so that they
    are the same on all devices.
    """
    return torch.Generator().manual_seed(key_of(*parts))
