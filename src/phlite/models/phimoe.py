"""Phi-3.5-MoE, Phi-mini-MoE and Phi-tiny-MoE: a pre-norm decoder whose feed-forward network is a mixture of experts.

For every token x at every layer, with ln(x) = (x - mean(x)) / sqrt(var(x) + eps) · w + b:

    h = ln_in(x)
    q, k, v = W_qkv h + b_qkv                          q and k rotated by their position
    x = x + W_o softmax(q kᵀ / sqrt(D) + mask) v + b_o
    h = ln_post(x)
    x = x + w1 E_i1(h) + w2 E_i2(h)                    experts i and weights w by the scores W_router h, see ops.route
                                                       E(h) = W_2 (silu(W_1 h) · W_3 h)

and after the last one, logits = W_out ln_norm(x) + b_out. docs/models.md gives the details and sources.
Shape letters: T new tokens, E hidden, Hq and Hkv heads of D elements, X experts, R wanted rows, V vocabulary.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from phlite import ops
from phlite.checkpoint import Checkpoint
from phlite.gguf import GGUFFile
from phlite.layers.attention import CachedAttention
from phlite.layers.embedding import Embedding
from phlite.layers.linear import Linear, build_linear
from phlite.layers.lora import Product, RowAdapters, product_parts, take_rows
from phlite.layers.moe import SparseMoE, build_sparse_moe
from phlite.layers.norm import Normed, build_layer_norm
from phlite.layers.rope import RotaryEmbedding
from phlite.layers.weights import Weights
from phlite.models.base import Batch, LoraTargets
from phlite.models.decoder import RotaryDecoder
from phlite.models.phimoe_config import GGUF_NAMES, PhimoeConfig
from phlite.models.phimoe_tensors import split_stacks
from phlite.tiles import TileSource

__all__ = ["Attention", "DecoderLayer", "PhimoeConfig", "PhimoeForCausalLM", "PhimoeModel"]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]


class Attention:
    """Grouped-query attention over the cached keys and values of each token's own sequence."""

    def __init__(self, config: PhimoeConfig, weights: Weights, layer_idx: int, pool: ops.ThreadPool) -> None:
        prefix, head_dim = f"model.layers.{layer_idx}.self_attn", config.head_dim
        q_rows, kv_rows = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
        parts: dict[str, int | None] = {"qkv_proj": q_rows + 2 * kv_rows}
        if f"{prefix}.q_proj.weight" in weights:
            parts = {"q_proj": q_rows, "k_proj": kv_rows, "v_proj": kv_rows}
        self.qkv_proj = build_linear(
            weights,
            {f"{prefix}.{part}.weight": n_rows for part, n_rows in parts.items()},
            n_cols=config.hidden_size,
            pool=pool,
            bias_parts=[f"{prefix}.{part}.bias" for part in parts] if config.attention_bias else None,
        )
        self.attend = CachedAttention(
            layer_idx=layer_idx,
            n_heads=config.num_attention_heads,
            softmax_scale=head_dim**-0.5,
            sliding_window=config.effective_window,
            rope_interleaved=False,
            pool=pool,
        )
        self.o_proj = build_linear(
            weights,
            {f"{prefix}.o_proj.weight": config.hidden_size},
            n_cols=q_rows,
            pool=pool,
            bias_parts=[f"{prefix}.o_proj.bias"] if config.attention_bias else None,
        )

    def __call__(
        self,
        h: Normed,
        x: F32,
        step: ops.AttentionBatch,
        cache: ops.KVCache,
        rows: I32 | None = None,
        lora: RowAdapters | None = None,
    ) -> F32:
        """Return x + W_o attention(W_qkv h + b_qkv) + b_o, float32[T, E]; with rows int32[R], these rows of it."""
        qkv = self.qkv_proj(h, lora=lora)
        a = self.attend(qkv, cache, step)
        return self.o_proj(a, residual=x, rows=rows, lora=lora)


class DecoderLayer:
    """Attention, then the mixture of experts, each on the norm of what came before and added to it."""

    def __init__(self, config: PhimoeConfig, weights: Weights, layer_idx: int, pool: ops.ThreadPool) -> None:
        prefix, n_hidden, eps = f"model.layers.{layer_idx}", config.hidden_size, config.rms_norm_eps
        self.input_layernorm = build_layer_norm(weights, f"{prefix}.input_layernorm", n_hidden, eps)
        self.self_attn = Attention(config, weights, layer_idx, pool)
        self.post_attention_layernorm = build_layer_norm(weights, f"{prefix}.post_attention_layernorm", n_hidden, eps)
        self.block_sparse_moe: SparseMoE = build_sparse_moe(
            weights,
            f"{prefix}.block_sparse_moe",
            n_experts=config.num_local_experts,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            jitter_eps=config.router_jitter_noise,
            pool=pool,
        )

    def __call__(
        self,
        x: F32,
        step: ops.AttentionBatch,
        cache: ops.KVCache,
        rows: I32 | None = None,
        lora: RowAdapters | None = None,
    ) -> F32:
        """Return float32[T, E]; with rows int32[R], these rows of it."""
        x = self.self_attn(self.input_layernorm(x), x, step, cache, rows, lora)
        return self.block_sparse_moe(self.post_attention_layernorm(x), x)


class PhimoeModel:
    """Embedding, decoder layers and final norm."""

    def __init__(self, config: PhimoeConfig, weights: Weights, pool: ops.ThreadPool) -> None:
        n_hidden, eps = config.hidden_size, config.rms_norm_eps
        table = weights.matrix("model.embed_tokens.weight", n_rows=config.vocab_size, n_cols=n_hidden)
        self.embed_tokens = Embedding(table)
        self.layers = [DecoderLayer(config, weights, i, pool) for i in range(config.num_hidden_layers)]
        self.norm = build_layer_norm(weights, "model.norm", n_hidden, eps)

    def __call__(
        self,
        token_ids: I32,
        step: ops.AttentionBatch,
        cache: ops.KVCache,
        rows: I32,
        lora: RowAdapters | None = None,
    ) -> Normed:
        """Return the normed hidden states of the wanted rows int32[R], float32[R, E]."""
        x = self.embed_tokens(token_ids)
        for layer in self.layers[:-1]:
            x = layer(x, step, cache, lora=lora)
        # After the last layer wrote its keys and values, the other rows have nothing more to give.
        x = self.layers[-1](x, step, cache, rows, lora)
        return self.norm(x)


class PhimoeForCausalLM(RotaryDecoder):
    """The model with its output matrix: token ids of a ragged batch in, logits out. Implements `base.CausalLM`."""

    config: PhimoeConfig

    def __init__(self, config: PhimoeConfig, weights: Weights, pool: ops.ThreadPool) -> None:
        self.config = config
        self.model = PhimoeModel(config, weights, pool)
        output = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
        self.lm_head: Linear = build_linear(
            weights,
            {output: config.vocab_size},
            n_cols=config.hidden_size,
            pool=pool,
            bias_parts=["lm_head.bias"] if config.lm_head_bias else None,
        )
        self.rotary_emb = RotaryEmbedding(
            theta=config.rope_theta,
            rotary_dim=config.head_dim,
            short_factor=config.rope_short_factor,
            long_factor=config.rope_long_factor,
            original_max_position_embeddings=config.original_max_position_embeddings,
            attention_factor=config.rope_short_mscale,
            long_attention_factor=config.rope_long_mscale,
        )

    @classmethod
    def from_gguf(cls, file: GGUFFile, *, pool: ops.ThreadPool, tiles: TileSource | None = None) -> PhimoeForCausalLM:
        """Return the model of an open file, its weights packed for this machine, or found in `tiles`.

        raises: ModelFileError where the file is incomplete or contradicts itself; UnsupportedModelError where it has
                keys or tensors that this architecture does not
        """
        source = file.metadata.source
        weights = Weights(
            split_stacks(file.tensors, source=source), source=source, names=GGUF_NAMES, files=file.maps, tiles=tiles
        )
        config = PhimoeConfig.from_gguf(file.metadata, weights)
        model = cls(config, weights, pool)
        weights.check_all_used()
        return model

    @classmethod
    def from_hf(cls, checkpoint: Checkpoint, *, pool: ops.ThreadPool) -> PhimoeForCausalLM:
        """Return the model of an open checkpoint, its weights packed for this machine in the types they have.

        raises: ModelFileError where the checkpoint is incomplete or contradicts itself; UnsupportedModelError where it
                has config keys or tensors that this architecture does not
        """
        config = PhimoeConfig.from_hf_config(checkpoint.config, source=checkpoint.config_source)
        tensors = split_stacks(checkpoint.tensors, source=checkpoint.source)
        weights = Weights(tensors, source=checkpoint.source, files=checkpoint.maps)
        model = cls(config, weights, pool)
        weights.check_all_used()
        return model

    def forward(self, batch: Batch, cache: ops.KVCache) -> F32:
        """Write the batch's keys and values to the cache; return float32[R, V] logits of batch.logit_rows.

        raises: ShapeError when the arrays of the batch contradict each other or the model
        """
        step = self.attention_step(batch)
        with self.one_region(batch):
            h = self.model(batch.token_ids, step, cache, batch.logit_rows, batch.lora)
            return self.lm_head(h, lora=take_rows(batch.lora, batch.logit_rows))

    def lora_targets(self) -> LoraTargets:
        """Return the products that adapters may change, experts and routers not among them; see `base.Adaptable`."""
        c = self.config
        n_q, n_kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        products: dict[str, Product] = {}
        for i, layer in enumerate(self.model.layers):
            prefix, split = f"model.layers.{i}.self_attn", {"q_proj": n_q, "k_proj": n_kv, "v_proj": n_kv}
            products |= product_parts(layer.self_attn.qkv_proj, prefix, "qkv_proj", split)
            products |= product_parts(layer.self_attn.o_proj, prefix, "o_proj")
        products |= product_parts(self.lm_head, "", "lm_head")
        return LoraTargets("phimoe", GGUF_NAMES, products)
