"""Accessors of metadata: right types pass, everything else is a ModelFileError that names key and file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from phlite.errors import ModelFileError
from phlite.gguf import Metadata


@pytest.fixture
def metadata() -> Metadata:
    return Metadata(
        {
            "text": "phi3",
            "yes": True,
            "int": 7,
            "float": 2.5,
            "nan": float("nan"),
            "strings": ["a", "b"],
            "ints": np.array([1, 2], np.int32),
            "big": np.array([2**63], np.uint64),
            "floats": np.array([0.5, 1.5], np.float64),
            "infinite": np.array([np.inf], np.float32),
            "too large": np.array([1e300], np.float64),
            "bools": np.array([True]),
        },
        source="model.gguf",
    )


def test_values_of_the_right_type_are_returned(metadata: Metadata) -> None:
    assert metadata.get_str("text") == "phi3"
    assert metadata.get_bool("yes") is True
    assert metadata.get_int("int") == 7
    assert metadata.get_float("float") == 2.5
    assert metadata.get_float("int") == 7.0
    assert metadata.get_str_array("strings") == ["a", "b"]
    assert metadata.get_int_array("ints").tolist() == [1, 2]
    assert metadata.get_float_array("floats").dtype == np.float32
    assert metadata.get_float_array("ints").tolist() == [1.0, 2.0]


GETTERS: list[tuple[Callable[..., Any], set[str]]] = [
    (Metadata.get_str, {"text"}),
    (Metadata.get_bool, {"yes"}),
    (Metadata.get_int, {"int"}),
    (Metadata.get_float, {"int", "float"}),
    (Metadata.get_str_array, {"strings"}),
    (Metadata.get_int_array, {"ints"}),
    (Metadata.get_float_array, {"ints", "floats", "big"}),
]


@pytest.mark.parametrize(("getter", "right"), GETTERS, ids=lambda value: getattr(value, "__name__", ""))
def test_values_of_a_wrong_type_or_not_finite_are_refused(
    metadata: Metadata, getter: Callable[..., Any], right: set[str]
) -> None:
    for key in metadata:
        if key in right:
            getter(metadata, key)
            continue
        with pytest.raises(ModelFileError, match=rf"model\.gguf: metadata key '{key}': got .*, expected"):
            getter(metadata, key)


@pytest.mark.parametrize(("getter", "right"), GETTERS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_missing_key_is_refused_or_replaced_by_the_default(
    metadata: Metadata, getter: Callable[..., Any], right: set[str]
) -> None:
    with pytest.raises(ModelFileError, match=r"model\.gguf: metadata key 'absent' is missing"):
        getter(metadata, "absent")
    assert getter(metadata, "absent", None) is None


def test_a_default_does_not_hide_a_wrong_type(metadata: Metadata) -> None:
    with pytest.raises(ModelFileError, match="expected an integer"):
        metadata.get_int("text", 3)


@pytest.mark.parametrize(("minimum", "maximum"), [(8, None), (None, 6), (1, 6)])
def test_integers_out_of_range_are_refused(metadata: Metadata, minimum: int | None, maximum: int | None) -> None:
    with pytest.raises(ModelFileError, match=r"expected an integer (of at|from)"):
        metadata.get_int("int", minimum=minimum, maximum=maximum)


def test_range_bounds_are_inclusive(metadata: Metadata) -> None:
    assert metadata.get_int("int", minimum=7, maximum=7) == 7
    assert metadata.get_float("float", minimum=2.5, maximum=2.5) == 2.5


def test_numbers_out_of_range_are_refused(metadata: Metadata) -> None:
    with pytest.raises(ModelFileError, match="expected a number from 3 to 4"):
        metadata.get_float("float", minimum=3, maximum=4)


def test_only_the_checking_accessors_count_as_use() -> None:
    metadata = Metadata({"phi3.a": 1, "phi3.b": 2, "phi3.c": 3, "general.name": "x"}, source="model.gguf")
    metadata.get_int("phi3.b")
    metadata.get_int("phi3.absent", 4)
    assert metadata["phi3.a"] == 1
    assert dict(metadata)["phi3.c"] == 3
    assert metadata.unused("phi3.") == ["phi3.a", "phi3.c"]
    assert metadata.unused() == ["phi3.a", "phi3.c", "general.name"]
