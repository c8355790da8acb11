"""Small random Phi-3.5-MoE class models: config, weights, the GGUF file of llama.cpp's converter, and a definition."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from tiny_models.checkpoint import Checkpoint, StoredTensor
from tiny_models.gguf_file import _add, _add_vocabulary
from tiny_models.random_blocks import random_matrix

F64 = NDArray[np.float64]

MSCALE = 1.243163121016122
"""Phi-3.5-MoE-instruct's short_mscale and long_mscale; the formula for its contexts gives 1.19."""

_PARTS = {"w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up"}
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "block_sparse_moe.gate": "ffn_gate_inp",
}


def phimoe_longrope(head_dim: int, original: int = 4096, **changes: Any) -> dict[str, Any]:
    """Return the rope_scaling of Phi-3.5-MoE with lists that begin like its own and end at sixty-fold."""
    return {
        "type": "longrope",
        "short_factor": np.linspace(1.0, 2.9, head_dim // 2).tolist(),
        "long_factor": np.geomspace(1.02, 60.0, head_dim // 2).tolist(),
        "short_mscale": MSCALE,
        "long_mscale": MSCALE,
        "original_max_position_embeddings": original,
        **changes,
    }


def tiny_phimoe_config(**changes: Any) -> dict[str, Any]:
    """Return a config.json as a dict: two layers, four heads of 64 over two, sixteen experts, every bias there is."""
    return {
        "model_type": "phimoe",
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "num_experts_per_tok": 2,
        "num_local_experts": 16,
        "router_jitter_noise": 0.01,
        "attention_bias": True,
        "lm_head_bias": True,
        "tie_word_embeddings": False,
        **changes,
    }


PHIMOE_MEMBERS: dict[str, dict[str, Any]] = {
    # 128-element heads, four queries share a key, LongRoPE with its own attention factor, a window that does nothing
    "phi-3.5-moe": tiny_phimoe_config(
        hidden_size=512,
        num_key_value_heads=1,
        intermediate_size=800,
        max_position_embeddings=131072,
        sliding_window=131072,
        rope_scaling=phimoe_longrope(128),
    ),
    # narrow experts, no LongRoPE
    "phi-mini-moe": tiny_phimoe_config(intermediate_size=60, sliding_window=2047, vocab_size=1003),
    # heads that are together narrower than the hidden state
    "phi-tiny-moe": tiny_phimoe_config(
        hidden_size=512, head_dim=64, intermediate_size=56, sliding_window=2047, num_key_value_heads=1
    ),
    # no biases but those of the norms, and few experts
    "plain": tiny_phimoe_config(attention_bias=False, lm_head_bias=False, num_local_experts=3),
}


def random_phimoe_checkpoint(
    config: dict[str, Any], kind: str = "F32", *, seed: int = 0, gain: float = 1.5, router_gain: float = 2.0
) -> Checkpoint:
    """Return random tensors whose activations stay near 1, norms and biases away from what they would be by default.

    kind:        ggml type of the matrices but the routers, which are F32; where a row is no multiple of its block, F32
    router_gain: standard deviation of the routers' scores; a small one gives experts that share a weight
    """
    rng = np.random.default_rng(seed)
    tensors: dict[str, StoredTensor] = {}

    def vector(name: str, values: F64) -> None:
        tensors[name] = StoredTensor("F32", values.astype(np.float32).view(np.uint8), values.astype(np.float32))

    def matrix(name: str, n_rows: int, n_cols: int, std: float, stored: str = kind) -> None:
        block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[stored]][0]
        stored = "F32" if n_cols % block else stored
        data, values = random_matrix(stored, n_rows, n_cols, std, rng)
        tensors[f"{name}.weight"] = StoredTensor(stored, data, values)

    def norm(name: str) -> None:
        vector(f"{name}.weight", rng.uniform(0.5, 1.5, n_hidden))
        vector(f"{name}.bias", rng.normal(0.0, 0.3, n_hidden))

    n_hidden, n_inner, n_vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_dim = config.get("head_dim") or n_hidden // config["num_attention_heads"]
    n_q, n_kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    projections = {"q_proj": (n_q, n_hidden), "k_proj": (n_kv, n_hidden), "v_proj": (n_kv, n_hidden)}
    projections["o_proj"] = (n_hidden, n_q)
    matrix("model.embed_tokens", n_vocab, n_hidden, 1.0)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        norm(f"{layer}.input_layernorm")
        for part, (n_rows, n_cols) in projections.items():
            matrix(f"{layer}.self_attn.{part}", n_rows, n_cols, gain * n_cols**-0.5)
            if config["attention_bias"]:
                vector(f"{layer}.self_attn.{part}.bias", rng.normal(0.0, 0.5, n_rows))
        norm(f"{layer}.post_attention_layernorm")
        moe = f"{layer}.block_sparse_moe"
        matrix(f"{moe}.gate", config["num_local_experts"], n_hidden, router_gain * n_hidden**-0.5, "F32")
        for e in range(config["num_local_experts"]):
            for part, (n_rows, n_cols) in {
                "w1": (n_inner, n_hidden),
                "w2": (n_hidden, n_inner),
                "w3": (n_inner, n_hidden),
            }.items():
                matrix(f"{moe}.experts.{e}.{part}", n_rows, n_cols, gain * n_cols**-0.5)
    norm("model.norm")
    if not config["tie_word_embeddings"]:
        matrix("lm_head", n_vocab, n_hidden, gain * n_hidden**-0.5)
    if config["lm_head_bias"]:
        vector("lm_head.bias", rng.normal(0.0, 0.5, n_vocab))
    return Checkpoint(config, tensors)


def fused_experts(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """The tensors as transformers 5 has them in memory: a layer's experts stacked, gate rows above up rows."""
    tensors: dict[str, StoredTensor] = {}
    n_experts = checkpoint.config["num_local_experts"]
    for name, tensor in checkpoint.tensors.items():
        expert = re.fullmatch(r"(.*)\.block_sparse_moe\.experts\.0\.w1\.weight", name)
        if expert:
            stem = f"{expert[1]}.block_sparse_moe.experts"
            gate_up = [
                checkpoint.tensors[f"{stem}.{e}.w1.weight"].above(checkpoint.tensors[f"{stem}.{e}.w3.weight"])
                for e in range(n_experts)
            ]
            tensors[f"{expert[1]}.mlp.experts.gate_up_proj"] = _stack(gate_up)
            down = [checkpoint.tensors[f"{stem}.{e}.w2.weight"] for e in range(n_experts)]
            tensors[f"{expert[1]}.mlp.experts.down_proj"] = _stack(down)
        elif ".experts." not in name:
            tensors[name.replace("block_sparse_moe.gate", "mlp.router")] = tensor
    return tensors


def write_phimoe_gguf(
    path: Path,
    checkpoint: Checkpoint,
    *,
    extra: dict[str, Any] | None = None,
    leave_out: Sequence[str] = (),
    mscales: bool = True,
    extra_tensors: dict[str, NDArray[Any]] | None = None,
) -> Path:
    """Write the file of architecture `phimoe` and return its path.

    extra:         metadata keys without the prefix to add or to write otherwise
    leave_out:     metadata keys without the prefix, and tensors by their GGUF name, not to write
    mscales:       write the checkpoint's attention factors, as phlite does; else what llama.cpp's converter writes
    extra_tensors: tensors to add as float32, by GGUF name
    """
    writer = gguf.GGUFWriter(path, "phimoe")
    for key, value in {**_keys(checkpoint.config, mscales=mscales), **(extra or {})}.items():
        if key not in leave_out:
            _add(writer, f"phimoe.{key}", value)
    _add_vocabulary(writer, checkpoint.config["vocab_size"])
    for name, tensor in gguf_tensors(checkpoint).items():
        if name not in leave_out:
            data = tensor.values if tensor.type == "F32" else tensor.data
            writer.add_tensor(name, np.ascontiguousarray(data), raw_dtype=gguf.GGMLQuantizationType[tensor.type])
    for name, values in (extra_tensors or {}).items():
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_tensors(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """The tensors of the file by their names in it, experts stacked."""
    stacks: dict[str, list[StoredTensor]] = {}
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in checkpoint.tensors.items():
        in_file, expert = _name_in_file(name)
        if expert is None:
            tensors[in_file] = tensor
        else:
            stacks.setdefault(in_file, []).append(tensor)
    for name, matrices in stacks.items():
        tensors[name] = _stack(matrices)
    for which in ("long", "short"):
        if checkpoint.config.get("rope_scaling"):
            values = np.array(checkpoint.config["rope_scaling"][f"{which}_factor"], np.float32)
            tensors[f"rope_factors_{which}.weight"] = StoredTensor("F32", values.view(np.uint8), values)
    return tensors


def read_phimoe_gguf(path: Path, like: Checkpoint) -> Checkpoint:
    """Return the checkpoint that a file holds, whoever wrote it, with the names and the config of another one."""
    in_file = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    tensors: dict[str, StoredTensor] = {}
    for name in like.tensors:
        stored, expert = _name_in_file(name)
        tensor = in_file[stored]
        data = tensor.data if expert is None else tensor.data[expert]
        values = gguf.quants.dequantize(data, tensor.tensor_type).astype(np.float32)
        tensors[name] = StoredTensor(tensor.tensor_type.name, data.view(np.uint8), values)
    return Checkpoint(like.config, tensors)


def _name_in_file(name: str) -> tuple[str, int | None]:
    """Return the name of the GGUF tensor that holds a tensor, and the expert's place if it is a stack of experts."""
    module, kind = name.rsplit(".", 1)
    if expert := re.fullmatch(r"model\.layers\.(\d+)\.block_sparse_moe\.experts\.(\d+)\.(w\d)", module):
        return f"blk.{expert[1]}.{_PARTS[expert[3]]}_exps.weight", int(expert[2])
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    return f"blk.{layer[1]}.{_NAMES[layer[2]]}.{kind}" if layer else f"{_NAMES[module]}.{kind}", None


def phimoe_reference_logits(
    config: dict[str, Any],
    weights: dict[str, NDArray[np.float32]],
    token_ids: Sequence[int],
    *,
    as_llama_cpp: bool = False,
    round_activations: Callable[[F64, str], F64] = lambda x, name: x,
) -> F64:
    """Return float64[T, V], the logits after every token of one sequence, the whole sequence at once.

    as_llama_cpp:      with what llama.cpp's graph does otherwise: norms that do not subtract the mean, and weights of
                       the two experts that are a softmax over all scores, renormalised to a sum of 1
    round_activations: applied to the input of every matrix product and its tensor's name, see int8_activations
    """
    w = {name: values.astype(np.float64) for name, values in weights.items()}
    n_tokens, n_q, n_kv = len(token_ids), config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // n_q
    cos, sin = _rotation(config, n_tokens, head_dim)
    distance = np.arange(n_tokens)[:, None] - np.arange(n_tokens)
    hidden = (distance < 0) | (distance >= (config.get("sliding_window") or n_tokens))

    def product(x: F64, name: str) -> F64:
        bias = w.get(f"{name}.bias")
        y = round_activations(x, f"{name}.weight") @ w[f"{name}.weight"].T
        return y if bias is None else y + bias

    def norm(x: F64, name: str) -> F64:
        d = x if as_llama_cpp else x - x.mean(-1, keepdims=True)
        d = d / np.sqrt((d**2).mean(-1, keepdims=True) + config["rms_norm_eps"])
        return d * w[f"{name}.weight"] + w[f"{name}.bias"]

    def rotate(x: F64) -> F64:
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def heads(x: F64, n: int) -> F64:
        return x.reshape(n_tokens, n, head_dim).transpose(1, 0, 2)

    x = w["model.embed_tokens.weight"][np.asarray(token_ids)]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        h = norm(x, f"{layer}.input_layernorm")
        q, k, v = (product(h, f"{layer}.self_attn.{part}_proj") for part in "qkv")
        q, k, v = rotate(heads(q, n_q)), rotate(heads(k, n_kv)), heads(v, n_kv)
        k, v = (np.repeat(part, n_q // n_kv, axis=0) for part in (k, v))
        scores = np.where(hidden, -np.inf, q @ k.transpose(0, 2, 1) / math.sqrt(head_dim))
        p = np.exp(scores - scores.max(-1, keepdims=True))
        a = (p / p.sum(-1, keepdims=True)) @ v
        x = x + product(a.transpose(1, 0, 2).reshape(n_tokens, -1), f"{layer}.self_attn.o_proj")
        h = norm(x, f"{layer}.post_attention_layernorm")
        moe = f"{layer}.block_sparse_moe"
        rule = _renormalised if as_llama_cpp else _sparsemixer
        answers = np.zeros_like(x)
        for t, s in enumerate(product(h, f"{moe}.gate")):
            for e, weight in rule(s, config["router_jitter_noise"]):
                gate, up = product(h[t], f"{moe}.experts.{e}.w1"), product(h[t], f"{moe}.experts.{e}.w3")
                answers[t] += weight * product(gate / (1 + np.exp(-gate)) * up, f"{moe}.experts.{e}.w2")
        x = x + answers
    return product(norm(x, "model.norm"), "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head")


def _sparsemixer(s: F64, jitter_eps: float) -> list[tuple[int, float]]:
    first = int(np.argmax(s))
    second = int(np.argmax(np.where(np.arange(len(s)) == first, -np.inf, s)))
    chosen = []
    for best, gone in ((first, []), (second, [first])):
        share = np.exp(s - s[best])
        share[(s[best] - s) / np.maximum(np.abs(s), s[best]) > 2 * jitter_eps] = 0
        share[gone] = 0
        chosen.append((best, float(share[best] / share.sum())))
    return chosen


def _renormalised(s: F64, jitter_eps: float) -> list[tuple[int, float]]:
    best = np.argsort(-s, kind="stable")[:2]
    share = np.exp(s[best] - s[best[0]])
    return list(zip(best.tolist(), (share / share.sum()).tolist(), strict=True))


def _rotation(config: dict[str, Any], n_tokens: int, head_dim: int) -> tuple[F64, F64]:
    scaling = config.get("rope_scaling")
    stretch, m = np.ones(head_dim // 2), 1.0
    if scaling:
        which = "long" if n_tokens > scaling["original_max_position_embeddings"] else "short"
        stretch, m = np.array(scaling[f"{which}_factor"]), scaling[f"{which}_mscale"]
    inv_freq = 1.0 / (stretch * config["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim))
    angles = np.arange(n_tokens)[:, None] * inv_freq
    return m * np.cos(angles), m * np.sin(angles)


def _keys(config: dict[str, Any], *, mscales: bool) -> dict[str, Any]:
    n_heads, longest = config["num_attention_heads"], config["max_position_embeddings"]
    scaling = config.get("rope_scaling") or {}
    original = scaling.get("original_max_position_embeddings", longest)
    head_dim = config.get("head_dim") or config["hidden_size"] // n_heads
    keys: dict[str, Any] = {
        "context_length": longest,
        "rope.scaling.original_context_length": original,
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "block_count": config["num_hidden_layers"],
        "attention.head_count": n_heads,
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.dimension_count": head_dim,
        "rope.freq_base": config["rope_theta"],
        "attention.sliding_window": config.get("sliding_window") or 0,
        "expert_used_count": config["num_experts_per_tok"],
        "expert_count": config["num_local_experts"],
    }
    if head_dim * n_heads != config["hidden_size"]:
        keys |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    if scaling:
        keys["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(longest / original) / math.log(original))
    if scaling and mscales:
        keys["rope.scaling.attn_factor"] = scaling["short_mscale"]
        keys |= {f"rope.scaling.{which}_mscale": scaling[f"{which}_mscale"] for which in ("short", "long")}
    return keys


def _stack(matrices: Sequence[StoredTensor]) -> StoredTensor:
    data, values = np.stack([m.data for m in matrices]), np.stack([m.values for m in matrices])
    return StoredTensor(matrices[0].type, data, values)
