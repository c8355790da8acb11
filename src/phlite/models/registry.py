"""Which class runs which architecture, and the way from a file to a model."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeAlias

from phlite import ops
from phlite.checkpoint import Checkpoint
from phlite.errors import UnsupportedModelError
from phlite.gguf import GGUFFile, Metadata, load_gguf, quoted
from phlite.models.base import CausalLM
from phlite.models.phi import PhiForCausalLM
from phlite.models.phi3 import Phi3ForCausalLM
from phlite.models.phi3small import Phi3SmallForCausalLM
from phlite.models.phimoe import PhimoeForCausalLM
from phlite.tiles import TileSource

ModelClass: TypeAlias = (
    type[Phi3ForCausalLM] | type[Phi3SmallForCausalLM] | type[PhiForCausalLM] | type[PhimoeForCausalLM]
)

ARCHITECTURES: dict[str, ModelClass] = {
    "phi2": PhiForCausalLM,  # Phi-1, Phi-1.5, Phi-2
    "phi3": Phi3ForCausalLM,  # Phi-3-mini and medium, Phi-3.5-mini, Phi-4, Phi-4-mini
    "phi3small": Phi3SmallForCausalLM,  # Phi-3-small
    "llama": Phi3ForCausalLM,  # the first conversions of Phi-3-mini, April 2024; no Llama
    "phimoe": PhimoeForCausalLM,  # Phi-3.5-MoE, Phi-mini-MoE, Phi-tiny-MoE
}
"""general.architecture of a GGUF file -> model class."""

MODEL_TYPES: dict[str, ModelClass] = {
    "phi": PhiForCausalLM,
    "phi3": Phi3ForCausalLM,
    "phi3small": Phi3SmallForCausalLM,
    "phimoe": PhimoeForCausalLM,
}
"""model_type of a Hugging Face config.json -> model class."""


def load_model(path: str | os.PathLike[str], *, pool: ops.ThreadPool) -> CausalLM:
    """Return the model in a GGUF file (the first part of a split one), ready to run on the pool's threads.

    raises: ModelFileError where the file is missing, damaged or contradicts itself;
            UnsupportedModelError where its architecture, an option or a tensor of it is not implemented
    """
    return build_model(load_gguf(path), pool=pool)


def build_model(file: GGUFFile, *, pool: ops.ThreadPool, tiles: TileSource | None = None) -> CausalLM:
    """Return the model in an open file; its embedding keeps the file mapped even when the file object is closed.

    tiles:  where packed matrices are looked for and kept; None: they are packed into memory
    raises: as load_model
    """
    metadata = file.metadata
    check_holds_model(metadata)
    architecture = metadata.get_str("general.architecture")
    if architecture not in ARCHITECTURES:
        raise _unknown(f"{metadata.source}: architecture", architecture, ARCHITECTURES)
    return ARCHITECTURES[architecture].from_gguf(file, pool=pool, tiles=tiles)


def check_holds_model(metadata: Metadata) -> None:
    """Raise UnsupportedModelError where a GGUF file holds something other than a model, such as an adapter."""
    kind = metadata.get_str("general.type", "model")
    if kind == "adapter":
        raise UnsupportedModelError(
            f"{metadata.source}: the file holds a LoRA adapter, no model; load the model that it was trained on and "
            "give this with it (--lora PATH, lora=PATH)"
        )
    if kind != "model":
        raise UnsupportedModelError(f"{metadata.source}: the file holds a {quoted(kind)}, expected a 'model'")


def build_checkpoint_model(checkpoint: Checkpoint, *, pool: ops.ThreadPool) -> CausalLM:
    """Return the model in an open checkpoint; its embedding keeps the files mapped even when the object is closed.

    raises: as load_model
    """
    model_type = checkpoint.model_type
    if model_type not in MODEL_TYPES:
        raise _unknown(f"{checkpoint.config_source}: model_type", model_type, MODEL_TYPES)
    return MODEL_TYPES[model_type].from_hf(checkpoint, pool=pool)


def _unknown(what: str, name: str, known: Iterable[str]) -> UnsupportedModelError:
    import difflib

    names = list(known)
    nearest = difflib.get_close_matches(name[:80], names, n=1, cutoff=0.0)[0]
    return UnsupportedModelError(
        f"{what} {quoted(name)} is not implemented; the nearest that is, is {nearest!r}, of {', '.join(names)}"
    )
