"""Attention of new tokens over a block-based cache: rotary embedding, cache write and attention in one native call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from phlite import _native
from phlite.errors import RequestError, ShapeError
from phlite.ops.deferred import empty
from phlite.ops.linear import ThreadPool

F32: TypeAlias = npt.NDArray[np.float32]
I32: TypeAlias = npt.NDArray[np.int32]

BLOCK_POSITIONS = 64
"""Positions in one block of the cache; a sequence of n tokens needs ceil(n / 64) blocks."""

KV_DTYPES = ("f16", "q8_0", "f32")


@dataclass(frozen=True, slots=True)
class BlockSparse:
    """Local blocks and vertical stripes: which blocks of keys the queries of a head see.

    A query in block q of its sequence, counted from the start, sees block k <= q when q - k < num_local_blocks, or when
    (k + head * step + 1) % vert_stride == 0, step being max(1, vert_stride // n_heads), and 0 for homo_head_pattern.

    block_size: positions of a block, a multiple of 64
    source:     vLLM 0.6 attention/ops/blocksparse_attention/utils.py, get_sparse_attn_mask
    """

    block_size: int
    num_local_blocks: int
    vert_stride: int
    homo_head_pattern: bool = False


class KVCache(_native.KVCache):
    """Keys and values of all layers, in blocks of 64 positions; memory is taken when a block is first written.

    dtype: "f16"; "q8_0": int8 with one bfloat16 scale per position and 32 dims; "f32". f16 stores values beyond
           ±65504 as ±65504.
    attributes: n_layers, n_blocks, n_kv_heads, head_dim, dtype, block_bytes (one block in all layers together)
    raises:     RequestError for an unknown dtype or when there is no memory; ShapeError for dimensions below 1 or a
                head_dim that is odd or above 256
    """

    def __init__(self, n_layers: int, n_blocks: int, n_kv_heads: int, head_dim: int, dtype: str = "f16") -> None:
        if dtype not in KV_DTYPES:
            raise RequestError(f"KV cache dtype is {dtype!r}, expected one of {', '.join(KV_DTYPES)}")
        try:
            super().__init__(n_layers, n_blocks, n_kv_heads, head_dim, dtype)
        except ValueError as error:
            raise ShapeError(str(error)) from None
        except MemoryError:
            raise RequestError(
                f"no memory for a {dtype} KV cache of {n_blocks} blocks of {BLOCK_POSITIONS} positions in {n_layers} "
                f"layers with {n_kv_heads} heads of {head_dim}; use a shorter context or a q8_0 cache"
            ) from None

    def copy_block(self, src: int, dst: int) -> None:
        """Copy one block over another in all layers; raise ShapeError when one of them does not exist."""
        try:
            super().copy_block(src, dst)
        except ValueError as error:
            raise ShapeError(str(error)) from None

    def positions(self, layer_idx: int, block_table: I32, n: int) -> tuple[F32, F32]:
        """Return the keys (rotated) and values of the first n positions of a sequence, float32[n, Hkv, D] each.

        block_table: int32[m], m >= ceil(n / 64)
        raises:      ShapeError when a layer or block does not exist or the table is too short
        """
        k, v = (np.empty((n, self.n_kv_heads, self.head_dim), np.float32) for _ in range(2))
        try:
            self.read(layer_idx, block_table, k, v)
        except (ValueError, TypeError) as error:
            raise ShapeError(str(error)) from None
        return k, v


class AttentionBatch(_native.AttentionBatch):
    """The new tokens of one step, checked once and shared by all layers.

    positions:    int32[T], absolute, consecutive inside a sequence
    seq_starts:   int32[B + 1], rising from 0 to T; the tokens of sequence b are rows seq_starts[b] .. seq_starts[b + 1]
    block_tables: int32[B, n]; entry j is the cache block of positions 64 j .. 64 j + 63; entries past the sequence's
                  last position are not looked at
    cos_sin:      float32[T, rotary_dim], cosines in the first half, sines in the second, attention factor folded in
    raises:       ShapeError when these contradict each other or a block would be written twice
    """

    def __init__(self, *, positions: I32, seq_starts: I32, block_tables: I32, cos_sin: F32) -> None:
        try:
            super().__init__(positions, seq_starts, block_tables, cos_sin)
        except ValueError as error:
            raise ShapeError(str(error)) from None
        except TypeError:
            raise ShapeError(
                f"attention batch: got positions {_kind(positions)}, seq_starts {_kind(seq_starts)}, "
                f"block_tables {_kind(block_tables)}, cos_sin {_kind(cos_sin)}; "
                "expected C-contiguous int32[T], int32[B + 1], int32[B, n] and float32[T, rotary_dim]"
            ) from None


def attention(
    qkv: F32,
    cache: KVCache,
    layer_idx: int,
    batch: AttentionBatch,
    *,
    n_heads: int,
    softmax_scale: float,
    sliding_window: int,
    rope_interleaved: bool,
    pool: ThreadPool,
    block_sparse: BlockSparse | None = None,
    out: F32 | None = None,
) -> F32:
    """Rotate q and k, write k and v to the cache, return softmax(q kᵀ · softmax_scale + mask) v.

    qkv:              float32[T, (Hq + 2 Hkv) * D], C-contiguous: query, key, value heads
    n_heads:          Hq, a multiple of the cache's Hkv; query head j reads key/value head j // (Hq / Hkv)
    sliding_window:   key j is visible to query i when i - sliding_window < j <= i; 0: when j <= i
    rope_interleaved: rotate neighbours (2i, 2i + 1), not halves (i, i + rotary_dim / 2)
    block_sparse:     blocks that the query heads see; others are not read. None: every block
    out:              float32[T, Hq * D] to write to, a new array when None
    returns:          float32[T, Hq * D]; bit-identical for every instruction set, number of threads, split of a prompt
                      into steps and other sequences in the batch
    raises:           ShapeError when an array, a layer or a block does not fit the cache, or a sparse block is no
                      multiple of 64 positions
    error:            bounds in csrc/attention/attention.h
    """
    if out is None:
        out = empty(batch.n_tokens, n_heads * cache.head_dim, pool)
    sparse = None
    if block_sparse is not None:
        b = block_sparse
        sparse = (b.block_size, b.num_local_blocks, b.vert_stride, b.homo_head_pattern)
    try:
        _native.attention(
            qkv, out, cache, layer_idx, batch, n_heads, softmax_scale, sliding_window, rope_interleaved, pool, sparse
        )
    except ValueError as error:
        raise ShapeError(str(error)) from None
    except TypeError:
        raise ShapeError(
            f"attention: got qkv {_kind(qkv)}, out {_kind(out)}; expected C-contiguous float32 matrices"
        ) from None
    return out


def _kind(array: object) -> str:
    if not isinstance(array, np.ndarray):
        return type(array).__name__
    layout = "" if array.flags.c_contiguous else ", not contiguous"
    return f"{array.dtype}{list(array.shape)}{layout}"
