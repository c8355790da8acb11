"""Write GGUF files: metadata first, then tensors one at a time, and a finished file or none."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from phlite.errors import RequestError, ShapeError
from phlite.gguf.encode import array_bytes, scalar_bytes, string_bytes, utf8
from phlite.gguf.header import (
    DEFAULT_ALIGNMENT,
    MAX_DIMS,
    MAX_KEY_BYTES,
    MAX_NAME_BYTES,
    MIN_ALIGNMENT,
)
from phlite.gguf.types import GGMLType, ValueType, tensor_bytes

TensorData: TypeAlias = npt.NDArray[np.generic]

_VERSION: Final = 3
_DTYPE_OF_TYPE: Final[dict[GGMLType, np.dtype[np.generic]]] = {
    GGMLType.F32: np.dtype("<f4"),
    GGMLType.F16: np.dtype("<f2"),
    GGMLType.BF16: np.dtype("<u2"),
}


@dataclass(frozen=True, eq=False)
class _Pending:
    """A tensor that waits to be written."""

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    data: TensorData | Callable[[], TensorData]
    n_bytes: int


class GGUFWriter:
    """Collects metadata and tensors, and writes the file when it is closed; a context manager.

        with GGUFWriter("model.gguf") as writer:
            writer.add("general.architecture", "phi3")
            writer.add("phi3.block_count", 2, ValueType.UINT32)
            writer.add_tensor("output_norm.weight", (256,), GGMLType.F32, norm)

    The bytes go to a temporary file beside the target, which takes the target's name once all is written. Leaving
    the block by an exception, or calling discard(), writes nothing.
    """

    def __init__(self, path: str | os.PathLike[str], *, alignment: int = DEFAULT_ALIGNMENT) -> None:
        """Prepare to write to path.

        alignment: of each tensor's data in bytes, a power of two of at least 8; written only where it is not 32
        raises:    RequestError for another alignment
        """
        if alignment < MIN_ALIGNMENT or alignment & (alignment - 1):
            raise RequestError(f"alignment {alignment}: expected a power of two of at least {MIN_ALIGNMENT}")
        self.path = Path(path)
        self._alignment = alignment
        self._fields: dict[str, bytes] = {}
        self._tensors: dict[str, _Pending] = {}
        self._closed = False
        if alignment != DEFAULT_ALIGNMENT:
            self._fields["general.alignment"] = scalar_bytes(alignment, ValueType.UINT32, "general.alignment")

    def add(
        self,
        key: str,
        value: str | bool | int | float | Sequence[str] | Sequence[int] | Sequence[float] | TensorData,
        value_type: ValueType | None = None,
    ) -> None:
        """Add a metadata value.

        value:      str, bool, int, float or numpy scalar; or an array: a list or a one-dimensional numpy array
        value_type: the type in the file, of the elements for an array. Left out, it is STRING for str, BOOL for bool
                    and the dtype's for numpy values; Python numbers have no type of their own and need it.
        raises:     RequestError if the key is empty, too long or there already, if the value does not fit the type,
                    or after closing
        """
        self._check_open()
        n_key_bytes = len(utf8(key, "a metadata key"))
        if not 0 < n_key_bytes <= MAX_KEY_BYTES:
            raise RequestError(f"metadata key {key[:60]!r}: got {n_key_bytes} bytes, expected 1 to {MAX_KEY_BYTES}")
        if key in self._fields:
            raise RequestError(f"metadata key {key!r} is there already; each key is written once")
        if key == "general.alignment":
            raise RequestError("metadata key 'general.alignment': pass alignment= to GGUFWriter instead")
        if isinstance(value, (str, bool, int, float, np.generic)):
            self._fields[key] = scalar_bytes(value, value_type, key)
        else:
            self._fields[key] = array_bytes(value, value_type, key)

    def add_tensor(
        self, name: str, shape: Sequence[int], ggml_type: GGMLType, data: TensorData | Callable[[], TensorData]
    ) -> None:
        """Add a tensor, to be written when the file is closed.

        name:  1 to 64 bytes of UTF-8
        shape: row-major, a matrix is (out, in); the last dimension a multiple of the type's block
        data:  C-contiguous array of exactly the tensor's bytes: uint8 blocks of any shape, or float32 for F32,
               float16 for F16, uint16 for BF16; or a function that returns it, called while writing and forgotten
               after, so that only one tensor is in memory
        raises: RequestError or ShapeError on misuse; for a function's result, when the file is closed
        """
        self._check_open()
        if not 0 < len(utf8(name, "a tensor name")) <= MAX_NAME_BYTES:
            raise RequestError(f"tensor name {name!r}: expected 1 to {MAX_NAME_BYTES} bytes")
        if name in self._tensors:
            raise RequestError(f"tensor {name!r} is there already; each name is written once")
        if not 1 <= len(shape) <= MAX_DIMS or min(shape) < 1:
            raise ShapeError(f"tensor {name!r}: shape {tuple(shape)}, expected 1 to {MAX_DIMS} dimensions above 0")
        ggml_type = GGMLType(ggml_type)
        try:
            n_bytes = tensor_bytes(ggml_type, shape)
        except ValueError as error:
            raise ShapeError(f"tensor {name!r}: {error}") from None
        tensor = _Pending(name, tuple(int(dim) for dim in shape), ggml_type, data, n_bytes)
        if not callable(data):
            _check_data(tensor, data)
        self._tensors[name] = tensor

    def close(self) -> None:
        """Write the file and give it its name; a second call does nothing.

        raises: OSError where the system cannot write; ShapeError where a function returned a wrong array. Neither
                leaves a file behind.
        """
        if self._closed:
            return
        self._closed = True
        temporary = self.path.with_name(f"{self.path.name[:100]}.{os.urandom(4).hex()}.part")
        try:
            with temporary.open("xb") as file:
                self._write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def discard(self) -> None:
        """Forget everything; nothing is written."""
        self._closed = True
        self._tensors = {}

    def __enter__(self) -> GGUFWriter:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is None:
            self.close()
        else:
            self.discard()

    def _check_open(self) -> None:
        if self._closed:
            raise RequestError(f"{self.path}: the writer is closed; add everything before")

    def _write(self, file: BinaryIO) -> None:
        header = b"".join(self._header_parts())
        file.write(header)
        file.write(bytes(-len(header) % self._alignment))
        for tensor in self._tensors.values():
            data = tensor.data() if callable(tensor.data) else tensor.data
            _check_data(tensor, data)
            file.write(data.reshape(-1).view(np.uint8).data)
            file.write(bytes(-tensor.n_bytes % self._alignment))

    def _header_parts(self) -> Iterator[bytes]:
        yield b"GGUF" + struct.pack("<IQQ", _VERSION, len(self._tensors), len(self._fields))
        for key, field in self._fields.items():
            yield string_bytes(key, "a metadata key")
            yield field
        offset = 0
        for tensor in self._tensors.values():
            dims = tensor.shape[::-1]
            yield string_bytes(tensor.name, "a tensor name")
            yield struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.type, offset)
            offset += -(-tensor.n_bytes // self._alignment) * self._alignment


def _check_data(tensor: _Pending, data: TensorData) -> None:
    expected = (np.dtype(np.uint8), _DTYPE_OF_TYPE.get(tensor.type))
    if not isinstance(data, np.ndarray) or data.dtype not in expected:
        got = data.dtype if isinstance(data, np.ndarray) else type(data).__name__
        names = " or ".join(str(dtype) for dtype in expected if dtype is not None)
        raise ShapeError(f"tensor {tensor.name!r} of type {tensor.type.name}: got {got}, expected {names}")
    if data.nbytes != tensor.n_bytes or not data.flags.c_contiguous:
        raise ShapeError(
            f"tensor {tensor.name!r} of shape {tensor.shape} and type {tensor.type.name}: got an array of shape "
            f"{data.shape} and {data.nbytes} bytes, expected {tensor.n_bytes} contiguous bytes"
        )
