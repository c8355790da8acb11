"""Phi-3: mini, medium, 3.5-mini, Phi-4 and Phi-4-mini. A pre-norm decoder with rotary grouped-query attention.

For every token x at every layer, with rms(x) = x / sqrt(mean(x²) + eps):

    h = rms(x) · w_in
    q, k, v = W_qkv h                                  q and k rotated by their position
    x = x + W_o softmax(q kᵀ / sqrt(D) + mask) v
    h = rms(x) · w_post
    x = x + W_down (silu(W_gate h) · W_up h)

and after the last one, logits = W_out (rms(x) · w_norm). docs/models.md gives the details and sources.
Shape letters: T new tokens, E hidden, Hq and Hkv heads of D elements, F intermediate, R wanted rows, V vocabulary.
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
from phlite.layers.mlp import build_gate_up
from phlite.layers.norm import Normed, RMSNorm
from phlite.layers.rope import RotaryEmbedding
from phlite.layers.weights import Weights
from phlite.models.base import Batch, LoraTargets
from phlite.models.decoder import RotaryDecoder
from phlite.models.phi3_config import GGUF_NAMES, Phi3Config
from phlite.tiles import TileSource

__all__ = ["MLP", "Attention", "DecoderLayer", "Phi3Config", "Phi3ForCausalLM", "Phi3Model"]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]


class Attention:
    """Grouped-query attention over the cached keys and values of each token's own sequence."""

    def __init__(self, config: Phi3Config, weights: Weights, layer_idx: int, pool: ops.ThreadPool) -> None:
        prefix, head_dim = f"model.layers.{layer_idx}.self_attn", config.head_dim
        q_rows, kv_rows = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
        split = {
            f"{prefix}.q_proj.weight": q_rows,
            f"{prefix}.k_proj.weight": kv_rows,
            f"{prefix}.v_proj.weight": kv_rows,
        }
        fused = {f"{prefix}.qkv_proj.weight": q_rows + 2 * kv_rows}
        is_split = f"{prefix}.q_proj.weight" in weights
        self.qkv_proj = build_linear(weights, split if is_split else fused, n_cols=config.hidden_size, pool=pool)
        self.attend = CachedAttention(
            layer_idx=layer_idx,
            n_heads=config.num_attention_heads,
            softmax_scale=head_dim**-0.5,
            sliding_window=config.effective_window,
            rope_interleaved=config.rope_interleaved,
            pool=pool,
        )
        self.o_proj = build_linear(weights, {f"{prefix}.o_proj.weight": config.hidden_size}, n_cols=q_rows, pool=pool)

    def __call__(
        self,
        h: Normed,
        x: F32,
        step: ops.AttentionBatch,
        cache: ops.KVCache,
        rows: I32 | None = None,
        lora: RowAdapters | None = None,
    ) -> F32:
        """Return x + W_o attention(W_qkv h), float32[T, E]; with rows int32[R], these rows of it."""
        qkv = self.qkv_proj(h, lora=lora)
        a = self.attend(qkv, cache, step)
        return self.o_proj(a, residual=x, rows=rows, lora=lora)


class MLP:
    """The gated feed-forward network."""

    def __init__(self, config: Phi3Config, weights: Weights, layer_idx: int, pool: ops.ThreadPool) -> None:
        prefix, n_hidden, n_inner = f"model.layers.{layer_idx}.mlp", config.hidden_size, config.intermediate_size
        self.gate_up_proj = build_gate_up(weights, prefix, hidden_size=n_hidden, intermediate_size=n_inner, pool=pool)
        self.down_proj = build_linear(weights, {f"{prefix}.down_proj.weight": n_hidden}, n_cols=n_inner, pool=pool)

    def __call__(self, h: Normed, x: F32, lora: RowAdapters | None = None) -> F32:
        """Return x + W_down (silu(W_gate h) · W_up h), float32[T, E]."""
        return self.down_proj(self.gate_up_proj(h, lora=lora), residual=x, lora=lora)


class DecoderLayer:
    """Attention, then MLP, each on the norm of what came before and added to it."""

    def __init__(self, config: Phi3Config, weights: Weights, layer_idx: int, pool: ops.ThreadPool) -> None:
        prefix, n_hidden, eps = f"model.layers.{layer_idx}", config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(weights.vector(f"{prefix}.input_layernorm.weight", n_hidden), eps)
        self.self_attn = Attention(config, weights, layer_idx, pool)
        self.post_attention_layernorm = RMSNorm(
            weights.vector(f"{prefix}.post_attention_layernorm.weight", n_hidden), eps
        )
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


class Phi3Model:
    """Embedding, decoder layers and final norm."""

    def __init__(self, config: Phi3Config, weights: Weights, pool: ops.ThreadPool) -> None:
        n_hidden = config.hidden_size
        self.embed_tokens = Embedding(weights.matrix("model.embed_tokens.weight", n_rows=None, n_cols=n_hidden))
        self.layers = [DecoderLayer(config, weights, i, pool) for i in range(config.num_hidden_layers)]
        self.norm = RMSNorm(weights.vector("model.norm.weight", n_hidden), config.rms_norm_eps)

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


class Phi3ForCausalLM(RotaryDecoder):
    """The model with its output matrix: token ids of a ragged batch in, logits out. Implements `base.CausalLM`."""

    config: Phi3Config

    def __init__(self, config: Phi3Config, weights: Weights, pool: ops.ThreadPool) -> None:
        self.config = config
        self.model = Phi3Model(config, weights, pool)
        output = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
        self.lm_head: Linear = build_linear(weights, {output: config.vocab_size}, n_cols=config.hidden_size, pool=pool)
        self.rotary_emb = RotaryEmbedding(
            theta=config.rope_theta,
            rotary_dim=config.rotary_dim,
            short_factor=config.rope_short_factor,
            long_factor=config.rope_long_factor,
            original_max_position_embeddings=config.original_max_position_embeddings,
            attention_factor=config.rope_attention_factor,
        )

    @classmethod
    def from_gguf(cls, file: GGUFFile, *, pool: ops.ThreadPool, tiles: TileSource | None = None) -> Phi3ForCausalLM:
        """Return the model of an open file, its weights packed for this machine, or found in `tiles`.

        raises: ModelFileError where the file is incomplete or contradicts itself; UnsupportedModelError where it has
                keys or tensors that this architecture does not
        """
        source = file.metadata.source
        weights = Weights(file.tensors, source=source, names=GGUF_NAMES, files=file.maps, tiles=tiles)
        config = Phi3Config.from_gguf(file.metadata, weights)
        model = cls(config, weights, pool)
        weights.check_all_used()
        return model

    @classmethod
    def from_hf(cls, checkpoint: Checkpoint, *, pool: ops.ThreadPool) -> Phi3ForCausalLM:
        """Return the model of an open checkpoint, its weights packed for this machine in the types they have.

        raises: ModelFileError where the checkpoint is incomplete or contradicts itself; UnsupportedModelError where it
                has config keys or tensors that this architecture does not
        """
        weights = Weights(checkpoint.tensors, source=checkpoint.source, files=checkpoint.maps)
        config = Phi3Config.from_hf_config(checkpoint.config, source=checkpoint.config_source)
        if config.tie_word_embeddings:
            weights.take_copy("lm_head.weight", of="model.embed_tokens.weight")
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
        """Return the products that adapters may change; see `base.Adaptable`."""
        c = self.config
        n_q, n_kv, n_inner = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim, c.intermediate_size
        hf_rows = rows_of_interleaved_heads(c) if c.rope_interleaved else None
        products: dict[str, Product] = {}
        for i, layer in enumerate(self.model.layers):
            attention, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
            qkv, gate_up = layer.self_attn.qkv_proj, layer.mlp.gate_up_proj
            split = {"q_proj": n_q, "k_proj": n_kv, "v_proj": n_kv}
            products |= product_parts(qkv, attention, "qkv_proj", split, hf_rows=hf_rows)
            products |= product_parts(layer.self_attn.o_proj, attention, "o_proj")
            products |= product_parts(gate_up, mlp, "gate_up_proj", {"gate_proj": n_inner, "up_proj": n_inner})
            products |= product_parts(layer.mlp.down_proj, mlp, "down_proj")
        products |= product_parts(self.lm_head, "", "lm_head")
        return LoraTargets("llama" if c.rope_interleaved else "phi3", GGUF_NAMES, products)


def rows_of_interleaved_heads(config: Phi3Config) -> I32:
    """Return int32[(Hq + 2 Hkv) * D]: where the rows of a checkpoint's q, k, v lie in a file of architecture `llama`.

    Its converter puts row i of a q or k head at 2i, and row i of the head's second half at 2i + 1.
    """
    n_heads, head_dim = config.num_attention_heads + 2 * config.num_key_value_heads, config.head_dim
    rows = np.arange(n_heads * head_dim, dtype=np.int32).reshape(n_heads, head_dim)
    n_rotated = n_heads - config.num_key_value_heads
    rows[:n_rotated] = rows[:n_rotated].reshape(n_rotated, -1, 2).transpose(0, 2, 1).reshape(n_rotated, -1)
    return rows.reshape(-1)
