"""The numbers of the GGUF container and of ggml's tensor types, under ggml's own names."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from math import prod


class GGMLType(IntEnum):
    """Tensor types that phlite reads; the values are ggml's ids. Source: ggml.h, enum ggml_type."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ4_NL = 20
    IQ4_XS = 23
    BF16 = 30


BLOCK_SIZES: dict[GGMLType, tuple[int, int]] = {
    GGMLType.F32: (1, 4),
    GGMLType.F16: (1, 2),
    GGMLType.BF16: (1, 2),
    GGMLType.Q4_0: (32, 18),
    GGMLType.Q4_1: (32, 20),
    GGMLType.Q5_0: (32, 22),
    GGMLType.Q5_1: (32, 24),
    GGMLType.Q8_0: (32, 34),
    GGMLType.Q2_K: (256, 84),
    GGMLType.Q3_K: (256, 110),
    GGMLType.Q4_K: (256, 144),
    GGMLType.Q5_K: (256, 176),
    GGMLType.Q6_K: (256, 210),
    GGMLType.IQ4_NL: (32, 18),
    GGMLType.IQ4_XS: (256, 136),
}
"""(elements, bytes) of one block. A row of n elements takes n / elements blocks, one after the other."""

OTHER_GGML_TYPES: dict[int, str] = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
    41: "Q1_0",
}
"""Types that ggml has and phlite does not read: known by name only, to say so in an error."""


class ValueType(IntEnum):
    """Types of metadata values. Source: ggml/docs/gguf.md, enum gguf_metadata_value_type."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


SCALAR_FORMATS: dict[ValueType, str] = {
    ValueType.UINT8: "<B",
    ValueType.INT8: "<b",
    ValueType.UINT16: "<H",
    ValueType.INT16: "<h",
    ValueType.UINT32: "<I",
    ValueType.INT32: "<i",
    ValueType.FLOAT32: "<f",
    ValueType.UINT64: "<Q",
    ValueType.INT64: "<q",
    ValueType.FLOAT64: "<d",
}
"""struct formats of the numbers; they are numpy dtypes too."""


class FileType(IntEnum):
    """Values of `general.file_type`, the mixture a file was quantised with. Source: llama.h, enum llama_ftype."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q8_0 = 7
    Q5_0 = 8
    Q5_1 = 9
    Q2_K = 10
    Q3_K_S = 11
    Q3_K_M = 12
    Q3_K_L = 13
    Q4_K_S = 14
    Q4_K_M = 15
    Q5_K_S = 16
    Q5_K_M = 17
    Q6_K = 18
    IQ2_XXS = 19
    IQ2_XS = 20
    Q2_K_S = 21
    IQ3_XS = 22
    IQ3_XXS = 23
    IQ1_S = 24
    IQ4_NL = 25
    IQ3_S = 26
    IQ3_M = 27
    IQ2_S = 28
    IQ2_M = 29
    IQ4_XS = 30
    IQ1_M = 31
    BF16 = 32


_GUESSED = 1024


def file_type_name(value: int) -> str:
    """Name of a `general.file_type` for people: "Q4_K_M", "Q4_K_M (guessed)" or "unknown (77)"."""
    base, suffix = (value - _GUESSED, " (guessed)") if value >= _GUESSED else (value, "")
    try:
        return FileType(base).name + suffix
    except ValueError:
        return f"unknown ({value})"


def tensor_bytes(ggml_type: GGMLType, shape: Sequence[int]) -> int:
    """Bytes of a tensor of this row-major shape.

    raises: ValueError if the last dimension is not a whole number of blocks
    """
    block_elements, block_bytes = BLOCK_SIZES[ggml_type]
    if shape[-1] % block_elements:
        raise ValueError(f"rows of {shape[-1]} elements, expected a multiple of {ggml_type.name}'s {block_elements}")
    return prod(shape) // block_elements * block_bytes
