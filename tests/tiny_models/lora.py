"""Small random LoRA adapters, as peft and llama.cpp's converter write them, and models with the adapter merged in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from tiny_models.checkpoint import Checkpoint, StoredTensor
from tiny_models.gguf_file import gguf_name
from tiny_models.hf_folder import stored, write_safetensors

F32 = NDArray[np.float32]
Pairs = Mapping[str, tuple[F32, F32]]
"""Hugging Face module name -> A float32[r, K] and B float32[n, r]."""


def random_lora(
    checkpoint: Checkpoint, modules: Sequence[str], *, rank: int = 4, seed: int = 0
) -> dict[str, tuple[F32, F32]]:
    """Return A and B for every module whose name ends so, of a size that changes the logits a good deal."""
    rng = np.random.default_rng(seed)
    pairs = {}
    for name, weight in checkpoint.weights.items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in modules:
            n_rows, n_cols = weight.shape
            a = rng.normal(0, n_cols**-0.5, (rank, n_cols)).astype(np.float32)
            pairs[module] = (a, rng.normal(0, rank**-0.5, (n_rows, rank)).astype(np.float32))
    return pairs


def merged(checkpoint: Checkpoint, *adapters: tuple[Pairs, float]) -> Checkpoint:
    """Return the float32 checkpoint with factor · B A added to its matrices, for each (pairs, factor)."""
    tensors = dict(checkpoint.tensors)
    for pairs, factor in adapters:
        for module, (a, b) in pairs.items():
            old = tensors[f"{module}.weight"].values
            values = (old + factor * (b.astype(np.float64) @ a)).astype(np.float32)
            tensors[f"{module}.weight"] = StoredTensor("F32", values.view(np.uint8), values)
    return Checkpoint(checkpoint.config, tensors)


def write_peft(folder: Path, pairs: Pairs, *, extra: Mapping[str, F32] | None = None, **config: Any) -> Path:
    """Write adapter_config.json and adapter_model.safetensors; config: keys to add or to write otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    rank = next(iter(pairs.values()))[0].shape[0] if pairs else 1
    values = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "r": rank, "lora_alpha": 2 * rank}
    (folder / "adapter_config.json").write_text(json.dumps({**values, **config}))
    tensors = {name: stored(value) for name, value in (extra or {}).items()}
    for module, (a, b) in pairs.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = stored(a)
        tensors[f"base_model.model.{module}.lora_B.weight"] = stored(b)
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    return folder


def write_gguf_lora(
    path: Path,
    pairs: Pairs,
    *,
    alpha: float | None = None,
    architecture: str = "phi3",
    kind: str = "F32",
    names: Mapping[str, str] | None = None,
    extra: Mapping[str, str] | None = None,
    extra_tensors: Mapping[str, F32] | None = None,
) -> Path:
    """Write what llama.cpp's convert_lora_to_gguf.py writes. alpha: default twice the rank; kind: ggml type of A.

    names: GGUF names of the modules of a layer, for a model other than Phi-3
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    rank = next(iter(pairs.values()))[0].shape[0]
    writer.add_float32("adapter.lora.alpha", 2.0 * rank if alpha is None else alpha)
    for key, value in (extra or {}).items():
        writer.add_string(key, value)
    for module, (a, b) in pairs.items():
        name = gguf_name(f"{module}.weight") if names is None else _name_of_layer(module, names)
        of_a = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(f"{name}.lora_a", gguf.quants.quantize(a, of_a), raw_dtype=of_a)
        writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(b))
    for name, values in (extra_tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _name_of_layer(module: str, names: Mapping[str, str]) -> str:
    _, _, number, part = module.split(".", 3)
    return f"blk.{number}.{names[part]}.weight"
