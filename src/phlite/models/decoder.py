"""What every decoder here shares: rotary positions, one shape of cache for all layers, the checks of a step."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Protocol

from phlite import ops
from phlite.layers.kv_cache import build_kv_cache, kv_bytes_per_token
from phlite.layers.linear import Linear
from phlite.layers.rope import RotaryEmbedding
from phlite.models.base import Batch, ModelConfig, check_batch

__all__ = ["DecoderConfig", "RotaryDecoder"]


class DecoderConfig(ModelConfig, Protocol):
    """The numbers that the cache needs, by their Hugging Face names."""

    @property
    def num_key_value_heads(self) -> int:
        """Heads of keys and values in each layer."""

    @property
    def head_dim(self) -> int:
        """Elements of a head."""


class RotaryDecoder:
    """The part of `base.CausalLM` that does not depend on the architecture; a model file writes the equations."""

    config: DecoderConfig
    rotary_emb: RotaryEmbedding
    lm_head: Linear

    def rope_regime(self, seq_len: int) -> int:
        """Return 1 for sequences so long that they use LongRoPE's long list, else 0; see `base.CausalLM`."""
        return self.rotary_emb.regime(seq_len)

    def build_kv_cache(self, n_blocks: int, dtype: str = "f16") -> ops.KVCache:
        """Return an empty cache of n_blocks blocks of positions for all layers; dtype "f16", "q8_0" or "f32"."""
        c = self.config
        return build_kv_cache(c.num_hidden_layers, n_blocks, c.num_key_value_heads, c.head_dim, dtype)

    def kv_bytes_per_token(self, dtype: str = "f16") -> int:
        """Return the bytes of cache that one position takes in all layers together."""
        c = self.config
        return kv_bytes_per_token(c.num_hidden_layers, c.num_key_value_heads, c.head_dim, dtype)

    def attention_step(self, batch: Batch) -> ops.AttentionBatch:
        """Return where the batch's tokens stand, with the rotary rows of their positions.

        raises: ShapeError when the arrays of the batch contradict each other or the model
        """
        check_batch(batch, self.config)
        return ops.AttentionBatch(
            positions=batch.positions,
            seq_starts=batch.seq_starts,
            block_tables=batch.block_tables,
            cos_sin=self.rotary_emb.cos_sin(batch.positions, batch.seq_starts, batch.seq_lens),
        )

    @cached_property
    def _region(self) -> ops.Deferred:
        return ops.Deferred(self.lm_head.pool)

    def one_region(self, batch: Batch) -> AbstractContextManager[None]:
        """Return the context for the products and attention of a step, which all run together at its end.

        Steps that look at values on their way (adapters, watched inputs) run each operation at once.
        """
        self._region.drop_interrupted()
        watch = self.lm_head.watch
        watched = watch is not None and watch.see is not None
        if batch.lora is not None or watched:
            return nullcontext()
        return self._region
