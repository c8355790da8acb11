"""Metadata of a model file as a mapping, with accessors that check types and remember which keys were used."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from phlite.errors import ModelFileError
from phlite.gguf.cursor import quoted
from phlite.gguf.types import ValueType

MetadataValue: TypeAlias = str | int | float | bool | list[str] | npt.NDArray[np.generic]

_T = TypeVar("_T")


class _Required:
    """Default of a key that must be there."""


REQUIRED: Final = _Required()


@dataclass(frozen=True, eq=False)
class StringArray:
    """An array of strings whose bounds are checked and whose text is not decoded yet.

    data holds u64 length + bytes for each string and begins at offset_bytes of the file; ends[i] is the offset in the
    file behind string i.
    """

    data: bytes
    ends: array[int]
    offset_bytes: int

    def decode(self, source: str, key: str) -> list[str]:
        """Return the strings; raises ModelFileError where one is not UTF-8."""
        data, offset, start = self.data, self.offset_bytes, 8
        strings: list[str] = []
        append = strings.append
        try:
            for end in self.ends:
                end -= offset
                append(str(data[start:end], "utf-8"))
                start = end + 8
        except UnicodeDecodeError as error:
            raise ModelFileError(
                f"{source}: byte {offset + start + error.start}: element {len(strings)} of {quoted(key)} "
                f"is not UTF-8 ({error.reason}); the file is damaged or was written by a faulty tool"
            ) from None
        return strings


class Metadata(Mapping[str, MetadataValue]):
    """Keys and values of a model file, in file order.

    Values are str, int, float and bool; arrays of numbers and bools are one-dimensional read-only numpy arrays,
    arrays of strings are list[str], decoded at the first access.

    The get_* accessors check the type, raise ModelFileError for a missing key, a wrong type or a value out of range,
    and count as use of the key: `unused("phi3.")` then lists what a model did not look at. Plain subscription and
    iteration, for people and for copying, do not count as use. Text that is not UTF-8 is refused everywhere.
    """

    def __init__(
        self,
        values: Mapping[str, MetadataValue | StringArray],
        *,
        source: str,
        types: Mapping[str, ValueType] | None = None,
    ) -> None:
        """Take the values over.

        source: the file's name, for messages
        types:  type of each value, of the elements for an array; left out where there is no file behind the values
        """
        self._values: dict[str, MetadataValue | StringArray] = dict(values)
        self._source = source
        self._types = dict(types or {})
        self._used: set[str] = set()

    def __getitem__(self, key: str) -> MetadataValue:
        value = self._values[key]
        if isinstance(value, StringArray):
            value = self._values[key] = value.decode(self._source, key)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    @property
    def source(self) -> str:
        """Name of the file the values come from."""
        return self._source

    def value_type(self, key: str) -> ValueType | None:
        """Type of the value in the file, of its elements for an array; None where there is no file."""
        return self._types.get(key)

    def unused(self, prefix: str = "") -> list[str]:
        """Keys that begin with prefix and that no get_* accessor has read, in file order."""
        return [key for key in self._values if key.startswith(prefix) and key not in self._used]

    def get_str(self, key: str, default: _T | _Required = REQUIRED) -> str | _T:
        """Return a string."""
        if key not in self._values and not isinstance(default, _Required):
            return default
        value = self._use(key)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def get_bool(self, key: str, default: _T | _Required = REQUIRED) -> bool | _T:
        """Return a bool."""
        if key not in self._values and not isinstance(default, _Required):
            return default
        value = self._use(key)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "a bool")
        return value

    def get_int(
        self,
        key: str,
        default: _T | _Required = REQUIRED,
        *,
        minimum: int | None = None,
        maximum: int | None = None,
    ) -> int | _T:
        """Return an integer with minimum <= value <= maximum. The default is not checked."""
        if key not in self._values and not isinstance(default, _Required):
            return default
        value = self._use(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(key, value, "an integer")
        if (minimum is not None and value < minimum) or (maximum is not None and value > maximum):
            raise self._wrong(key, value, f"an integer {_range_text(minimum, maximum)}")
        return value

    def get_float(
        self,
        key: str,
        default: _T | _Required = REQUIRED,
        *,
        minimum: float | None = None,
        maximum: float | None = None,
    ) -> float | _T:
        """Return a finite number with minimum <= value <= maximum. The default is not checked."""
        if key not in self._values and not isinstance(default, _Required):
            return default
        value = self._use(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not isfinite(value):
            raise self._wrong(key, value, "a finite number")
        if (minimum is not None and value < minimum) or (maximum is not None and value > maximum):
            raise self._wrong(key, value, f"a number {_range_text(minimum, maximum)}")
        return float(value)

    def get_str_array(self, key: str, default: _T | _Required = REQUIRED) -> list[str] | _T:
        """Return an array of strings as a list."""
        if key not in self._values and not isinstance(default, _Required):
            return default
        value = self._use(key)
        if not isinstance(value, list):
            raise self._wrong(key, value, "an array of strings")
        return value

    def get_int_array(self, key: str, default: _T | _Required = REQUIRED) -> npt.NDArray[np.int64] | _T:
        """Return an array of integers as int64[N]."""
        if key not in self._values and not isinstance(default, _Required):
            return default
        value = self._use(key)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
            raise self._wrong(key, value, "an array of integers")
        if value.dtype == np.uint64 and value.size and int(value.max()) > np.iinfo(np.int64).max:
            raise self._wrong(key, value, "integers below 2**63")
        return value.astype(np.int64)

    def get_float_array(self, key: str, default: _T | _Required = REQUIRED) -> npt.NDArray[np.float32] | _T:
        """Return an array of finite numbers as float32[N]."""
        if key not in self._values and not isinstance(default, _Required):
            return default
        value = self._use(key)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf":
            raise self._wrong(key, value, "an array of numbers")
        with np.errstate(over="ignore"):
            numbers = value.astype(np.float32)
        if not np.isfinite(numbers).all():
            raise self._wrong(key, value, "finite numbers")
        return numbers

    def _use(self, key: str) -> MetadataValue:
        if key not in self._values:
            raise ModelFileError(f"{self._source}: metadata key {key!r} is missing; the file is incomplete")
        self._used.add(key)
        return self[key]

    def _wrong(self, key: str, value: MetadataValue, expected: str) -> ModelFileError:
        return ModelFileError(f"{self._source}: metadata key {key!r}: got {_value_text(value)}, expected {expected}")


def _range_text(minimum: float | None, maximum: float | None) -> str:
    if minimum is None:
        return f"of at most {maximum}"
    return f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"


def _value_text(value: MetadataValue) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {len(value)} {value.dtype}"
    if isinstance(value, list):
        return f"an array of {len(value)} strings"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:60] + '...'}"
