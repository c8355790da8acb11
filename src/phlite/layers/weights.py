"""The tensors of a checkpoint under Hugging Face names, with a record of which were used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from phlite import ops
from phlite.errors import ModelFileError, UnsupportedModelError
from phlite.gguf import MappedFile, Tensor, read_mapped
from phlite.layers.watch import InputWatch
from phlite.tiles import TileSource

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class Weights:
    """Checked access to a checkpoint's tensors; every one of them must be taken, or the model is not the one meant.

    tensors: by their names in the file
    source:  the file's name, for messages
    names:   Hugging Face name -> name in the file, `*` standing for the numbers of layer and expert, in this order;
             None where both are the same
    files:   the open files that tensors may be views of: what is wanted once is read from them
    tiles:   where packed matrices are looked for and kept; None: they are packed into memory
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        *,
        source: str,
        names: Mapping[str, str] | None = None,
        files: Sequence[MappedFile] = (),
        tiles: TileSource | None = None,
    ) -> None:
        self.source = source
        self.files = files
        self.tiles = tiles
        self.watch = InputWatch()
        self._tensors = tensors
        self._names = names
        self._used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self._name_in_file(name) in self._tensors

    def matrix(self, name: str, *, n_rows: int | None, n_cols: int) -> Tensor:
        """Return the tensor [n_rows, n_cols], any number of rows for None.

        raises: ModelFileError if it is missing or has another shape
        """
        tensor = self._take(name)
        expected = (tensor.shape[0] if n_rows is None else n_rows, n_cols)
        if tensor.shape != expected:
            wanted = ("any" if n_rows is None else n_rows, n_cols)
            raise self._wrong_shape(tensor, f"[{wanted[0]}, {wanted[1]}]")
        return tensor

    def vector(self, name: str, size: int) -> NDArray[np.float32]:
        """Return the tensor [size] as float32, whatever it is stored as.

        raises: ModelFileError if it is missing, has another shape, cannot be read or holds a value that is not finite
        """
        tensor = self._take(name)
        if tensor.shape != (size,):
            raise self._wrong_shape(tensor, f"[{size}]")
        values = ops.dequantize(read_mapped(self.files, tensor.data), tensor.type, tensor.shape)
        if not np.isfinite(values).all():
            raise ModelFileError(
                f"{self.source}: tensor {tensor.name!r} holds NaN or infinite values; the file is damaged"
            )
        return values

    def leave_out(self, names: Iterable[str]) -> None:
        """Count tensors, by their names in the file, as used although nothing needs them."""
        self._used.update(names)

    def take_copy(self, name: str, *, of: str) -> None:
        """Take a tensor that only repeats another one, as some programs store a tied output matrix; or do nothing.

        raises: UnsupportedModelError if the two differ: then one of them would not be used
        """
        if name not in self:
            return
        copy, original = self._take(name), self._take(of)
        same = (copy.shape, copy.type) == (original.shape, original.type)
        if not same or not np.array_equal(copy.data, original.data):
            raise UnsupportedModelError(
                f"{self.source}: tensor {copy.name!r} differs from {original.name!r}, but the config ties both "
                "(tie_word_embeddings); expected one matrix, so the file or the config is not this model's"
            )

    def check_all_used(self) -> None:
        """Raise UnsupportedModelError if a tensor was not taken: leaving it out would compute another model."""
        unused = [name for name in self._tensors if name not in self._used]
        if unused:
            names = ", ".join(repr(name) for name in unused[:4]) + (", ..." if len(unused) > 4 else "")
            raise UnsupportedModelError(
                f"{self.source}: {len(unused)} of {len(self._tensors)} tensors have no place in this architecture: "
                f"{names}; expected only the tensors of a plain checkpoint of it"
            )

    def _take(self, name: str) -> Tensor:
        name_in_file = self._name_in_file(name)
        tensor = self._tensors.get(name_in_file)
        if tensor is None:
            raise ModelFileError(
                f"{self.source}: tensor {name_in_file!r} is missing; the file is incomplete or its metadata promises "
                "another model"
            )
        self._used.add(name_in_file)
        return tensor

    def _name_in_file(self, name: str) -> str:
        if self._names is None:
            return name
        in_file = self._names[_NUMBER.sub("*", name)]
        for number in _NUMBER.findall(name):
            in_file = in_file.replace("*", number, 1)
        return in_file

    def _wrong_shape(self, tensor: Tensor, expected: str) -> ModelFileError:
        return ModelFileError(
            f"{self.source}: tensor {tensor.name!r} has shape {list(tensor.shape)}, expected {expected} by the "
            "metadata; the file is damaged or was written by a faulty tool"
        )
