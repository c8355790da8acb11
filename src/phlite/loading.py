"""From files on disk to a model, its tokenizer and its recommended sampling: a GGUF file, or a checkpoint folder."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from phlite import ops
from phlite.engine.params import SamplingParams
from phlite.errors import ModelFileError, RequestError
from phlite.gguf import FileType, Metadata, load_gguf
from phlite.hub import NoProgress, Progress, TerminalProgress
from phlite.memory import available_memory_bytes
from phlite.models.base import CausalLM
from phlite.models.registry import build_checkpoint_model, check_holds_model
from phlite.packing import build_from_copy
from phlite.recommended import recommended_params

if TYPE_CHECKING:
    from phlite.checkpoint import Checkpoint
    from phlite.tokenizer import Tokenizer

__all__ = ["LoadedModel", "load_checkpoint_folder", "load_gguf_file"]

QUANT_WHERE_MEMORY_IS_SHORT = FileType.Q4_K_M
SHARE_FOR_WEIGHTS = 0.85
"""Of the free memory; the rest is for the cache and for everybody else."""

logger = logging.getLogger("phlite")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What an engine and a conversation need.

    name:           what its publisher calls it, "" if the file does not say
    default_params: what the files recommend, for the rest SamplingParams()
    """

    name: str
    model: CausalLM
    tokenizer: Tokenizer
    default_params: SamplingParams


def load_gguf_file(path: Path, *, pool: ops.ThreadPool, quant: str | None = None) -> LoadedModel:
    """Return the model in a GGUF file (the first part of a split one), with its own vocabulary.

    A file that is larger than the free memory runs from a packed copy on disk, with a warning that names both sizes.

    raises: ModelFileError, UnsupportedModelError; RequestError for a quant, which only checkpoints can have
    """
    from phlite.tokenizer import build_tokenizer

    if quant is not None:
        raise RequestError(
            f"quant {quant!r}: {path} is a GGUF file, whose weights are used as they are; `phlite quantize` makes a "
            "smaller one"
        )
    with load_gguf(path) as file:
        check_holds_model(file.metadata)
        default_params = recommended_params(file.metadata)
        tokenizer = build_tokenizer(file.metadata, source=str(path))
        model = build_from_copy(file, pool=pool)
    _check_vocabulary(model, tokenizer, path)
    return LoadedModel(file.metadata.get_str("general.name", ""), model, tokenizer, default_params)


def load_checkpoint_folder(
    folder: Path, *, pool: ops.ThreadPool, quant: str | None = None, name: str = "", progress: bool = False
) -> LoadedModel:
    """Return the model in a folder of safetensors files, with the tokenizer beside them.

    quant:  a type such as "Q4_K_M" or "BF16" to bring the weights to, one tensor at a time; None: as they are stored,
            or Q4_K_M, with a warning, where those would not fit into the free memory
    name:   what its publisher calls it
    progress: show a bar on stderr while weights are quantised
    raises: ModelFileError, UnsupportedModelError; RequestError for an unknown quant
    """
    from phlite.checkpoint import load_checkpoint
    from phlite.tokenizer import load_tokenizer

    with load_checkpoint(folder) as checkpoint:
        sampling = {f"general.sampling.{key}": value for key, value in checkpoint.sampling().items()}
        default_params = recommended_params(Metadata(sampling, source=str(folder / "generation_config.json")))
        tokenizer = load_tokenizer(folder)
        file_type = _file_type(quant) if quant is not None else _type_that_fits(checkpoint)
        if file_type is None:
            model = build_checkpoint_model(checkpoint, pool=pool)
        else:
            model = _quantised_model(checkpoint, file_type, pool, TerminalProgress() if progress else NoProgress())
    _check_vocabulary(model, tokenizer, folder)
    return LoadedModel(name, model, tokenizer, default_params)


def _quantised_model(checkpoint: Checkpoint, file_type: FileType, pool: ops.ThreadPool, shown: Progress) -> CausalLM:
    from phlite.convert.on_load import converted_checkpoint

    shown.start(f"Quantising to {file_type.name}", checkpoint.n_bytes)
    try:
        converted = converted_checkpoint(checkpoint, file_type, pool=pool, progress=shown.advance)
        return build_checkpoint_model(converted, pool=pool)
    finally:
        shown.finish()


def _file_type(quant: str) -> FileType:
    from phlite.convert.mixture import parse_file_type

    return FileType.F32 if quant.upper() == "F32" else parse_file_type(quant)


def _type_that_fits(checkpoint: Checkpoint) -> FileType | None:
    """Return None where the weights fit into memory as they are stored, else the type to bring them to."""
    available_bytes = available_memory_bytes()
    if available_bytes is None or checkpoint.n_bytes <= available_bytes * SHARE_FOR_WEIGHTS:
        return None
    logger.warning(
        "%s: weights of %.2f GB do not fit into %.2f GB of free memory; they are quantised to %s while they are loaded "
        "(quant= or --quant chooses another type)",
        checkpoint.source,
        checkpoint.n_bytes / 1e9,
        available_bytes / 1e9,
        QUANT_WHERE_MEMORY_IS_SHORT.name,
    )
    return QUANT_WHERE_MEMORY_IS_SHORT


def _check_vocabulary(model: CausalLM, tokenizer: Tokenizer, path: Path) -> None:
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ModelFileError(
            f"{path}: the vocabulary has {tokenizer.vocab_size} tokens and the model rows for "
            f"{model.config.vocab_size}; expected a row for each token, so vocabulary and weights do not belong "
            "together"
        )
