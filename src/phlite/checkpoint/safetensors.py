"""Map one safetensors file: every length, offset and product is checked before it is used.

Layout: u64 length n of the header (little-endian), n bytes of JSON, tensor data. The JSON maps a tensor's name to
{"dtype": "BF16", "shape": [out, in], "data_offsets": [begin, end]}, offsets counted from the start of the data, and
"__metadata__" to strings. Tensors lie row-major, one behind the other without a hole, up to the end of the file.
Source: huggingface/safetensors README.md, "Format".
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from phlite.checkpoint.json_file import parse_json
from phlite.errors import ModelFileError, UnsupportedModelError
from phlite.gguf import GGMLType, Tensor, quoted
from phlite.gguf.mapped import MappedFile, map_file

# Far above any real file, low enough that a hostile header costs less than a second.
MAX_HEADER_BYTES: Final = 1 << 24
MAX_TENSORS: Final = 1 << 16
MAX_NAME_BYTES: Final = 256
MAX_DIMS: Final = 8

TYPE_OF_DTYPE: Final = {"F32": GGMLType.F32, "F16": GGMLType.F16, "BF16": GGMLType.BF16}
OTHER_DTYPES: Final = frozenset(
    [
        *("BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64", "F64", "C64"),
        *("F8_E4M3", "F8_E5M2", "F8_E8M0", "F6_E2M3", "F6_E3M2", "F4"),
    ]
)
_BYTES: Final = {GGMLType.F32: 4, GGMLType.F16: 2, GGMLType.BF16: 2}
_LENGTH_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies; shape is row-major, offset_bytes counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    offset_bytes: int
    n_bytes: int

    def view(self, mapped: MappedFile, path: Path) -> Tensor:
        """Return the tensor as a view of the mapped file."""
        data = np.frombuffer(mapped, np.uint8, self.n_bytes, self.offset_bytes)
        return Tensor(self.name, self.shape, self.type, data, path, self.offset_bytes)


def map_safetensors(path: Path, opened: ExitStack) -> tuple[MappedFile, list[Entry]]:
    """Map a file; return the map, which `opened` closes, and its tensors in the order of the data.

    raises: ModelFileError where the file is missing, truncated or inconsistent;
            UnsupportedModelError for a tensor that is not F32, F16 or BF16
    """
    mapped = map_file(path, opened, what="a safetensors file", min_bytes=_LENGTH_BYTES + 2)
    n_header = int.from_bytes(mapped[:_LENGTH_BYTES], "little")
    data_start = _LENGTH_BYTES + n_header
    if n_header > MAX_HEADER_BYTES:
        raise _broken(path, f"a header of {n_header} bytes", f"at most {MAX_HEADER_BYTES}; is it a safetensors file?")
    if data_start > len(mapped):
        raise _broken(
            path,
            f"a header of {n_header} bytes in a file of {len(mapped)}",
            "a header within the file; a download may have stopped early",
        )
    header = parse_json(mapped[_LENGTH_BYTES:data_start], source=f"{path}: header")
    header.pop("__metadata__", None)  # notes of the program that wrote it
    if len(header) > MAX_TENSORS:
        raise _broken(path, f"{len(header)} tensors", f"at most {MAX_TENSORS}")
    entries = [_entry(path, name, value, data_start, len(mapped)) for name, value in header.items()]
    entries.sort(key=lambda entry: entry.offset_bytes)
    _check_layout(path, entries, data_start, len(mapped))
    return mapped, entries


def _entry(path: Path, name: str, value: object, data_start: int, size: int) -> Entry:
    what = f"tensor {quoted(name)}"
    if not 0 < len(name.encode("utf-8", "surrogatepass")) <= MAX_NAME_BYTES:
        raise _broken(path, f"the name {quoted(name)}", f"1 to {MAX_NAME_BYTES} bytes")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        got = sorted(value)[:8] if isinstance(value, dict) else type(value).__name__
        raise _broken(path, f"{quoted(str(got))} for {what}", "an object with dtype, shape and data_offsets")
    ggml_type = _type(path, what, value["dtype"])
    shape = _integers(path, f"the shape of {what}", value["shape"], range(MAX_DIMS + 1))
    begin, end = _integers(path, f"the data_offsets of {what}", value["data_offsets"], range(2, 3))
    n_elements = 1
    for dim in shape:
        n_elements *= dim
    if n_elements == 0:
        raise _broken(path, f"shape {list(shape)} for {what}", "dimensions above 0")
    n_bytes = n_elements * _BYTES[ggml_type]
    if end - begin != n_bytes:
        raise _broken(
            path, f"bytes {begin} to {end} for {what} of {list(shape)} {ggml_type.name}", f"{n_bytes} of them"
        )
    if data_start + end > size:
        raise _broken(
            path,
            f"{what} at bytes {data_start + begin} to {data_start + end}",
            f"an end within the file's {size} bytes; a download may have stopped early",
        )
    return Entry(name, shape, ggml_type, data_start + begin, n_bytes)


def _type(path: Path, what: str, dtype: object) -> GGMLType:
    if isinstance(dtype, str) and dtype in TYPE_OF_DTYPE:
        return TYPE_OF_DTYPE[dtype]
    if isinstance(dtype, str) and dtype in OTHER_DTYPES:
        raise UnsupportedModelError(
            f"{path}: {what} has dtype {dtype}, which is not supported; expected {', '.join(TYPE_OF_DTYPE)}: take the "
            "original checkpoint, not one that another program quantised"
        )
    raise _broken(path, f"dtype {quoted(str(dtype))} for {what}", f"one of {', '.join(TYPE_OF_DTYPE)}")


def _integers(path: Path, what: str, value: object, lengths: range) -> tuple[int, ...]:
    """Return a list of integers from 0 to 2**48, of an allowed length."""
    if not isinstance(value, list) or len(value) not in lengths:
        raise _broken(path, f"{quoted(str(value))} for {what}", f"a list of {lengths.start} to {lengths.stop - 1}")
    for number in value:
        if type(number) is not int or not 0 <= number < 1 << 48:
            raise _broken(path, f"{quoted(str(number))} in {what}", "integers from 0 to 2**48")
    return tuple(value)


def _check_layout(path: Path, entries: list[Entry], data_start: int, size: int) -> None:
    """Refuse tensors that overlap, and bytes of the file that belong to none."""
    position, before = data_start, "the header"
    for entry in entries:
        if entry.offset_bytes != position:
            kind = "overlap" if entry.offset_bytes < position else "leave a hole"
            raise _broken(path, f"{before} and tensor {quoted(entry.name)} that {kind}", f"data at byte {position}")
        position, before = position + entry.n_bytes, f"tensor {quoted(entry.name)}"
    if position != size:
        raise _broken(path, f"{size - position} bytes behind {before}", "the end of the file there")


def _broken(path: Path, got: str, expected: str) -> ModelFileError:
    return ModelFileError(f"{path}: got {got}, expected {expected}")
