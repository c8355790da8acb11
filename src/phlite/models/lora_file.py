"""What a file or folder of a low-rank adapter holds, its numbers checked, before it meets a model.

Two forms: a folder that peft's save_pretrained writes (adapter_config.json, adapter_model.safetensors), and a GGUF file
that llama.cpp's convert_lora_to_gguf.py writes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import isfinite, sqrt
from pathlib import Path

from phlite.checkpoint import load_json, map_safetensors
from phlite.errors import ModelFileError, UnsupportedModelError
from phlite.gguf import GGUFFile, Tensor, load_gguf, quoted

__all__ = ["AdapterFile", "Pair", "load_adapter_file"]

MAX_CONFIG_BYTES = 1 << 20
MAX_RANK = 1 << 13

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

USED_KEYS = frozenset({"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias"})

# How the adapter was trained and where: the tensors themselves say which modules it changes.
INERT_KEYS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)

PEFT_TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
GGUF_TENSOR = re.compile(r"(.+)\.lora_([ab])")
PLAIN_NAME = re.compile(r"[\w.]+")


@dataclass(frozen=True, slots=True)
class Pair:
    """A [r, K] and B [n, r] for one module or tensor of the model, and alpha / r."""

    name: str
    a: Tensor
    b: Tensor
    scaling: float


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """source: for messages; architecture: of the model in GGUF words, None for a Hugging Face model's adapter.

    pairs: under Hugging Face module names, or where there is an architecture, under GGUF tensor names
    """

    source: str
    architecture: str | None
    pairs: tuple[Pair, ...]


def load_adapter_file(path: str | os.PathLike[str]) -> AdapterFile:
    """Return what a folder written by peft, or a GGUF file, holds. The files stay mapped while a tensor is referenced.

    raises: ModelFileError where a file is missing, damaged or contradicts itself;
            UnsupportedModelError where it asks for something other than plain low-rank matrices
    """
    place = Path(path)
    if place.is_dir():
        return load_peft(place)
    if not place.exists():
        raise ModelFileError(f"{place}: no such file or folder; expected a LoRA adapter, a PEFT folder or a GGUF file")
    return read_gguf(load_gguf(place))


def load_peft(folder: Path) -> AdapterFile:
    """Return the adapter in a folder that peft has written."""
    if not (folder / CONFIG_NAME).exists():
        raise ModelFileError(f"{folder}: no {CONFIG_NAME}; expected a folder written by peft's save_pretrained")
    source = str(folder / CONFIG_NAME)
    config = load_json(folder / CONFIG_NAME, max_bytes=MAX_CONFIG_BYTES)
    check_config(config, source)
    if not (folder / WEIGHTS_NAME).exists():
        pickled = (folder / "adapter_model.bin").exists()
        raise (UnsupportedModelError if pickled else ModelFileError)(
            f"{folder}: no {WEIGHTS_NAME}"
            + (", only a pickle, which runs whatever code it holds; save it again as safetensors" if pickled else "")
        )
    with ExitStack() as opened:
        mapped, entries = map_safetensors(folder / WEIGHTS_NAME, opened)
        opened.pop_all()  # from here on the tensors' views keep the map alive
    tensors = {entry.name: entry.view(mapped, folder / WEIGHTS_NAME) for entry in entries}
    matched = {name: PEFT_TENSOR.fullmatch(name) for name in tensors}
    weights = str(folder / WEIGHTS_NAME)
    ranks, alphas = (Pattern(config, key, source) for key in ("rank_pattern", "alpha_pattern"))
    usual_rank, usual_alpha = (number(config, key, 0.0, source) for key in ("r", "lora_alpha"))
    pairs = []
    for name, (a, b) in paired(tensors, matched, "A", weights).items():
        rank, alpha = ranks.value(name, usual_rank), alphas.value(name, usual_alpha)
        check_rank(a, b, weights, rank)
        pairs.append(Pair(name, a, b, alpha / (sqrt(rank) if config.get("use_rslora") else rank)))
    return AdapterFile(weights, None, tuple(pairs))


def read_gguf(file: GGUFFile) -> AdapterFile:
    """Return the adapter in an open GGUF file. source: llama.cpp src/llama-adapter.cpp"""
    metadata = file.metadata
    source = metadata.source
    for key, expected in (("general.type", "adapter"), ("adapter.type", "lora")):
        got = metadata.get_str(key, "model" if key == "general.type" else "none")
        if got != expected:
            raise UnsupportedModelError(f"{source}: {key} is {quoted(got)}, expected {expected!r}: a LoRA adapter")
    alpha = metadata.get_float("adapter.lora.alpha", 0.0, minimum=0.0)
    metadata.get_str("adapter.lora.task_name", "")  # for people, as is the prefix: prompts are the caller's
    metadata.get_str("adapter.lora.prompt_prefix", "")
    unused = metadata.unused("adapter.")
    if unused:
        raise UnsupportedModelError(
            f"{source}: metadata key {quoted(unused[0])} asks for something other than a plain LoRA adapter"
        )
    matched = {name: GGUF_TENSOR.fullmatch(name) for name in file.tensors}
    pairs = []
    for name, (a, b) in paired(file.tensors, matched, "a", source).items():
        rank = check_rank(a, b, source, None)
        pairs.append(Pair(name, a, b, alpha / rank if alpha else 1.0))
    return AdapterFile(source, metadata.get_str("general.architecture"), tuple(pairs))


def paired(
    tensors: Mapping[str, Tensor], matched: Mapping[str, re.Match[str] | None], letter_of_a: str, source: str
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the A and B of every module; every tensor has its place, or the adapter is refused."""
    halves: dict[str, dict[bool, Tensor]] = {}
    for name, match in matched.items():
        if match is None:
            raise UnsupportedModelError(
                f"{source}: tensor {quoted(name)} is no A or B matrix of a plain LoRA adapter; DoRA, biases, norms, "
                "embeddings and whole modules (modules_to_save) are not supported: merge it into the model, or, if it "
                "only copies the model's weight, save the adapter with save_embedding_layers=False"
            )
        halves.setdefault(match[1], {})[match[2] == letter_of_a] = tensors[name]
    for name, both in halves.items():
        if len(both) != 2:
            raise ModelFileError(
                f"{source}: {quoted(name)} has only one of the two LoRA matrices; the file is incomplete"
            )
    if not halves:
        raise ModelFileError(f"{source}: no tensors, expected LoRA matrices; the file is incomplete")
    return {name: (both[True], both[False]) for name, both in halves.items()}


def check_rank(a: Tensor, b: Tensor, source: str, expected: float | None) -> int:
    """Return r of A [r, K] and B [n, r]; raises ModelFileError where they differ, or from the config."""
    rank = a.shape[0]
    if len(a.shape) != 2 or len(b.shape) != 2 or b.shape[1] != rank or not 1 <= rank <= MAX_RANK:
        raise ModelFileError(
            f"{source}: tensors {quoted(a.name)} {list(a.shape)} and {quoted(b.name)} {list(b.shape)}, expected "
            f"[r, columns] and [rows, r] with one r of at most {MAX_RANK}"
        )
    if expected is not None and rank != expected:
        raise ModelFileError(
            f"{source}: tensor {quoted(a.name)} has rank {rank}, expected {expected:g} by {CONFIG_NAME}; the two files "
            "do not belong together"
        )
    return rank


def check_config(config: Mapping[str, object], source: str) -> None:
    """Raise unless adapter_config.json describes nothing but low-rank matrices on linear layers.

    A key that is not known here is refused unless its value says that it is not used: null, false or empty.
    """
    if config.get("peft_type") != "LORA":
        raise UnsupportedModelError(f"{source}: peft_type is {str(config.get('peft_type'))[:60]!r}, expected 'LORA'")
    if config.get("bias", "none") != "none":
        raise UnsupportedModelError(f"{source}: bias is {str(config['bias'])[:60]!r}, expected 'none'")
    for key, value in config.items():
        if key not in USED_KEYS | INERT_KEYS and value not in (None, False, 0, "", [], {}):
            raise UnsupportedModelError(
                f"{source}: key {quoted(key)} is {str(value)[:60]!r}, which is not supported; expected a plain LoRA "
                "adapter: merge this one into the model instead"
            )
    if not isinstance(config.get("use_rslora") or False, bool):
        raise ModelFileError(f"{source}: key 'use_rslora': got {str(config['use_rslora'])[:60]!r}, expected a bool")


def number(values: Mapping[str, object], key: str, low: float, source: str) -> float:
    """Return a finite number above `low` of a JSON object; raises ModelFileError for another value."""
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value < 1e9 or not isfinite(value):
        raise ModelFileError(f"{source}: key {quoted(key)}: got {str(value)[:60]!r}, expected a number above {low:g}")
    return float(value)


class Pattern:
    """rank_pattern or alpha_pattern: numbers of single modules, by their names or the ends of them.

    peft reads the names as regular expressions; one that is more than a name is refused, since it comes from a file.
    """

    def __init__(self, config: Mapping[str, object], key: str, source: str) -> None:
        pattern = config.get(key) or {}
        if not isinstance(pattern, Mapping):
            raise ModelFileError(f"{source}: key {key!r}: got {type(pattern).__name__}, expected an object")
        for name in pattern:
            if not PLAIN_NAME.fullmatch(name):
                raise UnsupportedModelError(f"{source}: {key} {quoted(name)}: expected module names, no expressions")
        self.values = {name: number(pattern, name, 0.0, source) for name in pattern}
        self.place = {name: place for place, name in enumerate(pattern)}

    def value(self, module: str, default: float) -> float:
        """Return the number of the first name that the module is, or ends with."""
        parts = module.split(".")
        ends = (".".join(parts[first:]) for first in range(len(parts)))
        found = [end for end in ends if end in self.values]
        return self.values[min(found, key=self.place.__getitem__)] if found else default
