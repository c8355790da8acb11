"""The block-based cache of keys and values, sized by a model's numbers."""

from __future__ import annotations

from phlite import ops
from phlite.ops.attention import BLOCK_POSITIONS


def build_kv_cache(n_layers: int, n_blocks: int, n_kv_heads: int, head_dim: int, dtype: str) -> ops.KVCache:
    """Return an empty cache; its memory is taken when blocks are first written.

    dtype:  "f16", "q8_0" or "f32"
    raises: RequestError for another dtype; ShapeError for dimensions that the kernels do not have
    """
    return ops.KVCache(n_layers, n_blocks, n_kv_heads, head_dim, dtype)


def kv_bytes_per_token(n_layers: int, n_kv_heads: int, head_dim: int, dtype: str) -> int:
    """Return the bytes that one position takes in all layers together, padding included."""
    one_block = ops.KVCache(n_layers, 1, n_kv_heads, head_dim, dtype)
    return one_block.block_bytes // BLOCK_POSITIONS
