"""Random numbers that are a function of a key and a position, with no state to save or to disturb.

Training needs draws that are the same under recomputation, accumulation, resumption and in whatever company a run
trains, so nothing here touches a global generator. Element i of stream `key` is a hash of (key, i): two rounds of the
64-bit finaliser of MurmurHash3, whose every input bit flips every output bit with probability ½ to within a few parts
in a thousand. int64 products wrap in torch, on every device and under compilation, which is all that the hash needs.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_M1 = -49064778989728563  # 0xFF51AFD7ED558CCD as a signed 64-bit integer
_M2 = -4265267296055464877  # 0xC4CEB9FE1A85EC53
_GOLDEN = (
    -7046029254386353131
)  # 0x9E3779B97F4A7C15, the increment that keeps neighbouring keys apart


def key_of(*parts: object) -> int:
    """A signed 63-bit key from words and numbers, the same in every process."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _shift(x: Tensor, bits: int) -> Tensor:
    """A logical right shift: int64's own copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 33)) * _M1
    x = (x ^ _shift(x, 33)) * _M2
    return x ^ _shift(x, 33)


def uniform(key: Tensor, step: Tensor, shape: tuple[int, ...], first: Tensor | int = 0) -> Tensor:
    """float32 draws in [0, 1) of `shape = (*key.shape[:-2], rows, columns)`; `key` and `step` are int64 and end in two axes of 1.

    `first` is the row of a taller tensor that the shape begins at.
    """
    rows, columns = shape[-2:]
    position = torch.arange(rows * columns, device=key.device).view(rows, columns) + first * columns
    stream = mix(key + step * _GOLDEN)
    # The detour by `stream` changes no bit: without it a compiler folds position times constant, and trips over the product's size.
    position = (position ^ stream) ^ stream
    return (_shift(mix(stream + position * _GOLDEN), 40)).to(torch.float32) * 2.0**-24


def generator(*parts: object) -> torch.Generator:
    """A CPU generator of its own for (task, seed, purpose): initialisation and data order are drawn on the CPU for every device."""
    return torch.Generator().manual_seed(key_of(*parts))
