"""The decoder written down once more in plain float64 NumPy: the whole sequence at once, no cache, no packing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiny_models.checkpoint import StoredTensor

F64 = NDArray[np.float64]


def reference_logits(
    config: dict[str, Any],
    weights: dict[str, NDArray[np.float32]],
    token_ids: Sequence[int],
    *,
    round_activations: Callable[[F64, str], F64] = lambda x, name: x,
) -> F64:
    """Return float64[T, V], the logits after every token of one sequence.

    weights:           fused qkv_proj and gate_up_proj, by Hugging Face name
    round_activations: applied to the input of every matrix product and its tensor's name, see int8_activations
    """
    w = {name: values.astype(np.float64) for name, values in weights.items()}
    n_tokens, eps = len(token_ids), config["rms_norm_eps"]
    n_q, n_kv = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config["hidden_size"] // n_q
    cos, sin = _rotation(config, n_tokens, head_dim)
    distance = np.arange(n_tokens)[:, None] - np.arange(n_tokens)
    hidden = (distance < 0) | (distance >= (config.get("sliding_window") or n_tokens))

    def product(x: F64, name: str) -> F64:
        return round_activations(x, f"{name}.weight") @ w[f"{name}.weight"].T

    def norm(x: F64, name: str) -> F64:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"]

    def rotate(x: F64) -> F64:
        n = cos.shape[-1]
        first, second, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)

    x = w["model.embed_tokens.weight"][np.asarray(token_ids)]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        qkv = product(norm(x, f"{layer}.input_layernorm"), f"{layer}.self_attn.qkv_proj")
        heads = qkv.reshape(n_tokens, n_q + 2 * n_kv, head_dim).transpose(1, 0, 2)
        q, k, v = rotate(heads[:n_q]), rotate(heads[n_q : n_q + n_kv]), heads[n_q + n_kv :]
        k, v = (np.repeat(part, n_q // n_kv, axis=0) for part in (k, v))
        scores = np.where(hidden, -np.inf, q @ k.transpose(0, 2, 1) / math.sqrt(head_dim))
        p = np.exp(scores - scores.max(-1, keepdims=True))
        a = (p / p.sum(-1, keepdims=True)) @ v
        x = x + product(a.transpose(1, 0, 2).reshape(n_tokens, -1), f"{layer}.self_attn.o_proj")
        gate_up = product(norm(x, f"{layer}.post_attention_layernorm"), f"{layer}.mlp.gate_up_proj")
        gate, up = np.split(gate_up, 2, axis=-1)
        x = x + product(gate / (1 + np.exp(-gate)) * up, f"{layer}.mlp.down_proj")
    output = "model.embed_tokens" if config.get("tie_word_embeddings") else "lm_head"
    return product(norm(x, "model.norm"), output)


def int8_activations(tensors: Mapping[str, StoredTensor]) -> Callable[[F64, str], F64]:
    """Return the rounding that the kernels do to the input of a product with each tensor.

    Formats with superblocks share one scale max|x| / 127 between 256 columns, other block formats between 32; products
    with F32, F16 and BF16 see x as it is.
    """

    def rounded(x: F64, name: str) -> F64:
        kind = tensors[name].type
        if kind in ("F32", "F16", "BF16"):
            return x
        blocks = x.reshape(-1, 256 if kind.endswith("_K") or kind == "IQ4_XS" else 32)
        scale = np.abs(blocks).max(axis=1, keepdims=True) / 127
        return (np.rint(blocks / scale) * scale).reshape(x.shape)

    return rounded


def _rotation(config: dict[str, Any], n_tokens: int, head_dim: int) -> tuple[F64, F64]:
    rotary_dim = int(head_dim * config.get("partial_rotary_factor", 1.0))
    original, longest = config["original_max_position_embeddings"], config["max_position_embeddings"]
    scaling = config.get("rope_scaling")
    stretch, m = np.ones(rotary_dim // 2), 1.0
    if scaling:
        stretch = np.array(scaling["long_factor" if n_tokens > original else "short_factor"])
        m = math.sqrt(1 + math.log(longest / original) / math.log(original)) if longest > original else 1.0
    inv_freq = 1.0 / (stretch * config["rope_theta"] ** (np.arange(0, rotary_dim, 2) / rotary_dim))
    angles = np.arange(n_tokens)[:, None] * inv_freq
    return m * np.cos(angles), m * np.sin(angles)
