"""A small checkpoint as a GGUF file, with the keys and tensor names that llama.cpp's converter writes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from tiny_models.checkpoint import Checkpoint, StoredTensor

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_MARKERS = {1: "<s>", 2: "</s>", 3: "<|endoftext|>", 4: "<|assistant|>", 5: "<|end|>", 6: "<|user|>", 7: "<|system|>"}


def write_gguf(
    path: Path,
    checkpoint: Checkpoint,
    *,
    architecture: str = "phi3",
    leave_out: Sequence[str] = (),
    extra: dict[str, Any] | None = None,
    extra_tensors: dict[str, NDArray[np.float32]] | None = None,
    vocabulary: bool = True,
    sampling: dict[str, int | float] | None = None,
) -> Path:
    """Write the file and return its path.

    leave_out:     metadata keys without the architecture's prefix, and tensors by their GGUF name, not to write
    extra:         metadata keys without the prefix to add or to write otherwise: int, float, str or bool
    extra_tensors: float32 tensors to add, by GGUF name
    sampling:      what the file recommends: keys without `general.sampling.`
    """
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**_keys(checkpoint.config, architecture), **(extra or {})}.items():
        if key not in leave_out:
            _add(writer, f"{architecture}.{key}", value)
    for key, value in (sampling or {}).items():
        _add(writer, f"general.sampling.{key}", value)
    if vocabulary:
        _add_vocabulary(writer, checkpoint.config["vocab_size"])
    tensors = dict(checkpoint.tensors)
    if architecture == "llama":
        tensors = permute_for_interleaved_rope(checkpoint)
    for name, tensor in tensors.items():
        stored_name = gguf_name(name)
        if stored_name not in leave_out:
            kind = gguf.GGMLQuantizationType[tensor.type]
            data = tensor.values if tensor.type == "F32" else tensor.data
            writer.add_tensor(stored_name, np.ascontiguousarray(data), raw_dtype=kind)
    factors = _rope_parameters(checkpoint.config)
    for which in ("long", "short"):
        if f"{which}_factor" in factors and f"rope_factors_{which}.weight" not in leave_out:
            writer.add_tensor(f"rope_factors_{which}.weight", np.array(factors[f"{which}_factor"], np.float32))
    for name, values in (extra_tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def permute_for_interleaved_rope(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """Return the tensors with q and k rows as the converter orders them for architecture `llama`.

    Row i of a head's first half and row i of its second half become neighbours: rotation in pairs (2i, 2i + 1) then
    computes what rotation of the halves computes for the original order.
    """
    config = checkpoint.config
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    tensors = dict(checkpoint.tensors)
    for name, tensor in checkpoint.tensors.items():
        for part, n_heads in heads.items():
            if part in name.split("."):
                order = np.arange(len(tensor.values)).reshape(n_heads, 2, -1).transpose(0, 2, 1).reshape(-1)
                tensors[name] = replace(tensor, data=tensor.data[order], values=tensor.values[order])
    return tensors


def _keys(config: dict[str, Any], architecture: str) -> dict[str, Any]:
    rope = _rope_parameters(config)
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    original, longest = config["original_max_position_embeddings"], config["max_position_embeddings"]
    keys: dict[str, Any] = {
        "context_length": longest,
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "block_count": config["num_hidden_layers"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.dimension_count": int(head_dim * config.get("partial_rotary_factor", 1.0)),
        "rope.freq_base": config["rope_theta"],
    }
    if architecture == "phi3":
        keys["rope.scaling.original_context_length"] = original
        keys["attention.sliding_window"] = config.get("sliding_window") or 0
    if "long_factor" in rope:
        scale = longest / original
        keys["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    return keys


def _rope_parameters(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("rope_scaling") or {}


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def _add_vocabulary(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    """Add a SentencePiece vocabulary: Phi-3's markers, the bytes, and made-up pieces."""
    tokens = [_MARKERS.get(i, "<unk>" if i == 0 else f"p{i}") for i in range(n_vocab)]
    types = [3 if i in _MARKERS else 2 if i == 0 else 1 for i in range(n_vocab)]
    for byte in range(min(256, n_vocab - 8)):
        tokens[8 + byte], types[8 + byte] = f"<0x{byte:02X}>", 6
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(n_vocab)])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(3)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)


def gguf_name(name: str) -> str:
    """Return the name in the file of a tensor with this Hugging Face name."""
    module = name.removesuffix(".weight")
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    return f"blk.{layer[1]}.{_NAMES[layer[2]]}.weight" if layer else f"{_NAMES[module]}.weight"
