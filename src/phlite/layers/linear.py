"""Products with a weight matrix, W packed once at load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phlite import ops
from phlite.layers.norm import Normed
from phlite.layers.weights import Weights

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x Wᵀ, with an RMS norm of x before it and a residual added after it where they are given."""

    weight: ops.PackedMatrix
    pool: ops.ThreadPool

    def __call__(self, x: F32 | Normed, *, residual: F32 | None = None, rows: I32 | None = None) -> F32:
        """Return float32[R, N].

        x:        float32[T, K], or its norm
        residual: float32[R, N] added to the product
        rows:     int32[R], rows of x to take; None: all, R = T
        """
        if isinstance(x, Normed):
            return ops.linear(
                x.x, self.weight, pool=self.pool, norm_weight=x.weight, eps=x.eps, residual=residual, rows=rows
            )
        return ops.linear(x, self.weight, pool=self.pool, residual=residual, rows=rows)


def build_linear(
    weights: Weights, parts: Mapping[str, int | None], *, n_cols: int, pool: ops.ThreadPool, swiglu: bool = False
) -> Linear:
    """Pack the named tensors, stacked by rows in the order given, into one matrix.

    parts:  tensor name -> number of rows it must have, None for any
    swiglu: the rows are [gate; up] and the product returns silu(gate) · up
    raises: ModelFileError where a tensor is missing or has another shape
    """
    tensors = [weights.matrix(name, n_rows=n_rows, n_cols=n_cols) for name, n_rows in parts.items()]
    stacked = [(tensor.data, tensor.type, tensor.shape[0]) for tensor in tensors]
    packed = ops.pack_matrix(stacked, n_cols, swiglu=swiglu, pool=pool, release_source=weights.mapped)
    return Linear(packed, pool)
