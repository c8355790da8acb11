"""A checkpoint whose tensors change their type as they are taken: quantising while loading, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from weakref import WeakValueDictionary

from phlite import ops
from phlite.checkpoint import Checkpoint
from phlite.convert.choose import choose_types
from phlite.convert.plan import PlannedTensor
from phlite.convert.registry import plan_conversion
from phlite.convert.tensor_data import encode_tensor
from phlite.gguf import FileType, GGMLType, Tensor

__all__ = ["converted_checkpoint"]


def converted_checkpoint(
    checkpoint: Checkpoint,
    file_type: FileType,
    *,
    pool: ops.ThreadPool,
    progress: Callable[[int], None] | None = None,
) -> Checkpoint:
    """Return the checkpoint with each tensor in the type that it would have in a GGUF file of this type.

    progress: called with the bytes that a tensor has in the checkpoint when it was converted
    raises: ModelFileError, UnsupportedModelError as plan_conversion; RequestError for a type that cannot be made
    """
    conversion = plan_conversion(checkpoint)
    types = choose_types(conversion, file_type)
    type_of_part = {part: types[tensor.name] for tensor in conversion.tensors for part in tensor.parts}
    return checkpoint.with_tensors(_ConvertedTensors(checkpoint, type_of_part, pool, progress))


class _ConvertedTensors(Mapping[str, Tensor]):
    """The tensors by their Hugging Face names, converted at each access and kept while somebody uses them."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        types: Mapping[str, GGMLType],
        pool: ops.ThreadPool,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._checkpoint = checkpoint
        self._types = types
        self._pool = pool
        self._progress = progress
        self._in_use: WeakValueDictionary[str, Tensor] = WeakValueDictionary()

    def __getitem__(self, name: str) -> Tensor:
        stored = self._checkpoint.tensors[name]
        if self._types[name] is stored.type or len(stored.shape) < 2:
            return stored
        converted = self._in_use.get(name)
        if converted is None:
            planned = PlannedTensor(name, stored.shape, (name,))
            data = encode_tensor(planned, self._types[name], self._checkpoint, pool=self._pool)
            converted = Tensor(name, stored.shape, self._types[name], data, stored.path, stored.offset_bytes)
            self._in_use[name] = converted
            if self._progress is not None:
                self._progress(stored.data.nbytes)
        return converted

    def __contains__(self, name: object) -> bool:
        return name in self._types

    def __iter__(self) -> Iterator[str]:
        return iter(self._types)

    def __len__(self) -> int:
        return len(self._types)
