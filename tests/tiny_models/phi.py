"""Small random Phi-2 class models: config, weights with biases, and the GGUF file that llama.cpp's converter writes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from tiny_models.checkpoint import Checkpoint, StoredTensor
from tiny_models.gguf_file import _add, _add_vocabulary
from tiny_models.random_blocks import random_matrix

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.final_layernorm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.dense": "attn_output",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}


def tiny_phi_config(**changes: Any) -> dict[str, Any]:
    """Return a config.json as a dict: two layers of four heads of 80, 32 of them rotated, as in Phi-2."""
    return {
        "model_type": "phi",
        "vocab_size": 512,
        "hidden_size": 320,
        "intermediate_size": 1280,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.4,
        "tie_word_embeddings": False,
        **changes,
    }


PHI_MEMBERS: dict[str, dict[str, Any]] = {
    "phi-2": tiny_phi_config(),
    # 64-element heads, half of each rotated
    "phi-1.5": tiny_phi_config(hidden_size=256, intermediate_size=1024, partial_rotary_factor=0.5, vocab_size=1003),
    # No published member shares keys between heads, but the architecture can
    "grouped": tiny_phi_config(
        hidden_size=256, intermediate_size=512, num_key_value_heads=2, partial_rotary_factor=0.5
    ),
}


def random_phi_checkpoint(
    config: dict[str, Any], kind: str = "F32", *, seed: int = 0, gain: float = 1.5, fused: bool = False
) -> Checkpoint:
    """Return random tensors whose activations stay near 1, norms and biases away from what they would be by default.

    kind:  ggml type of the matrices
    fused: q, k and v as one qkv_proj, as in GGUF files
    """
    rng = np.random.default_rng(seed)
    tensors: dict[str, StoredTensor] = {}

    def vector(name: str, values: NDArray[np.float64]) -> None:
        tensors[name] = StoredTensor("F32", values.astype(np.float32).view(np.uint8), values.astype(np.float32))

    def linear(name: str, n_rows: int, n_cols: int, std: float, *, bias: bool = True) -> None:
        data, values = random_matrix(kind, n_rows, n_cols, std, rng)
        tensors[f"{name}.weight"] = StoredTensor(kind, data, values)
        if bias:
            vector(f"{name}.bias", rng.normal(0.0, 0.5, n_rows))

    def norm(name: str) -> None:
        vector(f"{name}.weight", rng.uniform(0.5, 1.5, n_hidden))
        vector(f"{name}.bias", rng.normal(0.0, 0.3, n_hidden))

    n_hidden, n_inner, n_vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    n_kv = n_hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    qkv = {"qkv_proj": n_hidden + 2 * n_kv} if fused else {"q_proj": n_hidden, "k_proj": n_kv, "v_proj": n_kv}
    linear("model.embed_tokens", n_vocab, n_hidden, 1.0, bias=False)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        norm(f"{layer}.input_layernorm")
        for part, n_rows in qkv.items():
            linear(f"{layer}.self_attn.{part}", n_rows, n_hidden, gain * n_hidden**-0.5)
        linear(f"{layer}.self_attn.dense", n_hidden, n_hidden, gain * n_hidden**-0.5)
        linear(f"{layer}.mlp.fc1", n_inner, n_hidden, gain * n_hidden**-0.5)
        linear(f"{layer}.mlp.fc2", n_hidden, n_inner, gain * n_inner**-0.5)
    norm("model.final_layernorm")
    linear("lm_head", n_vocab, n_hidden, gain * n_hidden**-0.5)
    return Checkpoint(config, tensors)


def split_phi_weights(checkpoint: Checkpoint) -> dict[str, NDArray[np.float32]]:
    """The values under Hugging Face names, a fused qkv_proj split as transformers has it."""
    n_hidden = checkpoint.config["hidden_size"]
    weights: dict[str, NDArray[np.float32]] = {}
    for name, values in checkpoint.weights.items():
        if "qkv_proj" not in name:
            weights[name] = values
            continue
        n_kv = (len(values) - n_hidden) // 2
        for part, rows in zip("qkv", np.split(values, [n_hidden, n_hidden + n_kv]), strict=True):
            weights[name.replace("qkv_proj", f"{part}_proj")] = rows
    return weights


def write_phi_gguf(
    path: Path, checkpoint: Checkpoint, *, extra: dict[str, Any] | None = None, leave_out: tuple[str, ...] = ()
) -> Path:
    """Write the file of architecture `phi2` and return its path.

    extra:     metadata keys without the prefix to add or to write otherwise
    leave_out: metadata keys without the prefix, and tensors by their GGUF name, not to write
    """
    config, n_heads = checkpoint.config, checkpoint.config["num_attention_heads"]
    writer = gguf.GGUFWriter(path, "phi2")
    keys = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "block_count": config["num_hidden_layers"],
        "attention.head_count": n_heads,
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_epsilon": config["layer_norm_eps"],
        "rope.dimension_count": int(config["partial_rotary_factor"] * config["hidden_size"]) // n_heads,
        **(extra or {}),
    }
    for key, value in keys.items():
        if key not in leave_out:
            _add(writer, f"phi2.{key}", value)
    _add_vocabulary(writer, config["vocab_size"])
    for name, tensor in checkpoint.tensors.items():
        module, kind = name.rsplit(".", 1)
        layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
        gguf_name = f"blk.{layer[1]}.{_NAMES[layer[2]]}.{kind}" if layer else f"{_NAMES[module]}.{kind}"
        if gguf_name not in leave_out:
            data = tensor.values if tensor.type == "F32" else tensor.data
            writer.add_tensor(gguf_name, np.ascontiguousarray(data), raw_dtype=gguf.GGMLQuantizationType[tensor.type])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
