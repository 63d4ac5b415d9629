"""An order without repetition that is nowhere stored: where a keyed permutation of 0 … count − 1 sends an index.

A Feistel network over pairs of digits in base √count is a permutation of a range a little longer than count, whatever its rounds compute.
What it sends past the end is sent on until it lands inside, which makes it one of 0 … count − 1 (Black and Rogaway 2002).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from qbench.api import key_of

ROUNDS = 10
"""With six, neighbours of a permutation of 24 are next to each other a tenth too often; from eight on nothing is seen."""
_GOLDEN, _FACTOR = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
_BLOCK = 4096


def order_indices(first: int, count: int, of: int, *key: object) -> NDArray[np.int64]:
    """Places first … first + count − 1 of an endless order over 0 … of − 1: one permutation after another, each of its own key."""
    wanted = np.arange(first, first + count)
    parts = []
    for epoch in range(first // of, (first + count - 1) // of + 1):
        within = wanted[wanted // of == epoch] - epoch * of
        blocks = range(within[0] // _BLOCK, within[-1] // _BLOCK + 1)
        permuted = np.concatenate([_permute_block(block, of, key_of(*key, epoch)) for block in blocks])
        parts.append(permuted[within - blocks[0] * _BLOCK])
    return np.concatenate(parts)


def permute_indices(indices: NDArray[np.int64], count: int, key: int) -> NDArray[np.int64]:
    """The images of `indices`, each below `count`."""
    found = indices.copy()
    side = np.uint64(math.isqrt(count - 1) + 1)
    keys = np.arange(1, ROUNDS + 1, dtype=np.uint64) * _GOLDEN + np.uint64(key)
    todo = np.arange(len(found))
    while todo.size:
        high, low = np.divmod(found[todo].astype(np.uint64), side)
        for one in keys:
            high, low = low, (high + _mix_bits(low + one)) % side
        found[todo] = (high * side + low).astype(np.int64)
        todo = todo[found[todo] >= count]
    return found


def _mix_bits(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Numbers below 2⁶¹ in which every bit of x has a say: adding a digit to one does not wrap."""
    x = (x ^ (x >> np.uint64(30))) * _FACTOR
    x = (x ^ (x >> np.uint64(27))) * _GOLDEN
    return (x ^ (x >> np.uint64(31))) >> np.uint64(3)


@lru_cache(maxsize=512)  # 16 MB, for as many seeds side by side
def _permute_block(block: int, count: int, key: int) -> NDArray[np.int64]:
    """Thousands at once, because NumPy's calls cost the same for one."""
    return permute_indices(np.arange(block * _BLOCK, min((block + 1) * _BLOCK, count)), count, key)
