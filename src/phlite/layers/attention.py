"""Attention of new tokens over the cached keys and values of their own sequences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phlite import ops

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CachedAttention:
    """softmax(q kᵀ · softmax_scale + mask) v of one layer, rotary positions applied to q and k first.

    n_heads:          query heads Hq; query head j reads key/value head j // (Hq / Hkv)
    softmax_scale:    factor of the scores, such as 1 / sqrt(D)
    sliding_window:   a query at position i sees the keys at i - sliding_window < j <= i; 0: all j <= i
    rope_interleaved: rotate neighbouring pairs (2i, 2i + 1) of a head, not the halves (i, i + rotary_dim / 2)
    block_sparse:     blocks of keys that each head sees; None: all
    """

    layer_idx: int
    n_heads: int
    softmax_scale: float
    sliding_window: int
    rope_interleaved: bool
    pool: ops.ThreadPool
    block_sparse: ops.BlockSparse | None = None

    def __call__(self, qkv: F32, cache: ops.KVCache, step: ops.AttentionBatch) -> F32:
        """Write the keys and values of the new tokens to the cache; return float32[T, Hq * D].

        qkv: float32[T, (Hq + 2 Hkv) * D], query heads first, then key heads, then value heads
        """
        return ops.attention(
            qkv,
            cache,
            self.layer_idx,
            step,
            n_heads=self.n_heads,
            softmax_scale=self.softmax_scale,
            sliding_window=self.sliding_window,
            rope_interleaved=self.rope_interleaved,
            pool=self.pool,
            block_sparse=self.block_sparse,
        )
