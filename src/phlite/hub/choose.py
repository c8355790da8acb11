"""Choose one model among the files of a repository or folder: a GGUF file, or a safetensors checkpoint.

A model is one file, or the shards `stem-00001-of-00003.gguf` ... of one. Projectors and importance matrices that live
beside models are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from phlite.errors import DownloadError

__all__ = ["checkpoint_among", "choose_model", "models_among", "quant_of", "shards_of"]

# The default first, then what comes closest to it in size; a repository with none of these asks the user.
PREFERRED_QUANTS = ("Q4_K_M", "Q4_K", "Q4", "Q4_K_S", "Q4_0", "Q5_K_M", "Q8_0")

# What a checkpoint has beside its weights; code that comes with it is never taken.
SIDE_FILES = frozenset(
    [
        *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
        *("tokenizer.model", "chat_template.jinja", "cl100k_base.tiktoken"),
    ]
)
WHOLE_CHECKPOINT = "model.safetensors"
CHECKPOINT_INDEX = "model.safetensors.index.json"

# Compiled when first used: a model that is there needs few of them.
_SHARD = r"(?i)-(\d{5})-of-(\d{5})\.gguf$"
_QUANT = r"(?i)[-._](i?q\d(?:_[a-z0-9]+)*|f16|fp16|bf16|f32)$"
_CHECKPOINT_SHARD = r"model-(\d{5})-of-(\d{5})\.safetensors"
_NOT_A_MODEL = r"(?i)(^|/)(mmproj|imatrix)|[-._](mmproj|imatrix)[-._]"


def models_among(files: Iterable[str]) -> list[str]:
    """The models among file names, sorted: whole files, and the first shard of each split one."""
    models = []
    for file in files:
        shard = re.search(_SHARD, file)
        is_first = shard is None or int(shard.group(1)) == 1
        if file.lower().endswith(".gguf") and is_first and not re.search(_NOT_A_MODEL, file):
            models.append(file)
    return sorted(models)


def shards_of(file: str) -> list[str]:
    """All shard names of the model that `file` (any shard, or a whole file) belongs to, in order.

    raises: DownloadError if the shard number is not within its count
    """
    shard = re.search(_SHARD, file)
    if shard is None:
        return [file]
    index, count = int(shard.group(1)), int(shard.group(2))
    if not 1 <= index <= count:
        raise DownloadError(f"{file}: shard {index} of {count} cannot be; expected 1 to {count}.")
    return [f"{file[: shard.start()]}-{n:05d}-of-{count:05d}.gguf" for n in range(1, count + 1)]


def checkpoint_among(files: Iterable[str], where: str) -> list[str]:
    """The files of the safetensors checkpoint at the top of a repository or folder, small ones first; [] without one.

    where:  named in messages
    raises: DownloadError if weights are there, but not all of them
    """
    names = set(files)
    side = sorted(names & SIDE_FILES)
    if WHOLE_CHECKPOINT in names:
        return [*side, WHOLE_CHECKPOINT]
    shards = {file: found for file in names if (found := re.fullmatch(_CHECKPOINT_SHARD, file))}
    if CHECKPOINT_INDEX not in names and not shards:
        return []
    counts = {int(found.group(2)) for found in shards.values()}
    wanted = [f"model-{n:05d}-of-{count:05d}.safetensors" for count in counts for n in range(1, count + 1)]
    missing = sorted({CHECKPOINT_INDEX, *wanted} - names)
    if len(counts) != 1 or missing:
        lack = f"lacks {_some(missing)}" if missing else f"has shards of different ones, {_some(sorted(shards))}"
        raise DownloadError(f"{where} has an incomplete checkpoint: it {lack}.")
    return [*side, CHECKPOINT_INDEX, *wanted]


def quant_of(file: str) -> str | None:
    """The quantisation a file name ends with, upper case ("Q4_K_M"), or None."""
    stem = re.sub(_SHARD, ".gguf", file).removesuffix(".gguf").removesuffix(".GGUF")
    found = re.search(_QUANT, stem)
    return found.group(1).upper().replace("FP16", "F16") if found else None


def choose_model(files: Iterable[str], quant: str | None, where: str) -> tuple[str, list[str]]:
    """One model among `files`, and the other models that were not chosen.

    quant:  the quantisation asked for, upper case, or None: the only model, else the first of PREFERRED_QUANTS
    where:  named in messages, e.g. the repository
    raises: DownloadError if there is no model, none of this quantisation, or no way to prefer one
    """
    files = list(files)
    models = models_among(files)
    if not models:
        raise DownloadError(_no_model(files, where))
    if quant is not None:
        matching = [m for m in models if quant_of(m) == quant]
        if not matching:
            raise DownloadError(f"{where} has no {quant} model; it has {_some(models)}. Choose with {where}:NAME.")
        return matching[0], [m for m in models if m != matching[0]]
    if len(models) == 1:
        return models[0], []
    for wanted in PREFERRED_QUANTS:
        for model in models:
            if quant_of(model) == wanted:
                return model, [m for m in models if m != model]
    raise DownloadError(f"{where} has {len(models)} models and no Q4_K_M: {_some(models)}. Choose with {where}:NAME.")


def _no_model(files: list[str], where: str) -> str:
    has = f"it has {_some(files)}" if files else "it is empty"
    if "adapter_config.json" in files:
        return f"{where} holds a LoRA adapter, no model; give it with the model that it was trained on: --lora {where}"
    if any(file.endswith(".safetensors") for file in files):
        return (
            f"{where} has no GGUF file; {has}. These are unquantised weights without a model.safetensors: "
            f"look for a GGUF conversion of them (often owner/{where.rstrip('/').rpartition('/')[2]}-GGUF)."
        )
    return f"{where} has no GGUF file; {has}. Give a repository or folder with a .gguf model."


def _some(files: list[str], limit: int = 8) -> str:
    shown = ", ".join(sorted(files)[:limit])
    return f"{shown} and {len(files) - limit} more" if len(files) > limit else shown
