"""A GGUF file with other block formats: `phlite quantize`.

Metadata is kept as it is, but for what describes the weights. Tensors are read from the mapped file a slice of rows at
a time and written one after the other, so that one quantised tensor and a slice of floats are in memory.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from phlite import ops
from phlite.convert.importance import ORIGIN_KEYS, ImportanceMatrix
from phlite.convert.mixture import MixtureTraits, choose_mixture
from phlite.errors import ModelFileError, RequestError, UnsupportedModelError
from phlite.gguf import FileType, GGMLType, GGUFFile, GGUFWriter, Tensor, ValueType, quoted, tensor_bytes
from phlite.models.registry import ARCHITECTURES

__all__ = ["plan_types", "quantize_file"]

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

Progress = Callable[[str, int], None]
"""Called with a tensor's name and its bytes in the source when it was written."""

FLOAT_TYPES: Final = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)
SLICE_ELEMENTS: Final = 8 << 20
_QUANTISATION_VERSION: Final = 2
_HEADER_MARGIN_BYTES: Final = 16 << 20
_REPLACED_KEYS: Final = frozenset(
    {
        *("general.quantization_version", "general.file_type", "general.alignment"),
        *("split.no", "split.count", "split.tensors.count"),
        *ORIGIN_KEYS,
    }
)


def quantize_file(
    file: GGUFFile,
    path: str | os.PathLike[str],
    file_type: FileType,
    *,
    importance: ImportanceMatrix | None = None,
    allow_requantize: bool = False,
    force: bool = False,
    pool: ops.ThreadPool,
    progress: Progress | None = None,
) -> Path:
    """Write a model file again with the formats of a file type; returns its path.

    The file gets its name when it is complete. A split file becomes one.

    file_type:        a name of `mixture.BASE_TYPES`
    importance:       how much each column of the matrices counts; matrices that it does not know count all alike
    allow_requantize: also take matrices that are quantised already, whose errors then add up
    force:            replace a file that is there
    progress:         called after each tensor
    raises:           RequestError where the file exists, is the source, or the disk is too full, where matrices are
                      quantised already, and where the importance matrix is of another model;
                      ModelFileError for a value that is not finite; OSError where the system cannot write
    """
    target = Path(path)
    _check_target(target, file, force)
    types = plan_types(file, file_type, has_importance=importance is not None)
    if not allow_requantize:
        _check_not_quantised(file, types)
    if importance is not None:
        importance.check_fits({name: file.tensors[name].shape for name in types}, source=file.metadata.source)
    total_bytes = sum(tensor_bytes(types.get(name, t.type), t.shape) for name, t in file.tensors.items())
    _check_space(target, total_bytes)
    with GGUFWriter(target) as writer:
        for key in file.metadata:
            if key not in _REPLACED_KEYS:
                writer.add(key, file.metadata[key], file.metadata.value_type(key))
        writer.add("general.quantization_version", _QUANTISATION_VERSION, ValueType.UINT32)
        writer.add("general.file_type", int(file_type), ValueType.UINT32)
        if importance is not None:
            for key, value in importance.origin_fields().items():
                writer.add(key, value, ValueType.UINT32 if isinstance(value, int) else ValueType.STRING)
        for name, tensor in file.tensors.items():
            ggml_type = types.get(name, tensor.type)
            weights = importance.weights(name, tensor.shape) if importance is not None and name in types else None
            data = functools.partial(_encode, file, tensor, ggml_type, weights, pool, progress)
            writer.add_tensor(name, tensor.shape, ggml_type, data)
    return target


def plan_types(file: GGUFFile, file_type: FileType, *, has_importance: bool = False) -> dict[str, GGMLType]:
    """Return the format of each matrix under a file type; the tensors that are not in it stay as they are.

    raises: UnsupportedModelError for a file that is no model of the family
    """
    metadata = file.metadata
    kind, architecture = metadata.get_str("general.type", "model"), metadata.get_str("general.architecture", "")
    if kind != "model" or architecture not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{metadata.source}: the file holds a {quoted(kind)} of architecture {quoted(architecture)}, expected a "
            f"model of one of {', '.join(ARCHITECTURES)}"
        )
    n_heads = metadata.get_int(f"{architecture}.attention.head_count", minimum=1)
    traits = MixtureTraits(
        n_layers=metadata.get_int(f"{architecture}.block_count", minimum=1),
        n_heads=n_heads,
        n_kv_heads=metadata.get_int(f"{architecture}.attention.head_count_kv", n_heads, minimum=1),
        n_experts=metadata.get_int(f"{architecture}.expert_count", 0),
    )
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    return choose_mixture(shapes, file_type, traits, has_importance=has_importance)


def _encode(
    file: GGUFFile,
    tensor: Tensor,
    ggml_type: GGMLType,
    weights: F32 | None,
    pool: ops.ThreadPool,
    progress: Progress | None,
) -> U8:
    """Return a tensor's bytes in a type, and give its pages back. weights: float32[matrices, n_cols]."""
    data = tensor.data
    if tensor.type is not ggml_type:
        matrices = data.reshape(prod(tensor.shape[:-2]), -1)
        data = np.empty((len(matrices), tensor_bytes(ggml_type, tensor.shape[-2:])), np.uint8)
        try:
            for i, matrix in enumerate(matrices):
                importance = None if weights is None else weights[i]
                _encode_matrix(matrix.reshape(tensor.shape[-2], -1), tensor, ggml_type, importance, pool, out=data[i])
        except RequestError as error:
            raise ModelFileError(f"{file.metadata.source}: tensor {tensor.name!r}: {error}") from None
        file.release(tensor)
    if progress is not None:
        progress(tensor.name, tensor.data.nbytes)
    return data


def _encode_matrix(
    rows: U8, tensor: Tensor, ggml_type: GGMLType, importance: F32 | None, pool: ops.ThreadPool, *, out: U8
) -> None:
    """Write a matrix to `out`, some rows at a time. rows: uint8[n_rows, row bytes]."""
    n_cols = tensor.shape[-1]
    row_bytes = tensor_bytes(ggml_type, (n_cols,))
    step = max(SLICE_ELEMENTS // n_cols, 1)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        source_type, data = tensor.type, part.reshape(-1)
        if source_type not in FLOAT_TYPES:
            data = ops.dequantize(data, source_type, (len(part), n_cols)).view(np.uint8).reshape(-1)
            source_type = GGMLType.F32
        out[start * row_bytes : (start + len(part)) * row_bytes] = ops.quantize_bytes(
            data, source_type, (len(part), n_cols), ggml_type, importance=importance, pool=pool
        )


def _check_target(target: Path, file: GGUFFile, force: bool) -> None:
    if any(target.exists() and target.samefile(part) for part in file.paths):
        raise RequestError(f"{target} is the file that is read; choose another name for the result")
    if target.exists() and not force:
        raise RequestError(f"{target} is there already; choose another name, or replace it with --force (force=True)")
    if not target.parent.is_dir():
        raise RequestError(f"{target.parent} is no folder; expected one that exists to write {target.name} to")


def _check_not_quantised(file: GGUFFile, types: dict[str, GGMLType]) -> None:
    changed = [file.tensors[name] for name, kind in types.items() if kind is not file.tensors[name].type]
    quantised = [tensor for tensor in changed if tensor.type not in FLOAT_TYPES]
    if quantised:
        raise RequestError(
            f"{file.metadata.source}: {len(quantised)} matrices are quantised already, such as {quantised[0].name} in "
            f"{quantised[0].type.name}; quantising them again adds up errors. Begin with an F16, BF16 or F32 file, or "
            "accept that with --allow-requantize (allow_requantize=True)"
        )


def _check_space(target: Path, total_bytes: int) -> None:
    free_bytes = shutil.disk_usage(target.parent).free
    if free_bytes < total_bytes + _HEADER_MARGIN_BYTES:
        raise RequestError(
            f"{target}: needs {total_bytes / 1e9:.2f} GB, {target.parent} has {free_bytes / 1e9:.2f} GB free; free "
            "some space, or choose a smaller type"
        )
