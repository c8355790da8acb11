"""Phi-3-small checkpoints as GGUF files of architecture `phi3small`, which is our own: docs/gguf-phi3small.md.

query_key_value's rows are put in the order of other architectures' attn_qkv: all queries, all keys, all values.
up_proj's stay as they are, gelu and linear rows in turn.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from phlite.checkpoint import Checkpoint
from phlite.convert.plan import Conversion, Field, Planner, f32, u32
from phlite.gguf import ValueType
from phlite.models.phi3small_config import Phi3SmallConfig
from phlite.models.phi3small_tensors import check_tied, is_idle_tensor, qkv_row_order

__all__ = ["plan_phi3small"]

I64 = npt.NDArray[np.int64]


def plan_phi3small(checkpoint: Checkpoint) -> Conversion:
    """Return the conversion of a checkpoint of model_type `phi3small`.

    raises: ModelFileError, UnsupportedModelError as `Phi3SmallConfig.from_hf_config` and for tensors that do not fit it
    """
    config = Phi3SmallConfig.from_hf_config(checkpoint.config, source=checkpoint.config_source)
    planner = Planner(checkpoint)
    planner.weights.leave_out(filter(is_idle_tensor, checkpoint.tensors))
    n_hidden, n_vocab = config.hidden_size, config.vocab_size
    planner.matrix("token_embd.weight", {"model.embed_tokens.weight": n_vocab}, n_cols=n_hidden)
    row_order = qkv_row_order(config)
    for layer_idx in range(config.num_hidden_layers):
        _plan_layer(planner, config, layer_idx, row_order)
    for kind in ("weight", "bias"):
        planner.vector(f"output_norm.{kind}", f"model.final_layernorm.{kind}", n_hidden)
    if not config.tie_word_embeddings:
        planner.matrix("output.weight", {"lm_head.weight": n_vocab}, n_cols=n_hidden)
    elif "lm_head.weight" in planner:
        check_tied(planner.weights, config)
    if config.rope_long_factor is not None and config.rope_short_factor is not None:
        planner.values("rope_factors_long.weight", config.rope_long_factor)
        planner.values("rope_factors_short.weight", config.rope_short_factor)
    return planner.finish("phi3small", _fields(config))


def _plan_layer(planner: Planner, config: Phi3SmallConfig, layer_idx: int, row_order: I64) -> None:
    hf, gguf = f"model.layers.{layer_idx}", f"blk.{layer_idx}"
    n_hidden, n_inner, n_qkv = config.hidden_size, config.intermediate_size, len(row_order)
    for name, norm in (("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")):
        for kind in ("weight", "bias"):
            planner.vector(f"{gguf}.{name}.{kind}", f"{hf}.{norm}.{kind}", n_hidden)
    qkv = f"{hf}.self_attn.query_key_value"
    planner.matrix(f"{gguf}.attn_qkv.weight", {f"{qkv}.weight": n_qkv}, n_cols=n_hidden, row_order=row_order)
    planner.vector(f"{gguf}.attn_qkv.bias", f"{qkv}.bias", n_qkv, order=row_order)
    for name, module, n_rows, n_cols in (
        ("attn_output", "self_attn.dense", n_hidden, n_hidden),
        ("ffn_up", "mlp.up_proj", 2 * n_inner, n_hidden),
        ("ffn_down", "mlp.down_proj", n_hidden, n_inner),
    ):
        planner.matrix(f"{gguf}.{name}.weight", {f"{hf}.{module}.weight": n_rows}, n_cols=n_cols)
        planner.vector(f"{gguf}.{name}.bias", f"{hf}.{module}.bias", n_rows)


def _fields(config: Phi3SmallConfig) -> dict[str, Field]:
    sparse = config.block_sparse
    fields: dict[str, Field] = {
        "context_length": u32(config.max_position_embeddings),
        "embedding_length": u32(config.hidden_size),
        "feed_forward_length": u32(config.intermediate_size),
        "block_count": u32(config.num_hidden_layers),
        "attention.head_count": u32(config.num_attention_heads),
        "attention.head_count_kv": u32(config.num_key_value_heads),
        "attention.layer_norm_epsilon": f32(config.layer_norm_epsilon),
        "attention.scale": f32(config.softmax_scale),
        "attention.block_sparse.block_size": u32(sparse.block_size),
        "attention.block_sparse.local_blocks": u32(sparse.num_local_blocks),
        "attention.block_sparse.vertical_stride": u32(sparse.vert_stride),
        "attention.block_sparse.homogeneous_heads": (sparse.homo_head_pattern, None),
        "attention.block_sparse.dense_every_n_layers": u32(config.dense_attention_every_n_layers or 0),
        "rope.dimension_count": u32(config.head_dim),
        "rope.freq_base": f32(config.rope_theta),
        "embedding_scale": f32(config.mup_embedding_multiplier),
        "logit_scale": f32(config.mup_width_multiplier),
        "masked_token_ids": (list(config.masked_token_ids), ValueType.INT32),
    }
    if config.gegelu_limit is not None:
        fields["gegelu_limit"] = f32(config.gegelu_limit)
    if config.rope_long_factor is not None:
        fields["rope.scaling.original_context_length"] = u32(config.original_max_position_embeddings)
        fields["rope.scaling.short_mscale"] = f32(config.rope_short_mscale)
        fields["rope.scaling.long_mscale"] = f32(config.rope_long_mscale)
    return fields
