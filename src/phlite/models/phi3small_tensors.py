"""The tensors of a Phi-3-small checkpoint: names in a GGUF file, order of rows, and those that say nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from phlite.errors import ModelFileError
from phlite.layers.weights import Weights
from phlite.models.phi3small_config import Phi3SmallConfig

__all__ = ["GGUF_NAMES", "check_tied", "is_idle_tensor", "qkv_row_order"]

GGUF_NAMES = {
    **{
        f"{module}.{kind}": f"{name}.{kind}"
        for module, name in {
            "model.embed_tokens": "token_embd",
            "model.layers.*.input_layernorm": "blk.*.attn_norm",
            "model.layers.*.self_attn.query_key_value": "blk.*.attn_qkv",
            "model.layers.*.self_attn.dense": "blk.*.attn_output",
            "model.layers.*.post_attention_layernorm": "blk.*.ffn_norm",
            "model.layers.*.mlp.up_proj": "blk.*.ffn_up",
            "model.layers.*.mlp.down_proj": "blk.*.ffn_down",
            "model.final_layernorm": "output_norm",
            "lm_head": "output",
        }.items()
        for kind in ("weight", "bias")
    },
    "rope.short_factor": "rope_factors_short.weight",
    "rope.long_factor": "rope_factors_long.weight",
}
"""Tensor of the checkpoint -> tensor of a GGUF file."""


def qkv_row_order(config: Phi3SmallConfig) -> NDArray[np.int64]:
    """Return int64[rows]: the checkpoint's rows of query_key_value in the order all queries, all keys, all values.

    The checkpoint has for each key/value head its group's queries, then its key, then its value.
    """
    n_groups, n_per_group = config.num_key_value_heads, config.num_attention_heads // config.num_key_value_heads
    rows = np.arange((n_per_group + 2) * n_groups * config.head_dim).reshape(n_groups, n_per_group + 2, -1)
    return np.concatenate([rows[:, :-2].reshape(-1), rows[:, -2].reshape(-1), rows[:, -1].reshape(-1)])


def is_idle_tensor(name: str) -> bool:
    """Whether a checkpoint's tensor is a table that the config gives too."""
    return name.endswith(".self_attn.rotary_emb.inv_freq")


def check_tied(weights: Weights, config: Phi3SmallConfig) -> None:
    """Raise ModelFileError unless a stored output matrix is the embedding, as a config that ties them says."""
    embedding, output = (
        weights.matrix(name, n_rows=config.vocab_size, n_cols=config.hidden_size)
        for name in ("model.embed_tokens.weight", "lm_head.weight")
    )
    if output.type != embedding.type or not np.array_equal(output.data, embedding.data):
        raise ModelFileError(
            f"{weights.source}: tensor {output.name!r} differs from {embedding.name!r}, but the config ties them; "
            "expected equal ones, or tie_word_embeddings false"
        )
