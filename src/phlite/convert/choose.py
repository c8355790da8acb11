"""Which block format each tensor of a converted file gets under the name of a file type, such as F16 or Q4_K_M."""

from __future__ import annotations

from phlite.convert.mixture import MixtureTraits, choose_mixture
from phlite.convert.plan import Conversion
from phlite.gguf import FileType, GGMLType

__all__ = ["choose_types"]


def choose_types(conversion: Conversion, file_type: FileType) -> dict[str, GGMLType]:
    """Return the type of each tensor by its name in the file; norms, biases and lists are F32 whatever the name."""
    types = dict.fromkeys((tensor.name for tensor in conversion.tensors), GGMLType.F32)
    if file_type is FileType.F32:
        return types
    shapes = {tensor.name: tensor.shape for tensor in conversion.tensors if not tensor.keeps_f32}
    traits = MixtureTraits(
        n_layers=conversion.number("block_count"),
        n_heads=conversion.number("attention.head_count"),
        n_kv_heads=conversion.number("attention.head_count_kv"),
        n_experts=conversion.number("expert_count", 0),
    )
    return types | choose_mixture(shapes, file_type, traits)
