"""An order without repetition that is stored nowhere: a keyed permutation of 0 … count − 1.

A Feistel network over pairs of digits in base √count is a permutation of a range a little longer
than count, whatever its rounds compute. A number that it sends past the end is sent on until it
lands inside, which makes it a permutation of 0 … count − 1 (Black and Rogaway 2002).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from qbench.api import key_of

# With six rounds, neighbours of a permutation of 24 are next to each other a tenth too often; from
# eight on the tests find no deviation.
ROUNDS = 10
_GOLDEN, _FACTOR = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
_BLOCK = 4096


def order_indices(first: int, count: int, size: int, *key: object) -> NDArray[np.int64]:
    """Return entries first … first + count − 1 of an endless order over 0 … size − 1.

    The order is one permutation after another, each with a key of its own.
    """
    entries = np.arange(first, first + count)
    parts = []
    for epoch in range(first // size, (first + count - 1) // size + 1):
        within = entries[entries // size == epoch] - epoch * size
        blocks = range(within[0] // _BLOCK, within[-1] // _BLOCK + 1)
        permutation = np.concatenate(
            [_permute_block(block, size, key_of(*key, epoch)) for block in blocks]
        )
        parts.append(permutation[within - blocks[0] * _BLOCK])
    return np.concatenate(parts)


def permute_indices(indices: NDArray[np.int64], count: int, key: int) -> NDArray[np.int64]:
    """Return the images of `indices`, each below `count`, under the permutation of a key."""
    images = indices.copy()
    side = np.uint64(math.isqrt(count - 1) + 1)
    round_keys = np.arange(1, ROUNDS + 1, dtype=np.uint64) * _GOLDEN + np.uint64(key)
    todo = np.arange(len(images))
    while todo.size:
        high, low = np.divmod(images[todo].astype(np.uint64), side)
        for round_key in round_keys:
            high, low = low, (high + _mix_bits(low + round_key)) % side
        images[todo] = (high * side + low).astype(np.int64)
        todo = todo[images[todo] >= count]
    return images


def _mix_bits(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return numbers that depend on every bit of x.

    They are below 2⁶¹, so that adding a digit to one does not wrap around.
    """
    x = (x ^ (x >> np.uint64(30))) * _FACTOR
    x = (x ^ (x >> np.uint64(27))) * _GOLDEN
    return (x ^ (x >> np.uint64(31))) >> np.uint64(3)


# 512 blocks take 16 MB and serve as many stacked seeds. Thousands of indices are permuted at once,
# because a call of NumPy costs the same for one.
@lru_cache(maxsize=512)
def _permute_block(block: int, count: int, key: int) -> NDArray[np.int64]:
    indices = np.arange(block * _BLOCK, min((block + 1) * _BLOCK, count))
    return permute_indices(indices, count, key)
