"""Which block format each tensor of a file gets under a name such as Q4_K_M: llama.cpp's rules.

A name stands for a base format, which most matrices get, and for better formats where errors hurt most: the output
matrix, values, the MLP's second matrix, and more of them in the first, the last and every third layer.
Source: llama.cpp src/llama-quant.cpp (llama-cpp-python 0.3.36), for architectures other than Falcon.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from phlite.errors import RequestError
from phlite.gguf import BLOCK_SIZES, FileType, GGMLType

__all__ = ["BASE_TYPES", "MixtureTraits", "choose_mixture", "is_quantizable", "parse_file_type"]

Shape: TypeAlias = tuple[int, ...]

BASE_TYPES: Final[dict[FileType, GGMLType]] = {
    FileType.F16: GGMLType.F16,
    FileType.BF16: GGMLType.BF16,
    FileType.Q8_0: GGMLType.Q8_0,
    FileType.Q6_K: GGMLType.Q6_K,
    FileType.Q5_K_M: GGMLType.Q5_K,
    FileType.Q5_K_S: GGMLType.Q5_K,
    FileType.Q5_1: GGMLType.Q5_1,
    FileType.Q5_0: GGMLType.Q5_0,
    FileType.Q4_K_M: GGMLType.Q4_K,
    FileType.Q4_K_S: GGMLType.Q4_K,
    FileType.Q4_1: GGMLType.Q4_1,
    FileType.Q4_0: GGMLType.Q4_0,
    FileType.IQ4_NL: GGMLType.IQ4_NL,
    FileType.IQ4_XS: GGMLType.IQ4_XS,
    FileType.Q3_K_L: GGMLType.Q3_K,
    FileType.Q3_K_M: GGMLType.Q3_K,
    FileType.Q3_K_S: GGMLType.Q3_K,
    FileType.Q2_K: GGMLType.Q2_K,
}
"""File types that can be written, best first -> the format of most matrices."""

# For rows that are no whole number of 256 columns.
_SMALLER_BLOCKS: Final = {
    GGMLType.Q6_K: GGMLType.Q8_0,
    GGMLType.Q5_K: GGMLType.Q5_1,
    GGMLType.Q4_K: GGMLType.Q5_0,
    GGMLType.Q3_K: GGMLType.Q4_0,
    GGMLType.Q2_K: GGMLType.Q4_0,
    GGMLType.IQ4_XS: GGMLType.IQ4_NL,
}
_BELOW_FIVE_BITS: Final = (GGMLType.Q2_K, GGMLType.Q3_K, GGMLType.Q4_K, GGMLType.IQ4_NL, GGMLType.IQ4_XS)
_LAYER: Final = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class MixtureTraits:
    """What the rules look at beside names and shapes. n_experts: 0 for a dense model."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    n_experts: int = 0


def parse_file_type(name: str) -> FileType:
    """Return the file type of this name in any case; raises RequestError naming those that can be written."""
    file_type = FileType.__members__.get(name.upper())
    if file_type not in BASE_TYPES:
        raise RequestError(f"type {name!r} cannot be written; possible: {', '.join(kind.name for kind in BASE_TYPES)}")
    return file_type


def is_quantizable(name: str, shape: Shape) -> bool:
    """True for matrices and stacks of them, but for the router and norms, which are small and count much."""
    n_dims = max((i for i, size in enumerate(reversed(shape), start=1) if size > 1), default=1)
    return (
        n_dims >= 2
        and name.endswith("weight")
        and not name.endswith("_norm.weight")
        and not name.endswith("ffn_gate_inp.weight")
    )


def choose_mixture(
    shapes: Mapping[str, Shape], file_type: FileType, traits: MixtureTraits, *, has_importance: bool = False
) -> dict[str, GGMLType]:
    """Return the format of each tensor that `is_quantizable`; all others stay as they are.

    shapes:         row-major, by name in the file
    has_importance: the matrices are quantised with an importance matrix, which changes some rules
    """
    base = BASE_TYPES[file_type]
    matrices = sorted((name for name, shape in shapes.items() if is_quantizable(name, shape)), key=_layer_and_name)
    if BLOCK_SIZES[base][0] == 1:
        return dict.fromkeys(matrices, base)
    types = {}
    # The place of values and of ffn_down is their rank among their kind, in the order of layers.
    n_values, value_idx, down_idx = sum(map(_is_values, matrices)), 0, 0
    for name in matrices:
        n_cols, wanted = shapes[name][-1], base
        if name == "output.weight" or (name == "token_embd.weight" and "output.weight" not in shapes):
            wanted = GGMLType.Q8_0 if n_cols % BLOCK_SIZES[base][0] or base is GGMLType.Q8_0 else GGMLType.Q6_K
        elif _is_values(name):
            wanted = _values_type(file_type, base, traits, value_idx, n_values)
            value_idx += 1
        elif "ffn_down" in name:
            layer_idx = down_idx if traits.n_experts <= 1 else _layer_and_name(name)[0]
            wanted = _down_type(file_type, base, layer_idx, traits.n_layers, has_importance)
            down_idx += 1
        elif "attn_output.weight" in name:
            wanted = _attention_output_type(file_type, base, traits)
        elif "attn_k.weight" in name and traits.n_experts == 8:
            wanted = GGMLType.Q8_0
        types[name] = _fitting(wanted, n_cols)
    return types


def _is_values(name: str) -> bool:
    return "attn_v.weight" in name or "attn_qkv.weight" in name


def _values_type(file_type: FileType, base: GGMLType, traits: MixtureTraits, layer_idx: int, n_layers: int) -> GGMLType:
    """Return the format of the value projection, or of the fused one, which counts as such."""
    is_shared = traits.n_heads // traits.n_kv_heads >= 4  # many queries see it, and it is small
    if traits.n_experts == 8:
        return GGMLType.Q8_0
    match file_type:
        case FileType.Q2_K:
            return GGMLType.Q4_K if is_shared else GGMLType.Q3_K
        case FileType.Q3_K_M:
            return GGMLType.Q5_K if layer_idx < 2 else GGMLType.Q4_K
        case FileType.Q3_K_L:
            return GGMLType.Q5_K
        case FileType.IQ4_NL | FileType.IQ4_XS if is_shared:
            return GGMLType.Q5_K
        case FileType.Q4_K_M | FileType.Q5_K_M if _gets_more_bits(layer_idx, n_layers):
            return GGMLType.Q6_K
        case FileType.Q4_K_S if layer_idx < 4:
            return GGMLType.Q5_K
    return base


def _down_type(file_type: FileType, base: GGMLType, layer_idx: int, n_layers: int, has_importance: bool) -> GGMLType:
    is_early = layer_idx < n_layers // 8
    match file_type:
        case FileType.Q2_K:
            return GGMLType.Q3_K
        case FileType.Q3_K_M:
            return GGMLType.Q5_K if layer_idx < n_layers // 16 else GGMLType.Q4_K
        case FileType.Q3_K_L:
            return GGMLType.Q5_K
        case FileType.Q4_K_M | FileType.Q5_K_M if _gets_more_bits(layer_idx, n_layers):
            return GGMLType.Q6_K
        case FileType.Q4_K_S if is_early:
            return GGMLType.Q5_K
        case FileType.IQ4_NL | FileType.IQ4_XS if is_early and not has_importance:
            return GGMLType.Q5_K
        case FileType.Q4_0 if is_early and has_importance:
            return GGMLType.Q4_1
        case FileType.Q5_0 if is_early and has_importance:
            return GGMLType.Q5_1
    return base


def _attention_output_type(file_type: FileType, base: GGMLType, traits: MixtureTraits) -> GGMLType:
    if traits.n_experts == 8:
        return GGMLType.Q5_K if base in _BELOW_FIVE_BITS and file_type is not FileType.Q3_K_L else base
    match file_type:
        case FileType.Q2_K:
            return GGMLType.Q3_K
        case FileType.Q3_K_M:
            return GGMLType.Q4_K
        case FileType.Q3_K_L:
            return GGMLType.Q5_K
    return base


def _gets_more_bits(layer_idx: int, n_layers: int) -> bool:
    """True for the first and the last eighth of the layers, and every third one between."""
    eighth = n_layers // 8
    return layer_idx < eighth or layer_idx >= 7 * n_layers // 8 or (layer_idx - eighth) % 3 == 2


def _fitting(wanted: GGMLType, n_cols: int) -> GGMLType:
    """Return a format whose blocks divide the columns: the wanted one, one with smaller blocks, or F16."""
    if n_cols % BLOCK_SIZES[wanted][0]:
        wanted = _SMALLER_BLOCKS.get(wanted, GGMLType.F16)
    return GGMLType.F16 if n_cols % BLOCK_SIZES[wanted][0] else wanted


def _layer_and_name(name: str) -> tuple[int, str]:
    layer = _LAYER.match(name)
    return (int(layer[1]) if layer else -1, name)
