"""Phi-3-small, 8k and 128k. A pre-norm decoder with muP scales, GEGELU and block-sparse attention in every other layer.

For every token x = multiplier · embedding, with ln(x) = (x - mean(x)) / sqrt(var(x) + eps), a bias in every product:

    h = ln(x) · w_in + b_in
    q, k, v = W_qkv h                                  q and k rotated by their position
    x = x + W_dense softmax(q kᵀ · softmax_scale + mask) v
    h = ln(x) · w_post + b_post
    g, u = W_up h                                      even rows, odd rows; clamped
    x = x + W_down (g / (1 + exp(-1.702 g)) · (u + 1))

and after the last layer, logits = W_emb (ln(x) · w_norm + b_norm) / width_multiplier, -inf for the dummy tokens.
docs/models.md gives the details and sources. Shape letters: T new tokens, E hidden, Hq and Hkv heads of D elements,
R wanted rows, V vocabulary.
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
from phlite.layers.norm import Normed, build_layer_norm
from phlite.layers.rope import RotaryEmbedding
from phlite.layers.weights import Weights
from phlite.models.base import Batch, LoraTargets
from phlite.models.decoder import RotaryDecoder
from phlite.models.phi3small_config import Phi3SmallConfig
from phlite.models.phi3small_tensors import GGUF_NAMES, check_tied, is_idle_tensor, qkv_row_order
from phlite.tiles import TileSource

__all__ = ["MLP", "Attention", "DecoderLayer", "Phi3SmallConfig", "Phi3SmallForCausalLM", "Phi3SmallModel"]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]


class Attention:
    """Grouped-query attention over the cached keys and values of each token's own sequence."""

    def __init__(self, config: Phi3SmallConfig, weights: Weights, layer_idx: int, pool: ops.ThreadPool) -> None:
        prefix, n_hidden = f"model.layers.{layer_idx}.self_attn", config.hidden_size
        self.query_key_value = _build_qkv(weights, f"{prefix}.query_key_value", config, pool)
        self.attend = CachedAttention(
            layer_idx=layer_idx,
            n_heads=config.num_attention_heads,
            softmax_scale=config.softmax_scale,
            sliding_window=0,
            rope_interleaved=False,
            pool=pool,
            block_sparse=None if config.is_dense(layer_idx) else config.block_sparse,
        )
        self.dense = build_linear(
            weights,
            {f"{prefix}.dense.weight": n_hidden},
            bias_parts=[f"{prefix}.dense.bias"],
            n_cols=n_hidden,
            pool=pool,
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
        """Return x + W_dense attention(W_qkv h), float32[T, E]; with rows int32[R], these rows of it."""
        a = self.attend(self.query_key_value(h, lora=lora), cache, step)
        return self.dense(a, residual=x, rows=rows, lora=lora)


class MLP:
    """The gated feed-forward network."""

    def __init__(self, config: Phi3SmallConfig, weights: Weights, layer_idx: int, pool: ops.ThreadPool) -> None:
        prefix, n_hidden, n_inner = f"model.layers.{layer_idx}.mlp", config.hidden_size, config.intermediate_size
        self.up_proj = build_linear(
            weights,
            {f"{prefix}.up_proj.weight": 2 * n_inner},
            bias_parts=[f"{prefix}.up_proj.bias"],
            n_cols=n_hidden,
            pool=pool,
            activation="gegelu",
            gegelu_limit=config.gegelu_limit,
        )
        self.down_proj = build_linear(
            weights,
            {f"{prefix}.down_proj.weight": n_hidden},
            bias_parts=[f"{prefix}.down_proj.bias"],
            n_cols=n_inner,
            pool=pool,
        )

    def __call__(self, h: Normed, x: F32, lora: RowAdapters | None = None) -> F32:
        """Return x + W_down gegelu(W_up h), float32[T, E]."""
        return self.down_proj(self.up_proj(h, lora=lora), residual=x, lora=lora)


class DecoderLayer:
    """Attention, then MLP, each on the norm of what came before and added to it."""

    def __init__(self, config: Phi3SmallConfig, weights: Weights, layer_idx: int, pool: ops.ThreadPool) -> None:
        prefix, n_hidden, eps = f"model.layers.{layer_idx}", config.hidden_size, config.layer_norm_epsilon
        self.input_layernorm = build_layer_norm(weights, f"{prefix}.input_layernorm", n_hidden, eps)
        self.self_attn = Attention(config, weights, layer_idx, pool)
        self.post_attention_layernorm = build_layer_norm(weights, f"{prefix}.post_attention_layernorm", n_hidden, eps)
        self.mlp = MLP(config, weights, layer_idx, pool)

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
        return self.mlp(self.post_attention_layernorm(x), x, take_rows(lora, rows))


class Phi3SmallModel:
    """Embedding, decoder layers and final norm."""

    def __init__(self, config: Phi3SmallConfig, weights: Weights, pool: ops.ThreadPool) -> None:
        n_hidden, eps = config.hidden_size, config.layer_norm_epsilon
        table = weights.matrix("model.embed_tokens.weight", n_rows=config.vocab_size, n_cols=n_hidden)
        self.embed_tokens = Embedding(table)
        self.multiplier = np.float32(config.mup_embedding_multiplier)
        self.layers = [DecoderLayer(config, weights, i, pool) for i in range(config.num_hidden_layers)]
        self.final_layernorm = build_layer_norm(weights, "model.final_layernorm", n_hidden, eps)

    def __call__(
        self,
        token_ids: I32,
        step: ops.AttentionBatch,
        cache: ops.KVCache,
        rows: I32,
        lora: RowAdapters | None = None,
    ) -> Normed:
        """Return the normed hidden states of the wanted rows int32[R], float32[R, E]."""
        x = self.embed_tokens(token_ids) * self.multiplier
        for layer in self.layers[:-1]:
            x = layer(x, step, cache, lora=lora)
        # After the last layer wrote its keys and values, the other rows have nothing more to give.
        x = self.layers[-1](x, step, cache, rows, lora)
        return self.final_layernorm(x)


class Phi3SmallForCausalLM(RotaryDecoder):
    """The model with its output matrix: token ids of a ragged batch in, logits out. Implements `base.CausalLM`."""

    config: Phi3SmallConfig

    def __init__(self, config: Phi3SmallConfig, weights: Weights, pool: ops.ThreadPool) -> None:
        self.config = config
        self.model = Phi3SmallModel(config, weights, pool)
        if config.tie_word_embeddings and "lm_head.weight" in weights:
            check_tied(weights, config)
        output = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
        self.lm_head: Linear = build_linear(weights, {output: config.vocab_size}, n_cols=config.hidden_size, pool=pool)
        self.masked_token_ids = np.array(config.masked_token_ids, np.int64)
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
    def from_gguf(
        cls, file: GGUFFile, *, pool: ops.ThreadPool, tiles: TileSource | None = None
    ) -> Phi3SmallForCausalLM:
        """Return the model of an open file of architecture `phi3small`, its weights packed, or found in `tiles`.

        raises: ModelFileError where the file is incomplete or contradicts itself; UnsupportedModelError where it has
                keys or tensors that this architecture does not
        """
        weights = Weights(file.tensors, source=file.metadata.source, names=GGUF_NAMES, files=file.maps, tiles=tiles)
        model = cls(Phi3SmallConfig.from_gguf(file.metadata, weights), weights, pool)
        weights.check_all_used()
        return model

    @classmethod
    def from_hf(cls, checkpoint: Checkpoint, *, pool: ops.ThreadPool) -> Phi3SmallForCausalLM:
        """Return the model of an open checkpoint, its weights packed for this machine in the types they have.

        raises: ModelFileError where the checkpoint is incomplete or contradicts itself; UnsupportedModelError where it
                has config keys or tensors that this architecture does not
        """
        weights = Weights(checkpoint.tensors, source=checkpoint.source, files=checkpoint.maps)
        weights.leave_out(filter(is_idle_tensor, checkpoint.tensors))
        config = Phi3SmallConfig.from_hf_config(checkpoint.config, source=checkpoint.config_source)
        model = cls(config, weights, pool)
        weights.check_all_used()
        return model

    def forward(self, batch: Batch, cache: ops.KVCache) -> F32:
        """Write the batch's keys and values to the cache; return float32[R, V] logits of batch.logit_rows.

        The logits of masked tokens are -inf.
        raises: ShapeError when the arrays of the batch contradict each other or the model
        """
        step = self.attention_step(batch)
        with self.one_region(batch):
            h = self.model(batch.token_ids, step, cache, batch.logit_rows, batch.lora)
            logits = self.lm_head(h, lora=take_rows(batch.lora, batch.logit_rows))
        logits /= np.float32(self.config.mup_width_multiplier)
        logits[:, self.masked_token_ids] = -np.inf
        return logits

    def lora_targets(self) -> LoraTargets:
        """Return the products that adapters may change; see `base.Adaptable`."""
        # The checkpoint has q, k and v group by group, the product all q, then all k, then all v.
        hf_rows = np.argsort(qkv_row_order(self.config)).astype(np.int32)
        products: dict[str, Product] = {}
        for i, layer in enumerate(self.model.layers):
            attention, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
            qkv = layer.self_attn.query_key_value
            products |= product_parts(qkv, attention, "query_key_value", hf_rows=hf_rows)
            products |= product_parts(layer.self_attn.dense, attention, "dense")
            products |= product_parts(layer.mlp.up_proj, mlp, "up_proj")
            products |= product_parts(layer.mlp.down_proj, mlp, "down_proj")
        products |= product_parts(self.lm_head, "", "lm_head")
        return LoraTargets("phi3small", GGUF_NAMES, products)


def _build_qkv(weights: Weights, name: str, config: Phi3SmallConfig, pool: ops.ThreadPool) -> Linear:
    """Return the product with all query rows, then all key rows, then all value rows, whatever the file's order."""
    n_q, n_kv, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    n_rows, n_cols = (n_q + 2 * n_kv) * head_dim, config.hidden_size
    if not config.qkv_grouped:
        return build_linear(weights, {f"{name}.weight": n_rows}, bias_parts=[f"{name}.bias"], n_cols=n_cols, pool=pool)
    tensor = weights.matrix(f"{name}.weight", n_rows=n_rows, n_cols=n_cols)
    bias = weights.vector(f"{name}.bias", n_rows)
    order = qkv_row_order(config)
    # Heads in their new order, each head's rows as they are.
    data, heads = tensor.data.reshape(n_rows, -1), order[::head_dim].tolist()
    parts = [(data[row : row + head_dim].reshape(-1), tensor.type, head_dim) for row in heads]
    packed = ops.pack_matrix(parts, n_cols, pool=pool, files=weights.files)
    return Linear(packed, pool, bias[order], name, (tensor.name,), weights.watch)
