"""Parse the header of one GGUF file: every count, length, offset and product is checked before it is used.

Layout (little-endian): "GGUF", u32 version, u64 tensors, u64 keys; keys of {string key, u32 type, value}; tensors of
{string name, u32 n_dims, u64 dims[n_dims], u32 type, u64 offset}; padding up to the alignment; tensor data.
Source: ggml/docs/gguf.md, versions 2 and 3, which do not differ in layout.
"""

from __future__ import annotations

import mmap
import struct
from array import array
from bisect import bisect_right
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from phlite.errors import UnsupportedModelError
from phlite.gguf.cursor import MAX_METADATA_BYTES, Cursor, quoted
from phlite.gguf.metadata import MetadataValue, StringArray
from phlite.gguf.types import BLOCK_SIZES, OTHER_GGML_TYPES, SCALAR_FORMATS, GGMLType, ValueType

# Far above any real file, low enough that a hostile header costs less than a second.
MAX_ARRAY_STRINGS: Final = 1 << 22
MAX_KEYS: Final = 1 << 16
MAX_TENSORS: Final = 1 << 16
MAX_KEY_BYTES: Final = 1024  # the format allows 65535, no key known has 80, and messages quote keys
MAX_NAME_BYTES: Final = 64
MAX_DIMS: Final = 4

DEFAULT_ALIGNMENT: Final = 32
MIN_ALIGNMENT: Final = 8

# Ollama's converter writes these lists for every Phi-3, without a number in them where a model has none.
ABSENT_IF_EMPTY: Final = frozenset({"rope_factors_long.weight", "rope_factors_short.weight"})

_MIN_KEY_ENTRY_BYTES: Final = 8 + 1 + 4 + 1
_MIN_TENSOR_ENTRY_BYTES: Final = 8 + 1 + 4 + 8 + 4 + 8


@dataclass(frozen=True)
class TensorEntry:
    """One row of the tensor table; shape is row-major, offset_bytes counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    offset_bytes: int
    n_bytes: int


@dataclass(frozen=True, eq=False)
class Header:
    """What one file says about itself."""

    version: int
    alignment: int
    values: dict[str, MetadataValue | StringArray]
    types: dict[str, ValueType]
    tensors: list[TensorEntry]


def parse_header(buffer: mmap.mmap, source: str) -> Header:
    """Return the checked header of a mapped file; source is its name for messages.

    raises: ModelFileError where the file is broken; UnsupportedModelError for a tensor type that is not implemented
    """
    return _Parser(buffer, source).parse()


class _Parser(Cursor):
    """The parts of a header in the order of the file; each method reads one and leaves the cursor behind it."""

    def __init__(self, buffer: mmap.mmap, source: str) -> None:
        super().__init__(buffer, source)
        self.array_strings = 0

    def parse(self) -> Header:
        version = self.parse_version()
        n_tensors = self.read_count("tensors", MAX_TENSORS)
        n_keys = self.read_count("metadata keys", MAX_KEYS)
        if n_keys * _MIN_KEY_ENTRY_BYTES + n_tensors * _MIN_TENSOR_ENTRY_BYTES > self.size - self.position:
            raise self.broken(8, f"{n_tensors} tensors and {n_keys} metadata keys", f"what fits into {self.size} bytes")
        values: dict[str, MetadataValue | StringArray] = {}
        types: dict[str, ValueType] = {}
        for _ in range(n_keys):
            self.parse_key(values, types)
        alignment = self.check_alignment(values)
        tensors = self.parse_tensors(n_tensors, alignment)
        return Header(version, alignment, values, types, tensors)

    def parse_version(self) -> int:
        magic = self.buffer[:4]
        if magic != b"GGUF":
            raise self.broken(0, repr(magic), "b'GGUF'; this is not a GGUF file")
        self.position = 4
        version = self.read_u32("the version")
        if version in (2, 3):
            return version
        if int.from_bytes(version.to_bytes(4, "little"), "big") in (1, 2, 3):
            raise self.broken(4, f"version {version:#x}", "a little-endian file; convert this big-endian one first")
        raise self.broken(4, f"version {version}", "version 2 or 3; convert the file with a current tool")

    # metadata

    def parse_key(self, values: dict[str, MetadataValue | StringArray], types: dict[str, ValueType]) -> None:
        start = self.position
        key = self.read_string("a metadata key", MAX_KEY_BYTES)
        if not key:
            raise self.broken(start, "an empty metadata key", "a name")
        if key in values:
            raise self.broken(start, f"metadata key {quoted(key)} a second time", "each key once")
        what = f"metadata key {quoted(key)}"
        value_type = self.read_value_type(what)
        if value_type is ValueType.ARRAY:
            value_type = self.read_value_type(f"elements of {what}")
            values[key] = self.read_array(value_type, what)
        else:
            values[key] = self.read_scalar(value_type, what)
        types[key] = value_type
        if self.position > MAX_METADATA_BYTES:
            raise self.broken(
                start, f"metadata that goes on to byte {self.position}", f"at most {MAX_METADATA_BYTES} bytes"
            )

    def read_value_type(self, what: str) -> ValueType:
        start = self.position
        number = self.read_u32(f"the type of {what}")
        if number > max(ValueType):
            raise self.broken(start, f"type {number} for {what}", f"a value type from 0 to {max(ValueType)}")
        return ValueType(number)

    def read_scalar(self, value_type: ValueType, what: str) -> str | int | float | bool:
        if value_type is ValueType.STRING:
            return self.read_string(what, MAX_METADATA_BYTES)
        start = self.position
        if value_type is ValueType.BOOL:
            number = self.take(1, what)[0]
            if number > 1:
                raise self.broken(start, f"the byte {number} for {what}", "0 or 1 for a bool")
            return bool(number)
        layout = SCALAR_FORMATS[value_type]
        value: int | float = struct.unpack(layout, self.take(struct.calcsize(layout), what))[0]
        return value

    def read_array(self, value_type: ValueType, what: str) -> MetadataValue | StringArray:
        start = self.position
        if value_type is ValueType.ARRAY:
            raise self.broken(start - 4, f"an array of arrays for {what}", "an array of numbers, bools or strings")
        count = self.read_u64(f"the length of {what}")
        if value_type is ValueType.STRING:
            return self.scan_strings(count, what)
        dtype = np.dtype(np.uint8 if value_type is ValueType.BOOL else SCALAR_FORMATS[value_type])
        array_start = self.position
        numbers = np.frombuffer(self.take(count * dtype.itemsize, f"{count} elements of {what}"), dtype)
        if value_type is ValueType.BOOL:
            if count and numbers.max() > 1:
                raise self.broken(array_start, f"a byte above 1 in {what}", "0 or 1 for each bool")
            numbers = numbers.view(np.bool_)
        return numbers

    def scan_strings(self, count: int, what: str) -> StringArray:
        """Find the bounds of `count` strings and leave their text for later."""
        start, limit = self.position, min(self.size, MAX_METADATA_BYTES)
        self.array_strings += count
        if self.array_strings > MAX_ARRAY_STRINGS:
            raise self.broken(
                start - 8, f"{count} strings for {what}", f"at most {MAX_ARRAY_STRINGS} strings in one file"
            )
        ends = _short_string_ends(self.buffer, start, count) or _string_ends(self.buffer, start, count)
        if len(ends) < count or (count and ends[-1] > limit):
            good = bisect_right(ends, limit)
            raise self.broken(
                ends[good - 1] if good else start,
                f"string {good} of {count} of {what} that ends behind byte {limit}",
                "a shorter string",
            )
        self.position = ends[-1] if count else start
        return StringArray(self.buffer[start : self.position], ends, start)

    def check_alignment(self, values: Mapping[str, MetadataValue | StringArray]) -> int:
        alignment = values.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is int and alignment >= MIN_ALIGNMENT and alignment & (alignment - 1) == 0:
            return alignment
        text = repr(alignment) if isinstance(alignment, (int, float, bool)) else type(alignment).__name__
        raise self.broken(self.position, f"general.alignment {text}", f"a power of two of at least {MIN_ALIGNMENT}")

    # tensor table

    def parse_tensors(self, n_tensors: int, alignment: int) -> list[TensorEntry]:
        found: dict[str, tuple[int, TensorEntry]] = {}
        for _ in range(n_tensors):
            start = self.position
            entry = self.parse_tensor(alignment)
            if entry.name in found:
                raise self.broken(start, f"tensor {entry.name!r} a second time", "each name once")
            found[entry.name] = (start, entry)
        found = {name: place for name, place in found.items() if place[1].n_bytes}
        data_start = -(-self.position // alignment) * alignment
        tensors = []
        for start, entry in found.values():
            moved = TensorEntry(entry.name, entry.shape, entry.type, data_start + entry.offset_bytes, entry.n_bytes)
            if moved.offset_bytes + moved.n_bytes > self.size:
                raise self.broken(
                    start,
                    f"tensor {entry.name!r} at bytes {moved.offset_bytes} to {moved.offset_bytes + moved.n_bytes}",
                    f"an end within the file's {self.size} bytes; a download may have stopped early",
                )
            tensors.append(moved)
        for before, after in pairwise(sorted(tensors, key=lambda entry: entry.offset_bytes)):
            if before.offset_bytes + before.n_bytes > after.offset_bytes:
                raise self.broken(
                    after.offset_bytes, f"tensors {before.name!r} and {after.name!r} that overlap", "none"
                )
        return tensors

    def parse_tensor(self, alignment: int) -> TensorEntry:
        start = self.position
        name = self.read_string("a tensor name", MAX_NAME_BYTES)
        if not name:
            raise self.broken(start, "an empty tensor name", "a name")
        what = f"tensor {name!r}"
        dims_start = self.position
        n_dims = self.read_u32(f"the number of dimensions of {what}")
        if not 1 <= n_dims <= MAX_DIMS:
            raise self.broken(dims_start, f"{n_dims} dimensions for {what}", f"1 to {MAX_DIMS}")
        dims: tuple[int, ...] = struct.unpack(f"<{n_dims}Q", self.take(8 * n_dims, f"the dimensions of {what}"))
        ggml_type = self.read_ggml_type(what)
        block_elements, block_bytes = BLOCK_SIZES[ggml_type]
        n_elements = 1
        for dim in dims:
            n_elements *= dim
        if (n_elements == 0 and name not in ABSENT_IF_EMPTY) or dims[0] % block_elements:
            raise self.broken(
                dims_start + 4,
                f"dimensions {dims} for {what} of type {ggml_type.name}",
                f"none of 0 and the first a multiple of {block_elements}",
            )
        n_bytes = n_elements // block_elements * block_bytes
        offset_start = self.position
        offset = self.read_u64(f"the offset of {what}")
        if offset % alignment:
            raise self.broken(offset_start, f"offset {offset} for {what}", f"a multiple of the alignment {alignment}")
        return TensorEntry(name, dims[::-1], ggml_type, offset, n_bytes)

    def read_ggml_type(self, what: str) -> GGMLType:
        start = self.position
        number = self.read_u32(f"the type of {what}")
        try:
            return GGMLType(number)
        except ValueError:
            supported = f"one of {', '.join(known.name for known in GGMLType)}"
        if number in OTHER_GGML_TYPES:
            raise UnsupportedModelError(
                f"{self.source}: byte {start}: {what} has type {OTHER_GGML_TYPES[number]}, which is not supported; "
                f"expected {supported}; choose another quantisation of this model"
            )
        raise self.broken(start, f"type {number} for {what}", supported)


def _short_string_ends(buffer: mmap.mmap, start: int, count: int) -> array[int] | None:
    """Offsets behind each of `count` strings if all are shorter than 256 bytes, as those of vocabularies are, or None.

    Takes the lowest byte of each length for the whole and checks the others together afterwards: this walks a
    vocabulary in a third of the time that decoding every length takes.
    """
    ends = array("q")
    append, end = ends.append, start
    try:
        for _ in range(count):
            end += 8 + buffer[end]
            append(end)
    except IndexError:
        return None
    if end > len(buffer):
        return None
    region = buffer[start:end]
    every_u64 = np.ndarray(max(end - start - 7, 0), "<u8", buffer=region, strides=(1,))
    lengths_at = np.frombuffer(array("q", [start]) + ends[:-1], np.int64)[:count] - start
    if count and every_u64[lengths_at].max() > 255:
        return None
    return ends


def _string_ends(buffer: mmap.mmap, start: int, count: int) -> array[int]:
    """Offsets behind each of `count` strings, up to and including the first that lies behind the buffer."""
    ends = array("q")
    unpack_length, end = struct.Struct("<Q").unpack_from, start
    with suppress(struct.error, OverflowError):  # the length, or the end, lies outside
        for _ in range(count):
            end += 8 + unpack_length(buffer, end)[0]
            ends.append(end)
    return ends
