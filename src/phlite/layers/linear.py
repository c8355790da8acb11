"""Products with a weight matrix, W packed once at load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phlite import ops
from phlite.layers.lora import RowAdapters
from phlite.layers.norm import Normed
from phlite.layers.watch import InputWatch
from phlite.layers.weights import Weights

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Linear:
    """y = activation(x Wᵀ + bias), with a norm of x before it and a residual added after it where they are given.

    weight: packed [N_pre, K] with its activation; N = N_pre, or N_pre / 2 where it is gated
    bias:   float32[N_pre] in the order of the weight's rows, or None
    name:   the checkpoint's first module in it, under which adapters know it
    stored: names in the file of the tensors whose rows it has, in order
    watch:  the model's, or None
    """

    weight: ops.PackedMatrix
    pool: ops.ThreadPool
    bias: F32 | None = None
    name: str = ""
    stored: tuple[str, ...] = ()
    watch: InputWatch | None = None

    def __call__(
        self,
        x: F32 | Normed,
        *,
        residual: F32 | None = None,
        rows: I32 | None = None,
        lora: RowAdapters | None = None,
    ) -> F32:
        """Return float32[R, N].

        x:        float32[T, K], or its norm
        residual: float32[T, N], whose wanted rows are added after the activation
        rows:     int32[R], rows of x that are wanted; None: all, R = T
        lora:     adapters of the T rows of x, added before the activation
        """
        if self.watch is not None and self.watch.see is not None:
            self.watch.see(self.stored, normed_rows(x, rows))
        addend = None
        if lora is not None:
            addend = (lora if rows is None else lora.take(rows)).addend(self, x, rows)
        if not isinstance(x, Normed):
            return ops.linear(
                x, self.weight, pool=self.pool, bias=self.bias, addend=addend, residual=residual, rows=rows
            )
        return ops.linear(
            x.x,
            self.weight,
            pool=self.pool,
            norm_weight=x.weight,
            norm_bias=x.bias,
            eps=x.eps,
            bias=self.bias,
            addend=addend,
            residual=residual,
            rows=rows,
        )


def build_linear(
    weights: Weights,
    parts: Mapping[str, int | None],
    *,
    n_cols: int,
    pool: ops.ThreadPool,
    bias_parts: Sequence[str] | None = None,
    activation: ops.Activation = "none",
    gegelu_limit: float | None = None,
) -> Linear:
    """Pack the named tensors, stacked by rows in the order given, into one matrix.

    parts:        tensor name -> number of rows it must have, None for any
    bias_parts:   a vector for each of the parts, added to its product; None: no bias
    activation:   what becomes of the product; see ops.Activation for the order of the rows
    gegelu_limit: clamps the inputs of gegelu, None: not at all
    raises:       ModelFileError where a tensor is missing or has another shape
    """
    tensors = [weights.matrix(name, n_rows=n_rows, n_cols=n_cols) for name, n_rows in parts.items()]
    stacked = [(tensor.data, tensor.type, tensor.shape[0]) for tensor in tensors]

    def pack(stored: NDArray[np.uint8] | None) -> ops.PackedMatrix:
        return ops.pack_matrix(
            stacked,
            n_cols,
            activation=activation,
            gegelu_limit=gegelu_limit,
            pool=pool,
            files=weights.files,
            stored=stored,
        )

    if weights.tiles is None:
        packed = pack(None)
    else:
        key = f"{activation} {' '.join(parts)}"
        stored = weights.tiles.find(key)
        # The private copy is gone as soon as the stored one is mapped: a model larger than memory passes through.
        packed = pack(weights.tiles.keep(key, pack(None).tiles) if stored is None else stored)
    name = next(iter(parts)).removesuffix(".weight")
    bias = None
    if bias_parts is not None:
        biases = [weights.vector(part, t.shape[0]) for part, t in zip(bias_parts, tensors, strict=True)]
        bias = np.concatenate(biases)
    return Linear(packed, pool, bias, name, tuple(tensor.name for tensor in tensors), weights.watch)


def normed_rows(x: F32 | Normed, rows: I32 | None = None) -> F32:
    """Return what a product multiplies, float32[R, K]: x or its norm, all rows or those that are given."""
    values = x.x if isinstance(x, Normed) else x
    values = values if rows is None else values[rows]
    return ops.norm(values, x.weight, x.eps, x.bias) if isinstance(x, Normed) else values
