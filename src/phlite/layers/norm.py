"""Root mean square normalisation, applied inside the product that follows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


class Normed(NamedTuple):
    """x / sqrt(mean(x²) + eps) · weight, not computed yet: the matrix product that takes it does so in one pass."""

    x: F32
    weight: F32
    eps: float


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """weight: float32[E]; eps: added to the mean square. Source: Zhang & Sennrich 2019, arXiv 1910.07467."""

    weight: F32
    eps: float

    def __call__(self, x: F32) -> Normed:
        """Return the norm of the rows of x, float32[T, E]."""
        return Normed(x, self.weight, self.eps)
