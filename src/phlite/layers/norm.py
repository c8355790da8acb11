"""Normalisation of hidden states, applied inside the product that follows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from phlite.layers.weights import Weights

F32 = NDArray[np.float32]


class Normed(NamedTuple):
    """A norm of the rows of x, not computed yet: the matrix product that takes it does so in one pass.

    x:    float32[T, E]
    bias: float32[E] of a LayerNorm; None: an RMS norm
    """

    x: F32
    weight: F32
    eps: float
    bias: F32 | None = None


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """x / sqrt(mean(x²) + eps) · weight. weight: float32[E]. Source: Zhang & Sennrich 2019, arXiv 1910.07467."""

    weight: F32
    eps: float

    def __call__(self, x: F32) -> Normed:
        """Return the norm of the rows of x, float32[T, E]."""
        return Normed(x, self.weight, self.eps)


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """d / sqrt(mean(d²) + eps) · weight + bias, with d = x - mean(x). weight, bias: float32[E].

    source: Ba, Kiros & Hinton 2016, arXiv 1607.06450
    """

    weight: F32
    bias: F32
    eps: float

    def __call__(self, x: F32) -> Normed:
        """Return the norm of the rows of x, float32[T, E]."""
        return Normed(x, self.weight, self.eps, self.bias)


def build_layer_norm(weights: Weights, name: str, size: int, eps: float) -> LayerNorm:
    """Return the LayerNorm of the vectors `name`.weight and `name`.bias of a checkpoint, float32[size] each."""
    return LayerNorm(weights.vector(f"{name}.weight", size), weights.vector(f"{name}.bias", size), eps)
