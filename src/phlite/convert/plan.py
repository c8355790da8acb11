"""What a converted model file will hold: keys of the architecture, and each tensor with where its values come from.

A `Conversion` says everything and reads next to nothing, so it serves three: writing the file, choosing block formats
(`phlite convert --type`), and quantising while a checkpoint is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from phlite.checkpoint import Checkpoint
from phlite.gguf import ValueType
from phlite.layers.weights import Weights

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

Value: TypeAlias = (
    "str | bool | int | float | Sequence[str] | Sequence[int] | Sequence[float] | npt.NDArray[np.generic]"
)
Field: TypeAlias = "tuple[Value, ValueType | None]"
"""A metadata value and its type in the file; None for what `GGUFWriter.add` knows by itself."""


def u32(value: int) -> Field:
    """Return the field of a count."""
    return value, ValueType.UINT32


def f32(value: float) -> Field:
    """Return the field of a number."""
    return value, ValueType.FLOAT32


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the file.

    name:       in the file
    shape:      row-major, a matrix is (out, in), a stack of expert matrices (experts, out, in)
    parts:      tensors of the checkpoint whose rows, in this order, are its rows; () for given values
    row_order:  int64[rows] where the rows are ordered anew: row i of the tensor is row row_order[i] of the parts
    values:     float32 values that are no tensor of the checkpoint as it is, such as LongRoPE's lists
    keeps_f32:  stored as F32 whatever type was asked for: norms, biases, routers, lists
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[str, ...] = ()
    row_order: I64 | None = None
    values: F32 | None = None
    keeps_f32: bool = False


@dataclass(frozen=True, slots=True)
class Conversion:
    """The model part of a file; the vocabulary is not in it.

    architecture: `general.architecture`
    fields:       keys without the architecture's prefix -> value and type
    tensors:      in the order of the file
    """

    architecture: str
    fields: Mapping[str, Field]
    tensors: tuple[PlannedTensor, ...]

    def tensor(self, name: str) -> PlannedTensor | None:
        """Return the tensor of this name in the file, None where there is none."""
        return next((tensor for tensor in self.tensors if tensor.name == name), None)

    def number(self, key: str, default: int = 0) -> int:
        """Return an integer field, such as "block_count"."""
        value = self.fields[key][0] if key in self.fields else default
        assert isinstance(value, int)
        return value


class Planner:
    """Collects the tensors of a file from those of a checkpoint; shapes are checked, and each must find its place."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.weights = Weights(checkpoint.tensors, source=checkpoint.source)
        self._planned: list[PlannedTensor] = []

    def __contains__(self, name: str) -> bool:
        return name in self.weights

    def matrix(
        self,
        name: str,
        parts: Mapping[str, int],
        *,
        n_cols: int,
        row_order: I64 | None = None,
        keeps_f32: bool = False,
    ) -> None:
        """Plan a matrix of n_cols columns from parts, tensor of the checkpoint -> rows that it must have."""
        for part, n_rows in parts.items():
            self.weights.matrix(part, n_rows=n_rows, n_cols=n_cols)
        shape = (sum(parts.values()), n_cols)
        self._planned.append(PlannedTensor(name, shape, tuple(parts), row_order, keeps_f32=keeps_f32))

    def stack(self, name: str, parts: Sequence[str], *, n_rows: int, n_cols: int) -> None:
        """Plan the stack of equal matrices, one behind the other, as llama.cpp stores the experts of a layer."""
        for part in parts:
            self.weights.matrix(part, n_rows=n_rows, n_cols=n_cols)
        self._planned.append(PlannedTensor(name, (len(parts), n_rows, n_cols), tuple(parts)))

    def vector(self, name: str, part: str, size: int, *, order: I64 | None = None) -> None:
        """Plan a norm or a bias, stored as F32, perhaps in another order; raises where a value is not finite."""
        values = self.weights.vector(part, size)
        ordered = None if order is None else values[order]
        self._planned.append(PlannedTensor(name, (size,), (part,), values=ordered, keeps_f32=True))

    def values(self, name: str, values: Sequence[float] | F32) -> None:
        """Plan a tensor of given values, stored as F32."""
        array = np.asarray(values, np.float32)
        self._planned.append(PlannedTensor(name, array.shape, values=array, keeps_f32=True))

    def finish(self, architecture: str, fields: Mapping[str, Field]) -> Conversion:
        """Return the conversion; raises UnsupportedModelError if a tensor of the checkpoint has no place in it."""
        self.weights.check_all_used()
        return Conversion(architecture, dict(fields), tuple(self._planned))
