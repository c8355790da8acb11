"""Floats to the block formats of model files."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from phlite import _native
from phlite.errors import RequestError, ShapeError
from phlite.gguf.types import BLOCK_SIZES, GGMLType, tensor_bytes
from phlite.ops.linear import ThreadPool

__all__ = ["QUANTIZABLE", "quantize", "quantize_bytes"]

F32: TypeAlias = npt.NDArray[np.float32]
U8: TypeAlias = npt.NDArray[np.uint8]

QUANTIZABLE = frozenset(BLOCK_SIZES) - {GGMLType.F32}
"""Types that `quantize` writes."""

FLOAT_TYPES = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)


def quantize(x: F32, ggml_type: GGMLType, *, importance: F32 | None = None, pool: ThreadPool) -> U8:
    """Return the rows of x as the bytes of a tensor of this type.

    x:          float32[n_rows, n_cols], C-contiguous, n_cols a multiple of the format's block
    importance: float32[n_cols], how much the squared error of a column counts; finite, at least 0, not all 0;
                None: all alike
    returns:    uint8[n_rows * row bytes], new array; the same for every number of threads and instruction set
    raises:     ShapeError if a shape, dtype or layout differs; RequestError for another type, for an importance that
                is negative or not finite, and where a value is not finite or its scale does not fit a half
    """
    if x.dtype != np.float32 or x.ndim != 2 or not x.flags.c_contiguous:
        raise ShapeError(f"quantize: x is {x.dtype}{list(x.shape)}, expected C-contiguous float32[n_rows, n_cols]")
    return quantize_bytes(
        x.reshape(-1).view(np.uint8), GGMLType.F32, x.shape, ggml_type, importance=importance, pool=pool
    )


def quantize_bytes(
    data: U8,
    source_type: GGMLType,
    shape: tuple[int, int],
    ggml_type: GGMLType,
    *,
    importance: F32 | None = None,
    pool: ThreadPool,
) -> U8:
    """Return a tensor of floats, given as its bytes, as the bytes of another type.

    data:        uint8, C-contiguous, any alignment: the bytes of F32, F16 or BF16 values of `shape`
    source_type: F32, F16 or BF16
    shape:       (n_rows, n_cols)
    returns and raises as `quantize`
    """
    if source_type not in FLOAT_TYPES:
        raise RequestError(
            f"quantize: the source is {source_type.name}, expected F32, F16 or BF16; dequantise it first"
        )
    if ggml_type not in QUANTIZABLE:
        raise RequestError(f"quantize: {ggml_type.name} is not written; possible: {_names(QUANTIZABLE)}")
    n_rows, n_cols = shape
    if n_rows < 0 or n_cols < 1 or n_cols % BLOCK_SIZES[ggml_type][0]:
        raise ShapeError(
            f"quantize: {n_rows} rows of {n_cols} columns, expected a multiple of {ggml_type.name}'s "
            f"{BLOCK_SIZES[ggml_type][0]} columns"
        )
    if data.dtype != np.uint8 or not data.flags.c_contiguous or data.nbytes != tensor_bytes(source_type, shape):
        raise ShapeError(
            f"quantize: data is {data.dtype}{list(data.shape)}, expected the {tensor_bytes(source_type, shape)} "
            f"contiguous bytes of {source_type.name}[{n_rows}, {n_cols}]"
        )
    out = np.empty(tensor_bytes(ggml_type, shape), np.uint8)
    weights = None if importance is None else _relative(importance, n_cols)
    if not _native.quantize(data.reshape(-1), int(source_type), n_cols, weights, int(ggml_type), out, pool):
        raise RequestError(
            f"quantize: a value is NaN, infinite or too large for {ggml_type.name}; the checkpoint is damaged, or "
            "needs BF16"
        )
    return out


def _relative(importance: F32, n_cols: int) -> F32:
    """Importance with mean 1 and nowhere 0, so that sums of products stay in range and every column counts a little."""
    if importance.dtype != np.float32 or importance.shape != (n_cols,):
        raise ShapeError(
            f"quantize: importance is {importance.dtype}{list(importance.shape)}, expected float32[{n_cols}]"
        )
    wide = importance.astype(np.float64)
    mean = wide.mean()
    if not np.isfinite(mean) or wide.min() < 0 or mean == 0:
        raise RequestError(
            f"quantize: importance from {wide.min():g} to {wide.max():g}, expected finite, at least 0 and not all 0"
        )
    relative: F32 = np.maximum(wide / mean, 1e-6).astype(np.float32)
    return relative


def _names(types: frozenset[GGMLType]) -> str:
    return ", ".join(sorted(kind.name for kind in types))
