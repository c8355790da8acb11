"""Random numbers that are functions of a seed and an index, and the draw of one row by its weight."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["draw", "second_uniform", "uniform"]

DRAW_BLOCK = 256
GOLDEN = 0x9E3779B97F4A7C15
MASK64 = 2**64 - 1


def uniform(seed: int, index: int) -> float:
    """Return draw number `index` of the stream `seed`: a multiple of 2**-53 in [0, 1).

    A function of its two arguments alone, so a step that is repeated, after a preemption or an interrupt, draws the
    same number. seed, index: 0 .. 2**64 - 1.
    source: SplitMix64 (Steele, Lea, Flood 2014), its state being mix(seed) + (index + 1) * golden ratio
    """
    state = mix64(seed + GOLDEN) + (index + 1) * GOLDEN
    return (mix64(state) >> 11) * 2.0**-53


def second_uniform(u: float) -> float:
    """Return another number in [0, 1) for the same choice: a hash of the 53 bits of u, for XTC's coin."""
    return (mix64(int(u * 2.0**53) ^ GOLDEN) >> 11) * 2.0**-53


def mix64(z: int) -> int:
    """Return SplitMix64's finalizer of z modulo 2**64."""
    z &= MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    return z ^ (z >> 31)


def draw(weights: NDArray[np.float32], u: float) -> int:
    """Return the first row whose running sum exceeds u times the sum of all; its weight is above zero."""
    if weights.size <= 2 * DRAW_BLOCK:
        sums = weights.cumsum(dtype=np.float64)
        return row_at(sums, u * sums[-1])
    # Sums of blocks first, then rows of one block: a running sum over a whole vocabulary takes ten times as long.
    starts = np.arange(0, weights.size, DRAW_BLOCK)
    block_sums = np.add.reduceat(weights, starts).cumsum(dtype=np.float64)
    target = u * block_sums[-1]
    block = row_at(block_sums, target)
    before = block_sums[block - 1] if block else 0.0
    start = block * DRAW_BLOCK
    return start + row_at(weights[start : start + DRAW_BLOCK].cumsum(dtype=np.float64), target - before)


def row_at(sums: NDArray[np.float64], target: float) -> int:
    """Return the first row whose running sum exceeds the target."""
    row = int(sums.searchsorted(target, side="right"))
    # The target may round up to the sum itself; the last row that adds anything is meant then.
    return row if row < sums.size else int(sums.searchsorted(sums[-1], side="left"))
