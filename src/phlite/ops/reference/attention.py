"""Rotary embedding, cache rounding and attention in NumPy, in float64 where the native code keeps float32 sums."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from phlite.ops.attention import BlockSparse

F32: TypeAlias = npt.NDArray[np.float32]
F64: TypeAlias = npt.NDArray[np.float64]
I32: TypeAlias = npt.NDArray[np.int32]

_QUANT = 32


def rope(x: F32, cos_sin: F32, *, interleaved: bool = False) -> F32:
    """Rotate heads by the angles of their tokens; every product and sum is rounded to float32.

    x:       float32[T, H, D]
    cos_sin: float32[T, rot], rot <= D even; cosines first, then sines; dims past rot pass
    returns: float32[T, H, D], bit-identical to the native code
    source:  transformers 5.x modeling_phi3.apply_rotary_pos_emb
    """
    rot = cos_sin.shape[1]
    cos, sin = cos_sin[:, None, : rot // 2], cos_sin[:, None, rot // 2 :]
    out = x.copy()
    first, second = (
        (out[..., 0:rot:2], out[..., 1:rot:2]) if interleaved else (out[..., : rot // 2], out[..., rot // 2 : rot])
    )
    a, b = first.copy(), second.copy()
    first[...] = a * cos - b * sin
    second[...] = b * cos + a * sin
    return out


def round_kv(x: F32, dtype: str) -> F32:
    """Return float32[..., D]: keys or values as a cache of this dtype gives them back.

    f16:  round to nearest, limited to ±65504
    q8_0: per 32 dims, scale = max|x| / 127 rounded up to bfloat16, x / scale rounded to nearest, ties to even
    """
    if dtype == "f32":
        return x.copy()
    if dtype == "f16":
        return np.clip(x, np.float32(-65504), np.float32(65504)).astype(np.float16).astype(np.float32)
    scales, codes = _quantize(x, round_up=True)
    return (codes * scales[..., None]).astype(np.float32).reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]


def round_query(q: F32, dtype: str) -> F64:
    """Return float64[..., D]: queries as they meet keys of this dtype: int8 with a scale per 32 dims for q8_0."""
    if dtype != "q8_0":
        return q.astype(np.float64)
    scales, codes = _quantize(q, round_up=False)
    product: F64 = codes.astype(np.float64) * scales[..., None].astype(np.float64)
    return product.reshape(*q.shape[:-1], -1)[..., : q.shape[-1]]


def visible(query_positions: I32, n_keys: int, sliding_window: int) -> npt.NDArray[np.bool_]:
    """Return bool[T, n_keys]: key j is visible to query i when j <= i and (no window or j > i - sliding_window)."""
    i, j = query_positions[:, None], np.arange(n_keys)[None, :]
    mask = j <= i
    return mask & (j > i - sliding_window) if sliding_window > 0 else mask


def visible_blocks(query_positions: I32, n_keys: int, n_heads: int, block_sparse: BlockSparse) -> npt.NDArray[np.bool_]:
    """Return bool[Hq, T, n_keys]: key j's block is a local one or a stripe of head h, later ones included.

    source: vLLM 0.6 attention/ops/blocksparse_attention/utils.py, get_sparse_attn_mask
    """
    stride = block_sparse.vert_stride
    step = 0 if block_sparse.homo_head_pattern else max(1, stride // n_heads)
    head = np.arange(n_heads)[:, None, None]
    q = query_positions[None, :, None] // block_sparse.block_size
    k = np.arange(n_keys)[None, None, :] // block_sparse.block_size
    mask: npt.NDArray[np.bool_] = (q - k < block_sparse.num_local_blocks) | ((k + head * step + 1) % stride == 0)
    return mask


def attend(
    q: F64,
    k: F32,
    v: F32,
    positions: I32,
    *,
    softmax_scale: float,
    sliding_window: int,
    block_sparse: BlockSparse | None = None,
) -> F64:
    """Return float64[T, Hq, D]: softmax(q kᵀ · softmax_scale + mask) v of one sequence.

    q:    float64[T, Hq, D], rotated; k, v: float32[S, Hkv, D], positions 0 .. S - 1, k rotated
    """
    group = q.shape[1] // k.shape[1]
    keys, values = (np.repeat(x.astype(np.float64), group, axis=1) for x in (k, v))
    scores = np.einsum("thd,shd->hts", q, keys) * softmax_scale
    mask = visible(positions, len(k), sliding_window)[None]
    if block_sparse is not None:
        mask = mask & visible_blocks(positions, len(k), q.shape[1], block_sparse)
    scores = np.where(mask, scores, -np.inf)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    out: F64 = np.einsum("hts,shd->thd", p, values)
    return out


def _quantize(x: F32, *, round_up: bool) -> tuple[F32, F32]:
    """Return (scales float32[..., n], codes float32[..., n, 32]) of the last axis padded to whole blocks of 32."""
    n = -(-x.shape[-1] // _QUANT)
    padding = [(0, 0)] * (x.ndim - 1) + [(0, n * _QUANT - x.shape[-1])]
    blocks = np.pad(x.astype(np.float32), padding).reshape(*x.shape[:-1], n, _QUANT)
    scales = (np.minimum(np.abs(blocks).max(axis=-1), np.float32(1e30)) / np.float32(127)).astype(np.float32)
    scales = np.where(scales < np.float32(2.0**-100), np.float32(0), scales)
    if round_up:
        bits = (scales.view(np.uint32).astype(np.uint64) + 0xFFFF) >> 16 << 16
        scales = bits.astype(np.uint32).view(np.float32)
    with np.errstate(divide="ignore"):
        inverse = np.where(scales > 0, np.float32(1) / scales, np.float32(0)).astype(np.float32)
    codes = np.rint(np.clip(blocks * inverse[..., None], np.float32(-127), np.float32(127)))
    return scales, codes.astype(np.float32)
