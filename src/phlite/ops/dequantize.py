"""Quantised weights to float: whole tensors, and rows of an embedding table."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from phlite import _native
from phlite.errors import ShapeError
from phlite.gguf.types import BLOCK_SIZES, GGMLType, tensor_bytes

F32: TypeAlias = npt.NDArray[np.float32]
I32: TypeAlias = npt.NDArray[np.int32]
U8: TypeAlias = npt.NDArray[np.uint8]


def dequantize(data: U8, ggml_type: GGMLType, shape: tuple[int, ...]) -> F32:
    """Return the values of a quantised tensor, bit-identical to gguf-py's.

    data:    uint8, C-contiguous, exactly the bytes of the tensor
    shape:   row-major, the last dimension a multiple of the format's block
    returns: float32[shape], new array
    raises:  ShapeError if the shape does not fit the format or the data
    source:  gguf-py 0.19 quants.py; layouts in csrc/formats/blocks.h
    """
    if not shape or min(shape) < 0:
        raise ShapeError(f"dequantize: shape {shape}, expected at least one dimension and none below 0")
    try:
        n_bytes = tensor_bytes(ggml_type, shape)
    except ValueError as error:
        raise ShapeError(f"dequantize: {error}") from None
    _check_bytes("dequantize", data)
    if data.nbytes != n_bytes:
        raise ShapeError(f"dequantize: {ggml_type.name} of shape {shape} has {n_bytes} bytes, got {data.nbytes}")
    n_elements = n_bytes // BLOCK_SIZES[ggml_type][1] * BLOCK_SIZES[ggml_type][0]
    values: F32 = _native.dequantize(data.reshape(-1), int(ggml_type), n_elements)
    return values.reshape(shape)


def embedding(data: U8, ggml_type: GGMLType, n_cols: int, ids: I32) -> F32:
    """Return rows of a quantised table.

    data:    uint8, C-contiguous, the bytes of a matrix (V, n_cols)
    n_cols:  a multiple of the format's block
    ids:     int32[T], C-contiguous, 0 <= id < V
    returns: float32[T, n_cols], new array
    raises:  ShapeError if data is not a whole number of rows or an id lies outside the table
    """
    try:
        row_bytes = tensor_bytes(ggml_type, (n_cols,))
    except ValueError as error:
        raise ShapeError(f"embedding: {error}") from None
    _check_bytes("embedding", data)
    if row_bytes <= 0 or data.nbytes % row_bytes:
        raise ShapeError(
            f"embedding: {data.nbytes} bytes are not rows of {n_cols} {ggml_type.name} ({row_bytes} bytes)"
        )
    if ids.ndim != 1 or ids.dtype != np.int32 or not ids.flags.c_contiguous:
        raise ShapeError(f"embedding: ids are {ids.dtype}{list(ids.shape)}, expected contiguous int32[T]")
    out = np.empty((len(ids), n_cols), np.float32)
    try:
        _native.embedding(data.reshape(-1), int(ggml_type), n_cols, ids, out)
    except IndexError:
        n_rows = data.nbytes // row_bytes
        raise ShapeError(f"embedding: ids from {ids.min()} to {ids.max()}, expected 0 to {n_rows - 1}") from None
    return out


def _check_bytes(operation: str, data: U8) -> None:
    if data.dtype != np.uint8 or not data.flags.c_contiguous:
        raise ShapeError(f"{operation}: data is {data.dtype}{list(data.shape)}, expected contiguous uint8")
