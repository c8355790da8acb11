"""Metadata values as the bytes of a GGUF file: u32 type and value, or u32 9, u32 element type, u64 count, elements."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Final

import numpy as np

from phlite.errors import RequestError
from phlite.gguf.types import SCALAR_FORMATS, ValueType

_VALUE_TYPE_OF_DTYPE: Final = {np.dtype(layout): value_type for value_type, layout in SCALAR_FORMATS.items()}


def scalar_bytes(value: object, value_type: ValueType | None, key: str) -> bytes:
    """Return type and value of a str, bool, int, float or numpy scalar; raises RequestError where they do not fit."""
    if value_type is None:
        value_type = _value_type_of(value, key)
    return struct.pack("<I", value_type) + _element_bytes(value, value_type, key)


def array_bytes(value: object, element_type: ValueType | None, key: str) -> bytes:
    """Return a list or a one-dimensional numpy array; raises RequestError where an element does not fit the type."""
    if isinstance(value, np.ndarray):
        if value.ndim != 1:
            raise RequestError(f"metadata key {key!r}: got an array of shape {value.shape}, expected one dimension")
        elements: list[object] = list(value)
    elif isinstance(value, (list, tuple)):
        elements = list(value)
    else:
        raise RequestError(f"metadata key {key!r}: got {type(value).__name__}, expected a list or a numpy array")
    if element_type is None:
        if isinstance(value, np.ndarray):
            element_type = _value_type_of(value.dtype.type(), key)
        elif elements:
            element_type = _value_type_of(elements[0], key)
        else:
            raise RequestError(f"metadata key {key!r}: an empty list needs value_type=")
    head = struct.pack("<IIQ", ValueType.ARRAY, element_type, len(elements))
    if isinstance(value, np.ndarray) and _VALUE_TYPE_OF_DTYPE.get(value.dtype) is element_type:
        return head + value.tobytes()
    return head + b"".join(_element_bytes(element, element_type, key) for element in elements)


def _value_type_of(value: object, key: str) -> ValueType:
    if isinstance(value, str):
        return ValueType.STRING
    if isinstance(value, (bool, np.bool_)):
        return ValueType.BOOL
    if isinstance(value, np.generic) and value.dtype in _VALUE_TYPE_OF_DTYPE:
        return _VALUE_TYPE_OF_DTYPE[value.dtype]
    raise RequestError(
        f"metadata key {key!r}: a {type(value).__name__} has no type in GGUF; pass one, such as ValueType.UINT32"
    )


def _element_bytes(value: object, value_type: ValueType, key: str) -> bytes:
    if value_type is ValueType.STRING and isinstance(value, str):
        return string_bytes(value, f"metadata key {key!r}")
    if value_type is ValueType.BOOL and isinstance(value, (bool, np.bool_)):
        return bytes([bool(value)])
    if value_type in SCALAR_FORMATS and isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
        with suppress(struct.error, OverflowError):
            return struct.pack(SCALAR_FORMATS[value_type], value)
    raise RequestError(f"metadata key {key!r}: {str(value)[:60]!r} is not a value of type {value_type.name}")


def string_bytes(text: str, what: str) -> bytes:
    """Return a u64 length and the text in UTF-8."""
    raw = utf8(text, what)
    return struct.pack("<Q", len(raw)) + raw


def utf8(text: str, what: str) -> bytes:
    """Return the text in UTF-8; raises RequestError for a lone surrogate, naming what it was to become."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(f"{what}: {text[:60]!r} cannot be written as UTF-8 ({error.reason})") from None
