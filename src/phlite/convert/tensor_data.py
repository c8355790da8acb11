"""Values of a planned tensor in the bytes of its type, read from the checkpoint a slice of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from phlite import ops
from phlite.checkpoint import Checkpoint
from phlite.convert.plan import PlannedTensor
from phlite.errors import ModelFileError, RequestError
from phlite.gguf import GGMLType, Tensor, tensor_bytes

__all__ = ["encode_tensor"]

U8 = npt.NDArray[np.uint8]

SLICE_BYTES: Final = 32 << 20
"""Of stored rows that are read at a time."""


def encode_tensor(tensor: PlannedTensor, ggml_type: GGMLType, checkpoint: Checkpoint, *, pool: ops.ThreadPool) -> U8:
    """Return the tensor's bytes in this type; the pages of the checkpoint that were read are given back.

    raises: ModelFileError for a value that is NaN, infinite or too large for the type
    """
    if tensor.values is not None:
        return np.ascontiguousarray(tensor.values).view(np.uint8).reshape(-1)
    stored = [checkpoint.tensors[name] for name in tensor.parts]
    # Rows from anywhere: the stored bytes are put in order first, which is exact whatever they mean.
    sources = stored if tensor.row_order is None else [_reordered(stored, tensor.row_order)]
    encoded = np.empty(tensor_bytes(ggml_type, tensor.shape), np.uint8)
    row_bytes = tensor_bytes(ggml_type, tensor.shape[-1:])
    row = 0
    for source in sources:
        for rows in _slices(source):
            stop = row + len(rows)
            encoded[row * row_bytes : stop * row_bytes] = _encode(rows, source, ggml_type, checkpoint, pool)
            row = stop
    for source in stored:
        checkpoint.release(source)
    return encoded


def _slices(source: Tensor) -> Iterator[U8]:
    """Yield the stored bytes of whole rows, uint8[n_rows, row bytes], some at a time."""
    row_bytes = tensor_bytes(source.type, source.shape[-1:])
    rows = source.data.reshape(-1, row_bytes)
    step = max(SLICE_BYTES // row_bytes, 1)
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def _encode(rows: U8, source: Tensor, ggml_type: GGMLType, checkpoint: Checkpoint, pool: ops.ThreadPool) -> U8:
    shape = (len(rows), source.shape[-1])
    if source.type is ggml_type:
        return rows.reshape(-1)
    if ggml_type is GGMLType.F32:
        return ops.dequantize(rows.reshape(-1), source.type, shape).view(np.uint8).reshape(-1)
    try:
        return ops.quantize_bytes(rows.reshape(-1), source.type, shape, ggml_type, pool=pool)
    except RequestError:
        raise ModelFileError(
            f"{checkpoint.source}: tensor {source.name!r} holds a value that is NaN, infinite or too large for "
            f"{ggml_type.name}; the checkpoint is damaged, or needs BF16 or F32"
        ) from None


def _reordered(sources: list[Tensor], row_order: npt.NDArray[np.int64]) -> Tensor:
    first = sources[0]
    if any(source.type is not first.type for source in sources):
        names = ", ".join(f"{source.name!r} {source.type.name}" for source in sources)
        raise ModelFileError(f"{first.path}: {names}: expected one type, as their rows become one tensor")
    row_bytes = tensor_bytes(first.type, first.shape[-1:])
    rows = np.concatenate([source.data.reshape(-1, row_bytes) for source in sources])[row_order]
    return replace(first, shape=(len(rows), first.shape[-1]), data=rows.reshape(-1))
