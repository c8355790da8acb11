"""Values of a planned tensor in the bytes of its type, read from the checkpoint a slice of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from phlite import ops
from phlite.checkpoint import Checkpoint
from phlite.convert.plan import PlannedTensor
from phlite.errors import ModelFileError
from phlite.gguf import GGMLType, Tensor, tensor_bytes

__all__ = ["FLOAT_TYPES", "encode_tensor", "encode_values"]

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

FLOAT_TYPES: Final = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)

SLICE_BYTES: Final = 32 << 20
"""Floats in memory at a time, beside the encoded tensor."""


def encode_tensor(tensor: PlannedTensor, ggml_type: GGMLType, checkpoint: Checkpoint) -> U8:
    """Return the tensor's bytes in this type; the pages of the checkpoint that were read are given back.

    raises: ModelFileError for a value that is not finite in this type
    """
    if tensor.values is not None:
        return encode_values(tensor.values.reshape(-1, tensor.shape[-1]), ggml_type, what=tensor.name)
    sources = [checkpoint.tensors[name] for name in tensor.parts]
    encoded = np.empty(tensor_bytes(ggml_type, tensor.shape), np.uint8)
    if tensor.row_order is not None:
        # Rows from anywhere: the stored bytes are put in order first, which is exact whatever they mean.
        stored, sources = sources, [_reordered(sources, tensor.row_order)]
        for source in stored:
            checkpoint.release(source)
    row_bytes = tensor_bytes(ggml_type, tensor.shape[-1:])
    row = 0
    for source in sources:
        for values in _slices(source, ggml_type):
            stop = row + len(values)
            encoded[row * row_bytes : stop * row_bytes] = _encode(values, source, ggml_type)
            row = stop
        if tensor.row_order is None:
            checkpoint.release(source)
    return encoded


def encode_values(values: F32, ggml_type: GGMLType, *, what: str) -> U8:
    """Return rows float32[n_rows, n_cols] in the bytes of a type.

    what:   name for messages
    raises: ModelFileError for a value that is not finite in this type
    """
    if not np.isfinite(values).all():
        raise ModelFileError(f"tensor {what!r} holds NaN or infinite values; the checkpoint is damaged")
    if ggml_type is GGMLType.F32:
        return np.ascontiguousarray(values).view(np.uint8).reshape(-1)
    if ggml_type is GGMLType.BF16:
        return bfloat16_bytes(values)
    if ggml_type is GGMLType.F16:
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.isfinite(halves).all():
            raise ModelFileError(
                f"tensor {what!r}: {np.abs(values).max():.4g} is beyond float16's 65504; convert to BF16 or F32"
            )
        return halves.view(np.uint8).reshape(-1)
    raise NotImplementedError(ggml_type.name)


def bfloat16_bytes(values: F32) -> U8:
    """Return finite values rounded to bfloat16, the nearest one, the even one of two."""
    bits = np.ascontiguousarray(values).view(np.uint32).reshape(-1)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return rounded.astype(np.uint16).view(np.uint8)


def _slices(source: Tensor, ggml_type: GGMLType) -> Iterator[U8]:
    """Yield the stored bytes of whole rows, uint8[n_rows, row bytes], some at a time."""
    n_cols = source.shape[-1]
    rows = source.data.reshape(-1, tensor_bytes(source.type, (n_cols,)))
    step = max(SLICE_BYTES // (4 * n_cols), 1)
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def _encode(rows: U8, source: Tensor, ggml_type: GGMLType) -> U8:
    if source.type is ggml_type:
        return rows.reshape(-1)
    n_cols = source.shape[-1]
    return encode_values(
        ops.dequantize(rows.reshape(-1), source.type, (len(rows), n_cols)), ggml_type, what=source.name
    )


def _reordered(sources: list[Tensor], row_order: npt.NDArray[np.int64]) -> Tensor:
    first = sources[0]
    row_bytes = tensor_bytes(first.type, first.shape[-1:])
    rows = np.concatenate([source.data.reshape(-1, row_bytes) for source in sources])[row_order]
    return Tensor(
        first.name, (len(rows), first.shape[-1]), first.type, rows.reshape(-1), first.path, first.offset_bytes
    )
