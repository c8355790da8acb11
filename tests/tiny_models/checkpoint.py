"""Configs and random weights of small Phi-3 class models, under Hugging Face names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiny_models.random_blocks import random_matrix


def tiny_config(**changes: Any) -> dict[str, Any]:
    """Return a config.json as a dict: two layers of 256, four heads of 64; changes replace or add keys."""
    return {
        "model_type": "phi3",
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        **changes,
    }


_FUSED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj"),
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}


@dataclass(frozen=True)
class StoredTensor:
    """data: uint8[rows, row bytes] for a matrix, uint8[bytes] for a vector; type: ggml's name; values: float32."""

    type: str
    data: NDArray[np.uint8]
    values: NDArray[np.float32]

    def above(self, below: StoredTensor) -> StoredTensor:
        """Return the matrix with the rows of this one, then of the other."""
        if self.type != below.type:  # bytes of two formats cannot be one tensor; the values still can
            values = np.concatenate([self.values, below.values])
            return StoredTensor("F32", values.view(np.uint8), values)
        return StoredTensor(
            self.type, np.concatenate([self.data, below.data]), np.concatenate([self.values, below.values])
        )


@dataclass(frozen=True)
class Checkpoint:
    """A config and its tensors by Hugging Face name."""

    config: dict[str, Any]
    tensors: Mapping[str, StoredTensor]

    @property
    def weights(self) -> dict[str, NDArray[np.float32]]:
        """The values that the stored tensors mean."""
        return {name: tensor.values for name, tensor in self.tensors.items()}

    def fused(self) -> Checkpoint:
        """Return the same checkpoint with split q, k, v and gate, up stacked as Hugging Face stores them."""
        tensors: dict[str, StoredTensor] = {}
        for name, tensor in self.tensors.items():
            module, part = name.removesuffix(".weight").rpartition(".")[::2]
            whole = _FUSED.get(part)
            if whole is None:
                tensors[name] = tensor
                continue
            first = tensors.get(f"{module}.{whole}.weight")
            tensors[f"{module}.{whole}.weight"] = tensor if first is None else first.above(tensor)
        return Checkpoint(self.config, tensors)


def random_checkpoint(
    config: dict[str, Any],
    kind: str | Callable[[str], str] = "F32",
    *,
    seed: int = 0,
    split_qkv: bool = False,
    split_gate_up: bool = False,
    gain: float = 1.5,
) -> Checkpoint:
    """Return random tensors whose activations stay near 1, so that attention and logits depend on every part.

    kind: ggml type of the matrices, or a function from tensor name to type
    gain: standard deviation of what a matrix gives for an input of standard deviation 1
    """
    rng = np.random.default_rng(seed)
    tensors: dict[str, StoredTensor] = {}
    for name, shape in _shapes(config, split_qkv=split_qkv, split_gate_up=split_gate_up).items():
        if len(shape) == 1:
            values = rng.uniform(0.5, 1.5, shape).astype(np.float32)
            tensors[name] = StoredTensor("F32", values.view(np.uint8), values)
            continue
        matrix_kind = kind if isinstance(kind, str) else kind(name)
        std = 1.0 if "embed_tokens" in name and not config.get("tie_word_embeddings") else gain * shape[1] ** -0.5
        data, values = random_matrix(matrix_kind, shape[0], shape[1], std, rng)
        tensors[name] = StoredTensor(matrix_kind, data, values)
    return Checkpoint(config, tensors)


def _shapes(config: dict[str, Any], *, split_qkv: bool, split_gate_up: bool) -> dict[str, tuple[int, ...]]:
    n_hidden, n_inner, n_vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_dim = n_hidden // config["num_attention_heads"]
    n_q, n_kv = n_hidden, config["num_key_value_heads"] * head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (n_vocab, n_hidden)}
    for i in range(config["num_hidden_layers"]):
        layer: dict[str, tuple[int, ...]] = {"input_layernorm": (n_hidden,)}
        if split_qkv:
            layer |= {"self_attn.q_proj": (n_q, n_hidden), "self_attn.k_proj": (n_kv, n_hidden)}
            layer |= {"self_attn.v_proj": (n_kv, n_hidden)}
        else:
            layer["self_attn.qkv_proj"] = (n_q + 2 * n_kv, n_hidden)
        layer |= {"self_attn.o_proj": (n_hidden, n_q), "post_attention_layernorm": (n_hidden,)}
        if split_gate_up:
            layer |= {"mlp.gate_proj": (n_inner, n_hidden), "mlp.up_proj": (n_inner, n_hidden)}
        else:
            layer["mlp.gate_up_proj"] = (2 * n_inner, n_hidden)
        layer["mlp.down_proj"] = (n_hidden, n_inner)
        shapes |= {f"model.layers.{i}.{part}.weight": shape for part, shape in layer.items()}
    shapes["model.norm.weight"] = (n_hidden,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (n_vocab, n_hidden)
    return shapes
