"""Write the GGUF file of a checkpoint: planned, checked against the disk, then one tensor after the other."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from phlite import ops
from phlite.checkpoint import Checkpoint
from phlite.convert.choose import choose_types
from phlite.convert.plan import Conversion, Field, PlannedTensor, u32
from phlite.convert.registry import plan_conversion
from phlite.convert.tensor_data import encode_tensor
from phlite.convert.vocabulary import vocabulary_fields
from phlite.errors import RequestError
from phlite.gguf import FileType, GGMLType, GGUFWriter, ValueType, tensor_bytes

__all__ = ["convert_checkpoint", "default_type"]

Progress = Callable[[str, int], None]
"""Called with a tensor's name and its bytes in the file when it was written."""

_QUANTISATION_VERSION: Final = 2
_HEADER_MARGIN_BYTES: Final = 16 << 20


def convert_checkpoint(
    checkpoint: Checkpoint,
    path: str | os.PathLike[str],
    *,
    file_type: FileType | None = None,
    name: str | None = None,
    pool: ops.ThreadPool | None = None,
    force: bool = False,
    progress: Progress | None = None,
    on_plan: Callable[[int], None] | None = None,
) -> Path:
    """Write a checkpoint as a GGUF file that phlite and llama.cpp load; returns its path.

    Never more than one tensor of the result is in memory. The file gets its name when it is complete.

    file_type: F32, F16, BF16, or a mixture such as Q4_K_M; None: the type that most of the weights are stored in
    name:      `general.name`; None: the folder's name
    pool:      threads that quantise; None: one per physical core
    force:     replace a file that is there
    progress:  called after each tensor
    on_plan:   called once, before the first tensor, with the bytes of all tensors
    raises:    ModelFileError, UnsupportedModelError for the checkpoint; RequestError where the file exists or the disk
               is too full; OSError where the system cannot write
    """
    target = Path(path)
    if target.exists() and not force:
        raise RequestError(f"{target} is there already; choose another name, or replace it with --force (force=True)")
    pool = ops.ThreadPool(ops.physical_core_count()) if pool is None else pool
    conversion = plan_conversion(checkpoint)
    file_type = default_type(checkpoint) if file_type is None else file_type
    types = choose_types(conversion, file_type)
    total_bytes = sum(tensor_bytes(types[tensor.name], tensor.shape) for tensor in conversion.tensors)
    fields = {
        **_general_fields(conversion, file_type, name or checkpoint.folder.resolve().name),
        **{f"{conversion.architecture}.{key}": field for key, field in conversion.fields.items()},
        **_sampling_fields(checkpoint),
        **vocabulary_fields(checkpoint.folder, n_vocab_rows(conversion)),
    }
    _check_space(target, total_bytes)
    if on_plan is not None:
        on_plan(total_bytes)
    with GGUFWriter(target) as writer:
        for key, (value, value_type) in fields.items():
            writer.add(key, value, value_type)
        for tensor in conversion.tensors:
            ggml_type = types[tensor.name]
            data = functools.partial(_encode, tensor, ggml_type, checkpoint, pool, progress)
            writer.add_tensor(tensor.name, tensor.shape, ggml_type, data)
    return target


def default_type(checkpoint: Checkpoint) -> FileType:
    """Return F32, F16 or BF16: what most of the weights are stored in."""
    n_bytes: dict[GGMLType, int] = {}
    for tensor in checkpoint.tensors.values():
        n_bytes[tensor.type] = n_bytes.get(tensor.type, 0) + tensor.n_elements
    return FileType[max(n_bytes, key=lambda kind: n_bytes[kind]).name]


def n_vocab_rows(conversion: Conversion) -> int:
    """Return the rows of the embedding, which every token of the vocabulary needs one of."""
    embedding = conversion.tensor("token_embd.weight")
    assert embedding is not None, "every architecture has an embedding"
    return embedding.shape[0]


def _encode(
    tensor: PlannedTensor,
    ggml_type: GGMLType,
    checkpoint: Checkpoint,
    pool: ops.ThreadPool,
    progress: Progress | None,
) -> npt.NDArray[np.uint8]:
    data = encode_tensor(tensor, ggml_type, checkpoint, pool=pool)
    if progress is not None:
        progress(tensor.name, data.nbytes)
    return data


def _general_fields(conversion: Conversion, file_type: FileType, name: str) -> Mapping[str, Field]:
    n_weights = sum(int(np.prod(tensor.shape, dtype=object)) for tensor in conversion.tensors)
    return {
        "general.architecture": (conversion.architecture, None),
        "general.type": ("model", None),
        "general.name": (name, None),
        "general.size_label": (_size_label(n_weights), None),
        "general.file_type": u32(file_type),
        "general.quantization_version": u32(_QUANTISATION_VERSION),
    }


def _sampling_fields(checkpoint: Checkpoint) -> Mapping[str, Field]:
    return {
        f"general.sampling.{key}": (value, ValueType.INT32 if isinstance(value, int) else ValueType.FLOAT32)
        for key, value in checkpoint.sampling().items()
    }


def _size_label(n_weights: int) -> str:
    """Return the number of weights as llama.cpp's converter writes it: "3.8B", "270M"."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if n_weights >= size:
            return f"{n_weights / size:.2g}{unit}" if n_weights < 10 * size else f"{n_weights / size:.0f}{unit}"
    return str(n_weights)


def _check_space(target: Path, total_bytes: int) -> None:
    folder = target.parent
    if not folder.is_dir():
        raise RequestError(f"{folder} is no folder; expected one that exists to write {target.name} to")
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < total_bytes + _HEADER_MARGIN_BYTES:
        raise RequestError(
            f"{target}: needs {total_bytes / 1e9:.2f} GB, {folder} has {free_bytes / 1e9:.2f} GB free; free some "
            "space, or choose a smaller type with --type"
        )
