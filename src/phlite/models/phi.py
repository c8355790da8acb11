"""Phi-1, Phi-1.5 and Phi-2. A decoder whose attention and MLP read one norm and are added together.

For every token x at every layer, with ln(x) = (x - mean(x)) / sqrt(var(x) + eps), a bias in every product:

    h = ln(x) · w_in + b_in
    q, k, v = W_qkv h                                  first rotary_dim of each head of q and k rotated
    x = x + W_dense softmax(q kᵀ / sqrt(D) + mask) v + W_fc2 gelu(W_fc1 h)

and after the last one, logits = W_out (ln(x) · w_norm + b_norm) + b_out. gelu is the form with tanh.
Shape letters: T new tokens, E hidden, Hq and Hkv heads of D elements, R wanted rows, V vocabulary.
source: transformers 5.x modeling_phi.py
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
from phlite.models.phi_config import GGUF_NAMES, PhiConfig
from phlite.tiles import TileSource

__all__ = ["MLP", "Attention", "DecoderLayer", "PhiConfig", "PhiForCausalLM", "PhiModel"]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]


class Attention:
    """Attention over the cached keys and values of each token's own sequence."""

    def __init__(self, config: PhiConfig, weights: Weights, layer_idx: int, pool: ops.ThreadPool) -> None:
        prefix, head_dim = f"model.layers.{layer_idx}.self_attn", config.head_dim
        q_rows, kv_rows = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
        split = {f"{prefix}.q_proj": q_rows, f"{prefix}.k_proj": kv_rows, f"{prefix}.v_proj": kv_rows}
        fused = {f"{prefix}.qkv_proj": q_rows + 2 * kv_rows}
        modules = split if f"{prefix}.q_proj.weight" in weights else fused
        self.qkv_proj = _biased_linear(weights, modules, n_cols=config.hidden_size, pool=pool)
        self.attend = CachedAttention(
            layer_idx=layer_idx,
            n_heads=config.num_attention_heads,
            softmax_scale=head_dim**-0.5,
            sliding_window=0,
            rope_interleaved=False,
            pool=pool,
        )
        self.dense = _biased_linear(weights, {f"{prefix}.dense": config.hidden_size}, n_cols=q_rows, pool=pool)

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
        a = self.attend(self.qkv_proj(h, lora=lora), cache, step)
        return self.dense(a, residual=x, rows=rows, lora=lora)


class MLP:
    """The feed-forward network, not gated."""

    def __init__(self, config: PhiConfig, weights: Weights, layer_idx: int, pool: ops.ThreadPool) -> None:
        prefix, n_hidden, n_inner = f"model.layers.{layer_idx}.mlp", config.hidden_size, config.intermediate_size
        self.fc1 = _biased_linear(
            weights, {f"{prefix}.fc1": n_inner}, n_cols=n_hidden, pool=pool, activation="gelu_tanh"
        )
        self.fc2 = _biased_linear(weights, {f"{prefix}.fc2": n_hidden}, n_cols=n_inner, pool=pool)

    def __call__(self, h: Normed, x: F32, rows: I32 | None = None, lora: RowAdapters | None = None) -> F32:
        """Return x + W_fc2 gelu(W_fc1 h) of the given rows of h, float32[R, E]; x: float32[R, E]."""
        return self.fc2(self.fc1(h, rows=rows, lora=lora), residual=x, lora=take_rows(lora, rows))


class DecoderLayer:
    """Attention and MLP side by side, both on the norm of what came before and added to it."""

    def __init__(self, config: PhiConfig, weights: Weights, layer_idx: int, pool: ops.ThreadPool) -> None:
        prefix, n_hidden, eps = f"model.layers.{layer_idx}", config.hidden_size, config.layer_norm_eps
        self.input_layernorm = build_layer_norm(weights, f"{prefix}.input_layernorm", n_hidden, eps)
        self.self_attn = Attention(config, weights, layer_idx, pool)
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
        h = self.input_layernorm(x)
        return self.mlp(h, self.self_attn(h, x, step, cache, rows, lora), rows, lora)


class PhiModel:
    """Embedding, decoder layers and final norm."""

    def __init__(self, config: PhiConfig, weights: Weights, pool: ops.ThreadPool) -> None:
        n_hidden, eps = config.hidden_size, config.layer_norm_eps
        table = weights.matrix("model.embed_tokens.weight", n_rows=config.vocab_size, n_cols=n_hidden)
        self.embed_tokens = Embedding(table)
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
        x = self.embed_tokens(token_ids)
        for layer in self.layers[:-1]:
            x = layer(x, step, cache, lora=lora)
        # After the last layer wrote its keys and values, the other rows have nothing more to give.
        x = self.layers[-1](x, step, cache, rows, lora)
        return self.final_layernorm(x)


class PhiForCausalLM(RotaryDecoder):
    """The model with its output matrix: token ids of a ragged batch in, logits out. Implements `base.CausalLM`."""

    config: PhiConfig

    def __init__(self, config: PhiConfig, weights: Weights, pool: ops.ThreadPool) -> None:
        self.config = config
        self.model = PhiModel(config, weights, pool)
        output = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
        self.lm_head = build_linear(
            weights,
            {output: config.vocab_size},
            bias_parts=["lm_head.bias"],
            n_cols=config.hidden_size,
            pool=pool,
        )
        self.rotary_emb = RotaryEmbedding(theta=config.rope_theta, rotary_dim=config.rotary_dim)

    @classmethod
    def from_gguf(cls, file: GGUFFile, *, pool: ops.ThreadPool, tiles: TileSource | None = None) -> PhiForCausalLM:
        """Return the model of an open file of architecture `phi2`, its weights packed, or found in `tiles`.

        raises: ModelFileError where the file is incomplete or contradicts itself; UnsupportedModelError where it has
                keys or tensors that this architecture does not
        """
        weights = Weights(file.tensors, source=file.metadata.source, names=GGUF_NAMES, files=file.maps, tiles=tiles)
        model = cls(PhiConfig.from_gguf(file.metadata, weights), weights, pool)
        weights.check_all_used()
        return model

    @classmethod
    def from_hf(cls, checkpoint: Checkpoint, *, pool: ops.ThreadPool) -> PhiForCausalLM:
        """Return the model of an open checkpoint of model_type `phi`; as from_gguf, its weights in the types they have.

        raises: as from_gguf
        """
        weights = Weights(checkpoint.tensors, source=checkpoint.source, files=checkpoint.maps)
        config = PhiConfig.from_hf_config(checkpoint.config, source=checkpoint.config_source)
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
        n_q, n_kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        products: dict[str, Product] = {}
        for i, layer in enumerate(self.model.layers):
            attention, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
            split = {"q_proj": n_q, "k_proj": n_kv, "v_proj": n_kv}
            products |= product_parts(layer.self_attn.qkv_proj, attention, "qkv_proj", split)
            products |= product_parts(layer.self_attn.dense, attention, "dense")
            products |= product_parts(layer.mlp.fc1, mlp, "fc1") | product_parts(layer.mlp.fc2, mlp, "fc2")
        products |= product_parts(self.lm_head, "", "lm_head")
        return LoraTargets("phi2", GGUF_NAMES, products)


def _biased_linear(
    weights: Weights,
    modules: dict[str, int],
    *,
    n_cols: int,
    pool: ops.ThreadPool,
    activation: ops.Activation = "none",
) -> Linear:
    """Stack the modules, name -> rows, each with its weight and bias."""
    return build_linear(
        weights,
        {f"{module}.weight": n_rows for module, n_rows in modules.items()},
        bias_parts=[f"{module}.bias" for module in modules],
        n_cols=n_cols,
        pool=pool,
        activation=activation,
    )
