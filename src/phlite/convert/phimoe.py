"""Phi-3.5-MoE class checkpoints (also Phi-mini-MoE, Phi-tiny-MoE) as GGUF files of architecture `phimoe`.

Keys and names are those of llama.cpp's converter, so that it reads the file, and three more for what it leaves out:
router_jitter_noise, rope.scaling.short_mscale and rope.scaling.long_mscale.
Source: llama.cpp conversion/phi.py, PhiMoeModel.
"""

from __future__ import annotations

from phlite.checkpoint import Checkpoint
from phlite.convert.plan import Conversion, Field, Planner, f32, u32
from phlite.errors import UnsupportedModelError
from phlite.models.phimoe_config import PhimoeConfig
from phlite.ops.moe import EXPERTS_PER_TOKEN

__all__ = ["plan_phimoe"]


def plan_phimoe(checkpoint: Checkpoint) -> Conversion:
    """Return the conversion of a checkpoint of model_type `phimoe`.

    raises: ModelFileError, UnsupportedModelError as `PhimoeConfig.from_hf_config` and for tensors that do not fit it
    """
    config = PhimoeConfig.from_hf_config(checkpoint.config, source=checkpoint.config_source)
    planner = Planner(checkpoint)
    n_hidden, n_vocab = config.hidden_size, config.vocab_size
    if "model.layers.0.mlp.experts.gate_up_proj" in planner:
        raise UnsupportedModelError(
            f"{checkpoint.source}: the experts are stacked as transformers 5 has them in memory; expected one tensor "
            "for each, as published: save the model again with save_pretrained"
        )
    planner.matrix("token_embd.weight", {"model.embed_tokens.weight": n_vocab}, n_cols=n_hidden)
    for layer_idx in range(config.num_hidden_layers):
        _plan_attention(planner, config, layer_idx)
        _plan_experts(planner, config, layer_idx)
    planner.vector("output_norm.weight", "model.norm.weight", n_hidden)
    planner.vector("output_norm.bias", "model.norm.bias", n_hidden)
    if not config.tie_word_embeddings:
        planner.matrix("output.weight", {"lm_head.weight": n_vocab}, n_cols=n_hidden)
    if config.lm_head_bias:
        planner.vector("output.bias", "lm_head.bias", n_vocab)
    if config.rope_long_factor is not None and config.rope_short_factor is not None:
        planner.values("rope_factors_long.weight", config.rope_long_factor)
        planner.values("rope_factors_short.weight", config.rope_short_factor)
    return planner.finish("phimoe", _fields(config))


def _plan_attention(planner: Planner, config: PhimoeConfig, layer_idx: int) -> None:
    hf, gguf, n_hidden = f"model.layers.{layer_idx}", f"blk.{layer_idx}", config.hidden_size
    n_q, n_kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    for part in ("weight", "bias"):
        planner.vector(f"{gguf}.attn_norm.{part}", f"{hf}.input_layernorm.{part}", n_hidden)
    projections = {"q": (n_q, n_hidden), "k": (n_kv, n_hidden), "v": (n_kv, n_hidden), "o": (n_hidden, n_q)}
    for part, (n_rows, n_cols) in projections.items():
        name = "attn_output" if part == "o" else f"attn_{part}"
        planner.matrix(f"{gguf}.{name}.weight", {f"{hf}.self_attn.{part}_proj.weight": n_rows}, n_cols=n_cols)
        if config.attention_bias:
            planner.vector(f"{gguf}.{name}.bias", f"{hf}.self_attn.{part}_proj.bias", n_rows)


def _plan_experts(planner: Planner, config: PhimoeConfig, layer_idx: int) -> None:
    hf, gguf = f"model.layers.{layer_idx}", f"blk.{layer_idx}"
    n_hidden, n_inner, n_experts = config.hidden_size, config.intermediate_size, config.num_local_experts
    for part in ("weight", "bias"):
        planner.vector(f"{gguf}.ffn_norm.{part}", f"{hf}.post_attention_layernorm.{part}", n_hidden)
    moe = f"{hf}.block_sparse_moe"
    planner.matrix(f"{gguf}.ffn_gate_inp.weight", {f"{moe}.gate.weight": n_experts}, n_cols=n_hidden, keeps_f32=True)
    stacks = {"gate": ("w1", n_inner, n_hidden), "down": ("w2", n_hidden, n_inner), "up": ("w3", n_inner, n_hidden)}
    for name, (part, n_rows, n_cols) in stacks.items():
        parts = [f"{moe}.experts.{e}.{part}.weight" for e in range(n_experts)]
        planner.stack(f"{gguf}.ffn_{name}_exps.weight", parts, n_rows=n_rows, n_cols=n_cols)


def _fields(config: PhimoeConfig) -> dict[str, Field]:
    fields = {
        "context_length": u32(config.max_position_embeddings),
        "rope.scaling.original_context_length": u32(config.original_max_position_embeddings),
        "embedding_length": u32(config.hidden_size),
        "feed_forward_length": u32(config.intermediate_size),
        "block_count": u32(config.num_hidden_layers),
        "attention.head_count": u32(config.num_attention_heads),
        "attention.head_count_kv": u32(config.num_key_value_heads),
        "attention.layer_norm_rms_epsilon": f32(config.rms_norm_eps),
        "rope.dimension_count": u32(config.head_dim),
        "rope.freq_base": f32(config.rope_theta),
        "attention.sliding_window": u32(config.sliding_window or 0),
        "expert_count": u32(config.num_local_experts),
        "expert_used_count": u32(EXPERTS_PER_TOKEN),
        "router_jitter_noise": f32(config.router_jitter_noise),
    }
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        fields["attention.key_length"] = fields["attention.value_length"] = u32(config.head_dim)
    if config.rope_long_factor is not None:
        fields["rope.scaling.attn_factor"] = f32(config.rope_short_mscale)
        fields["rope.scaling.short_mscale"] = f32(config.rope_short_mscale)
        fields["rope.scaling.long_mscale"] = f32(config.rope_long_mscale)
    return fields
