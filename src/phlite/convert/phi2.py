"""Phi-1, Phi-1.5 and Phi-2 checkpoints as GGUF files of architecture `phi2`.

Keys and names are those of llama.cpp's converter, which leaves q, k and v three tensors, so that it reads the file.
Source: llama.cpp conversion/phi.py, Phi2Model.
"""

from __future__ import annotations

from phlite.checkpoint import Checkpoint
from phlite.convert.plan import Conversion, Planner, f32, u32
from phlite.errors import UnsupportedModelError
from phlite.models.phi_config import PhiConfig

__all__ = ["plan_phi2"]


def plan_phi2(checkpoint: Checkpoint) -> Conversion:
    """Return the conversion of a checkpoint of model_type `phi`.

    raises: ModelFileError, UnsupportedModelError as `PhiConfig.from_hf_config` and for tensors that do not fit it
    """
    config = PhiConfig.from_hf_config(checkpoint.config, source=checkpoint.config_source)
    if config.tie_word_embeddings:
        raise UnsupportedModelError(
            f"{checkpoint.config_source}: tie_word_embeddings is true, but files of architecture 'phi2' have an output "
            "matrix of their own, as every published Phi-2 has; load the folder itself instead"
        )
    planner = Planner(checkpoint)
    n_hidden, n_inner, n_vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    n_q, n_kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    planner.matrix("token_embd.weight", {"model.embed_tokens.weight": n_vocab}, n_cols=n_hidden)
    for layer_idx in range(config.num_hidden_layers):
        hf, gguf = f"model.layers.{layer_idx}", f"blk.{layer_idx}"
        _plan_norm(planner, f"{gguf}.attn_norm", f"{hf}.input_layernorm", n_hidden)
        for part, n_rows in (("q", n_q), ("k", n_kv), ("v", n_kv)):
            _plan_linear(planner, f"{gguf}.attn_{part}", f"{hf}.self_attn.{part}_proj", n_rows, n_hidden)
        _plan_linear(planner, f"{gguf}.attn_output", f"{hf}.self_attn.dense", n_hidden, n_q)
        _plan_linear(planner, f"{gguf}.ffn_up", f"{hf}.mlp.fc1", n_inner, n_hidden)
        _plan_linear(planner, f"{gguf}.ffn_down", f"{hf}.mlp.fc2", n_hidden, n_inner)
    _plan_norm(planner, "output_norm", "model.final_layernorm", n_hidden)
    _plan_linear(planner, "output", "lm_head", n_vocab, n_hidden)
    fields = {
        "context_length": u32(config.max_position_embeddings),
        "embedding_length": u32(n_hidden),
        "feed_forward_length": u32(n_inner),
        "block_count": u32(config.num_hidden_layers),
        "attention.head_count": u32(config.num_attention_heads),
        "attention.head_count_kv": u32(config.num_key_value_heads),
        "attention.layer_norm_epsilon": f32(config.layer_norm_eps),
        "rope.dimension_count": u32(config.rotary_dim),
        "rope.freq_base": f32(config.rope_theta),
    }
    if n_q != n_hidden:
        fields["attention.key_length"] = fields["attention.value_length"] = u32(config.head_dim)
    return planner.finish("phi2", fields)


def _plan_linear(planner: Planner, name: str, module: str, n_rows: int, n_cols: int) -> None:
    planner.matrix(f"{name}.weight", {f"{module}.weight": n_rows}, n_cols=n_cols)
    planner.vector(f"{name}.bias", f"{module}.bias", n_rows)


def _plan_norm(planner: Planner, name: str, module: str, size: int) -> None:
    planner.vector(f"{name}.weight", f"{module}.weight", size)
    planner.vector(f"{name}.bias", f"{module}.bias", size)
