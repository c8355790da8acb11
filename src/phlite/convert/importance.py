"""Importance matrices: how much each column of a weight matrix counts, as the mean square of its inputs over a text.

A quantiser that knows them keeps small errors where the inputs are large. Files are llama.cpp's, both of its formats.
Source: llama.cpp tools/imatrix/imatrix.cpp, tools/quantize/quantize.cpp.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from phlite.errors import ModelFileError, RequestError
from phlite.gguf import GGMLType, GGUFWriter, ValueType, load_gguf, quoted

__all__ = ["ORIGIN_KEYS", "Importance", "ImportanceMatrix", "load_importance", "save_importance"]

F32 = npt.NDArray[np.float32]

ORIGIN_KEYS: Final = tuple(f"quantize.imatrix.{key}" for key in ("file", "dataset", "entries_count", "chunks_count"))
"""Keys of a quantised file that say which importance matrix was used."""

_MAX_LEGACY_BYTES: Final = 1 << 30
_MAX_LEGACY_NAME: Final = 256


@dataclass(frozen=True, eq=False, slots=True)
class Importance:
    """What was seen by one tensor, a matrix or a stack of them.

    sums:   float32[matrices, n_cols], squares of the inputs added up; one row where the matrices were not told apart
    counts: float32[matrices], how many inputs
    """

    sums: F32
    counts: F32


@dataclass(frozen=True, eq=False, slots=True)
class ImportanceMatrix:
    """The importance of all matrices of a model, by tensor name in the file.

    source:     the file it came from, for messages and for the record
    datasets:   names of the texts
    n_chunks:   pieces of text that were seen
    chunk_size: tokens of each
    """

    entries: Mapping[str, Importance]
    source: str
    datasets: tuple[str, ...] = ()
    n_chunks: int = 0
    chunk_size: int = 512

    def weights(self, name: str, shape: tuple[int, ...]) -> F32 | None:
        """Return float32[matrices, n_cols], the mean squares for a tensor, None where it is not in the matrix.

        An expert that saw nothing, or only zeros, gets ones.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        n_matrices = prod(shape[:-2])
        sums = entry.sums.reshape(n_matrices, shape[-1])
        counts = np.broadcast_to(entry.counts, n_matrices)[:, None]
        known = (counts > 0) & (sums.max(axis=1, keepdims=True) > 0)
        means: F32 = np.where(known, sums / np.where(counts > 0, counts, 1), 1).astype(np.float32)
        return means

    def missing(self, names: Mapping[str, object]) -> list[str]:
        """Return the tensors of these that are not in the matrix."""
        return [name for name in names if name not in self.entries]

    def check_fits(self, shapes: Mapping[str, tuple[int, ...]], *, source: str) -> None:
        """Raise RequestError unless some of these tensors are in the matrix, and all of them in their own shape.

        source: the model's file, for the message
        """
        if len(self.missing(shapes)) == len(shapes):
            raise RequestError(
                f"{self.source} knows no matrix of {source}; expected the importance matrix of this model"
            )
        for name, shape in shapes.items():
            entry = self.entries.get(name)
            if entry is None:
                continue
            n_matrices = prod(shape[:-2])
            if entry.sums.size != n_matrices * shape[-1] or len(entry.counts) not in (1, n_matrices):
                raise RequestError(
                    f"{self.source}: {quoted(name)} has {entry.sums.size} values, expected the "
                    f"{n_matrices * shape[-1]} columns of the tensor in {source}; it is of another model"
                )

    def origin_fields(self) -> dict[str, str | int]:
        """Return what a quantised file says about the matrix, by key."""
        fields: dict[str, str | int] = {"quantize.imatrix.file": Path(self.source).name}
        if self.datasets:
            fields["quantize.imatrix.dataset"] = self.datasets[0]
        fields["quantize.imatrix.entries_count"] = len(self.entries)
        if self.n_chunks:
            fields["quantize.imatrix.chunks_count"] = self.n_chunks
        return fields


def load_importance(path: str | os.PathLike[str]) -> ImportanceMatrix:
    """Return the importance matrix in a file of llama.cpp's, GGUF or the older .dat.

    raises: ModelFileError where the file is missing, damaged, or no importance matrix
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be opened: {error}") from None
    matrix = _load_gguf(path) if is_gguf else _load_legacy(path)
    if not matrix.entries:
        raise ModelFileError(f"{path} holds no entries; expected an importance matrix")
    for name, entry in matrix.entries.items():
        if (
            not (np.isfinite(entry.sums).all() and np.isfinite(entry.counts).all())
            or min(entry.sums.min(), entry.counts.min()) < 0
        ):
            raise ModelFileError(f"{path}: entry {quoted(name)} holds NaN, infinite or negative values")
    return matrix


def save_importance(path: str | os.PathLike[str], matrix: ImportanceMatrix) -> None:
    """Write the matrix as llama.cpp writes it: `NAME.in_sum2` and `NAME.counts` of every tensor, sorted by name."""
    with GGUFWriter(path) as writer:
        writer.add("general.type", "imatrix")
        writer.add("imatrix.datasets", list(matrix.datasets), ValueType.STRING)
        writer.add("imatrix.chunk_count", matrix.n_chunks, ValueType.UINT32)
        writer.add("imatrix.chunk_size", matrix.chunk_size, ValueType.UINT32)
        for name in sorted(matrix.entries):
            entry = matrix.entries[name]
            writer.add_tensor(f"{name}.in_sum2", entry.sums.shape, GGMLType.F32, entry.sums)
            writer.add_tensor(f"{name}.counts", (len(entry.counts), 1), GGMLType.F32, entry.counts)


def _load_gguf(path: Path) -> ImportanceMatrix:
    with load_gguf(path) as file:
        kind = file.metadata.get_str("general.type", "model")
        if kind != "imatrix":
            raise ModelFileError(f"{path}: the file holds a {quoted(kind)}, expected an 'imatrix'")
        values = {}
        for name, tensor in file.tensors.items():
            if tensor.type is not GGMLType.F32 or not name.endswith((".in_sum2", ".counts")):
                raise ModelFileError(
                    f"{path}: tensor {quoted(name)} of type {tensor.type.name}, expected names in .in_sum2 and .counts "
                    "of type F32"
                )
            values[name] = tensor.data.view(np.float32).copy()
        entries = {}
        for name, sums in values.items():
            if not name.endswith(".in_sum2"):
                continue
            base = name.removesuffix(".in_sum2")
            counts = values.get(f"{base}.counts")
            if counts is None or sums.size % counts.size:
                raise ModelFileError(f"{path}: tensor {quoted(name)} has no counts that fit its {sums.size} values")
            entries[base] = Importance(sums.reshape(counts.size, -1), counts)
        return ImportanceMatrix(
            entries,
            source=str(path),
            datasets=tuple(file.metadata.get_str_array("imatrix.datasets", [])),
            n_chunks=file.metadata.get_int("imatrix.chunk_count", 0, minimum=0),
            chunk_size=file.metadata.get_int("imatrix.chunk_size", 512, minimum=1),
        )


@dataclass(slots=True)
class _Cursor:
    """Reads a legacy file; every length is checked against what is left."""

    data: bytes
    path: Path
    offset: int = field(default=0)

    def take(self, n_bytes: int) -> bytes:
        if not 0 <= n_bytes <= len(self.data) - self.offset:
            raise ModelFileError(
                f"{self.path}: byte {self.offset}: {n_bytes} bytes wanted, {len(self.data) - self.offset} left; this "
                "is no importance matrix, or a damaged one"
            )
        self.offset += n_bytes
        return self.data[self.offset - n_bytes : self.offset]

    def integer(self, highest: int) -> int:
        start = self.offset
        value: int = struct.unpack("<i", self.take(4))[0]
        if not 0 <= value <= highest:
            raise ModelFileError(
                f"{self.path}: byte {start}: got {value}, expected 0 to {highest}; this is no importance matrix, or a "
                "damaged one"
            )
        return value

    def text(self, longest: int) -> str:
        start = self.offset
        try:
            return self.take(self.integer(longest)).decode("utf-8")
        except UnicodeDecodeError:
            raise ModelFileError(f"{self.path}: byte {start}: a name that is not UTF-8") from None


def _load_legacy(path: Path) -> ImportanceMatrix:
    """Read entries of i32 name length, name, i32 calls, i32 values, values; then i32 chunks, i32 length, text's name.

    The values are mean squares times the number of calls.
    """
    if path.stat().st_size > _MAX_LEGACY_BYTES:
        raise ModelFileError(f"{path}: {path.stat().st_size} bytes, expected an importance matrix of at most 1 GiB")
    cursor = _Cursor(path.read_bytes(), path)
    entries = {}
    for _ in range(cursor.integer(len(cursor.data) // 12)):
        name = cursor.text(_MAX_LEGACY_NAME)
        n_calls = cursor.integer(2**31 - 1)
        values = np.frombuffer(cursor.take(4 * cursor.integer(len(cursor.data) // 4)), "<f4")
        if not values.size:
            raise ModelFileError(f"{path}: entry {quoted(name)} has no values")
        entries[name] = Importance(values.reshape(1, -1), np.array([max(n_calls, 1)], np.float32))
    # Files of the first months end here.
    is_over = cursor.offset == len(cursor.data)
    n_chunks = 0 if is_over else cursor.integer(2**31 - 1)
    dataset = "" if is_over else cursor.text(1 << 16)
    return ImportanceMatrix(entries, source=str(path), datasets=(dataset,) if dataset else (), n_chunks=n_chunks)
