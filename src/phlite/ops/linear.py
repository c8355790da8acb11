"""Matrix products with packed weights, and what surrounds them in a decoder layer, as one native call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from phlite import _native
from phlite._native import PackedMatrix, ThreadPool
from phlite.errors import ShapeError

__all__ = ["MatrixPart", "PackedMatrix", "ThreadPool", "linear", "pack_matrix"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]
MatrixPart = tuple[U8, int, int]
"""Bytes of a tensor (uint8[n], file layout), its ggml type id, its number of rows."""


def pack_matrix(
    parts: Sequence[MatrixPart], n_cols: int, *, pool: ThreadPool, swiglu: bool = False, release_source: bool = False
) -> PackedMatrix:
    """Repack the stacked rows of `parts` into tiles of sixteen rows for the kernels.

    parts:          tensors of `n_cols` columns in any block formats, stacked by rows (split q, k and v, say)
    swiglu:         the rows are [gate; up] and `linear` returns silu(gate) * up, half as many columns
    release_source: the parts are views of a mapped file whose pages may leave memory once packed
    returns:        a matrix of sum(rows) x n_cols that takes as many bytes as its parts
    raises:         ShapeError when rows, columns and bytes do not fit together or a format is unknown
    """
    try:
        return _native.PackedMatrix(
            [(data, int(kind), rows) for data, kind, rows in parts], n_cols, swiglu, release_source, pool
        )
    except ValueError as error:
        raise ShapeError(f"pack_matrix: {error}") from None


def linear(
    x: F32,
    w: PackedMatrix,
    *,
    pool: ThreadPool,
    norm_weight: F32 | None = None,
    eps: float = 0.0,
    residual: F32 | None = None,
    rows: I32 | None = None,
    out: F32 | None = None,
) -> F32:
    """Return residual + W rms_norm(x), every part but W being optional.

    x:           float32[T, K], C-contiguous
    w:           packed [N, K]; [2F, K] with swiglu, then N below is F
    norm_weight: float32[K]; x is replaced by x / sqrt(mean(x^2) + eps) * norm_weight
    residual:    float32[R, N], added to the product
    rows:        int32[R], rows of x that are wanted; all T rows when None
    out:         float32[R, N] to write to; may be `residual`
    returns:     float32[R, N]
    raises:      ShapeError when a shape, dtype or layout differs
    error:       K formats and 32-column formats see x as int8 with one scale per 256 or 32 columns: at most
                 max|x| / 254 per element and block; the sum itself as in csrc/matmul/kernels.h
    """
    if out is None:
        out = np.empty((len(x) if rows is None else len(rows), w.n_outputs), np.float32)
    try:
        _native.linear(w, x, out, pool, norm_weight, eps, residual, rows)
    except ValueError as error:
        raise ShapeError(f"linear: {error}") from None
    except TypeError:
        given = {"x": x, "out": out, "norm_weight": norm_weight, "residual": residual, "rows": rows}
        got = ", ".join(f"{k} {v.dtype}{list(v.shape)}" for k, v in given.items() if isinstance(v, np.ndarray))
        raise ShapeError(f"linear: got {got}; expected C-contiguous float32 arrays and int32 rows") from None
    return out
