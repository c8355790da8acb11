"""Phi-3 class checkpoints (mini, medium, 3.5-mini, Phi-4, Phi-4-mini) as GGUF files of architecture `phi3`.

Keys, names and fused matrices are those of llama.cpp's converter, so that it reads the file.
Source: llama.cpp conversion/phi.py, Phi3MiniModel.
"""

from __future__ import annotations

from phlite.checkpoint import Checkpoint
from phlite.convert.plan import Conversion, Field, Planner, f32, u32
from phlite.models.phi3_config import Phi3Config

__all__ = ["plan_phi3"]


def plan_phi3(checkpoint: Checkpoint) -> Conversion:
    """Return the conversion of a checkpoint of model_type `phi3`.

    raises: ModelFileError, UnsupportedModelError as `Phi3Config.from_hf_config` and for tensors that do not fit it
    """
    config = Phi3Config.from_hf_config(checkpoint.config, source=checkpoint.config_source)
    planner = Planner(checkpoint)
    n_hidden, n_vocab = config.hidden_size, config.vocab_size
    planner.matrix("token_embd.weight", {"model.embed_tokens.weight": n_vocab}, n_cols=n_hidden)
    for layer_idx in range(config.num_hidden_layers):
        _plan_layer(planner, config, layer_idx)
    planner.vector("output_norm.weight", "model.norm.weight", n_hidden)
    if config.tie_word_embeddings:
        planner.weights.take_copy("lm_head.weight", of="model.embed_tokens.weight")
    else:
        planner.matrix("output.weight", {"lm_head.weight": n_vocab}, n_cols=n_hidden)
    if config.rope_long_factor is not None and config.rope_short_factor is not None:
        planner.values("rope_factors_long.weight", config.rope_long_factor)
        planner.values("rope_factors_short.weight", config.rope_short_factor)
    return planner.finish("phi3", _fields(config))


def _plan_layer(planner: Planner, config: Phi3Config, layer_idx: int) -> None:
    hf, gguf = f"model.layers.{layer_idx}", f"blk.{layer_idx}"
    n_hidden, n_inner = config.hidden_size, config.intermediate_size
    n_q, n_kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    planner.vector(f"{gguf}.attn_norm.weight", f"{hf}.input_layernorm.weight", n_hidden)
    qkv = {f"{hf}.self_attn.qkv_proj.weight": n_q + 2 * n_kv}
    if f"{hf}.self_attn.q_proj.weight" in planner:
        qkv = {f"{hf}.self_attn.{part}_proj.weight": rows for part, rows in (("q", n_q), ("k", n_kv), ("v", n_kv))}
    planner.matrix(f"{gguf}.attn_qkv.weight", qkv, n_cols=n_hidden)
    planner.matrix(f"{gguf}.attn_output.weight", {f"{hf}.self_attn.o_proj.weight": n_hidden}, n_cols=n_q)
    planner.vector(f"{gguf}.ffn_norm.weight", f"{hf}.post_attention_layernorm.weight", n_hidden)
    gate_up = {f"{hf}.mlp.gate_up_proj.weight": 2 * n_inner}
    if f"{hf}.mlp.gate_proj.weight" in planner:
        gate_up = {f"{hf}.mlp.{part}_proj.weight": n_inner for part in ("gate", "up")}
    planner.matrix(f"{gguf}.ffn_up.weight", gate_up, n_cols=n_hidden)
    planner.matrix(f"{gguf}.ffn_down.weight", {f"{hf}.mlp.down_proj.weight": n_hidden}, n_cols=n_inner)


def _fields(config: Phi3Config) -> dict[str, Field]:
    fields = {
        "context_length": u32(config.max_position_embeddings),
        "rope.scaling.original_context_length": u32(config.original_max_position_embeddings),
        "embedding_length": u32(config.hidden_size),
        "feed_forward_length": u32(config.intermediate_size),
        "block_count": u32(config.num_hidden_layers),
        "attention.head_count": u32(config.num_attention_heads),
        "attention.head_count_kv": u32(config.num_key_value_heads),
        "attention.layer_norm_rms_epsilon": f32(config.rms_norm_eps),
        "rope.dimension_count": u32(config.rotary_dim),
        "rope.freq_base": f32(config.rope_theta),
        # 0 tells "none" from "not written", which readers take for 2047 in a file with a context of 4096.
        "attention.sliding_window": u32(config.sliding_window or 0),
    }
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        fields["attention.key_length"] = fields["attention.value_length"] = u32(config.head_dim)
    if config.rope_long_factor is not None:
        fields["rope.scaling.attn_factor"] = f32(config.rope_attention_factor)
    return fields
