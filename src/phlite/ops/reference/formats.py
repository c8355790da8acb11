"""Dequantisation of every block format in NumPy: the layouts of csrc/formats/blocks.h, field by field.

Each product and sum is a float32 operation in the order of gguf-py 0.19 (quants.py), so results are bit-identical to
it and to the native code, except for the payload of NaNs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from phlite.gguf.types import BLOCK_SIZES, GGMLType

F32: TypeAlias = npt.NDArray[np.float32]
I32: TypeAlias = npt.NDArray[np.int32]
U8: TypeAlias = npt.NDArray[np.uint8]
Blocks: TypeAlias = npt.NDArray[np.void]

BLOCK_DTYPES: Final[dict[GGMLType, np.dtype[np.void]]] = {
    GGMLType.Q4_0: np.dtype([("d", "<f2"), ("qs", "u1", 16)]),
    GGMLType.Q4_1: np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)]),
    GGMLType.Q5_0: np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)]),
    GGMLType.Q5_1: np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)]),
    GGMLType.Q8_0: np.dtype([("d", "<f2"), ("qs", "i1", 32)]),
    GGMLType.Q2_K: np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")]),
    GGMLType.Q3_K: np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")]),
    GGMLType.Q4_K: np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)]),
    GGMLType.Q5_K: np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)]),
    GGMLType.Q6_K: np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")]),
    GGMLType.IQ4_NL: np.dtype([("d", "<f2"), ("qs", "u1", 16)]),
    GGMLType.IQ4_XS: np.dtype([("d", "<f2"), ("scales_h", "<u2"), ("scales_l", "u1", 4), ("qs", "u1", 128)]),
}
"""Structured dtype of one block, for formats that have blocks."""

IQ4_VALUES: Final = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32
)
"""The sixteen levels of IQ4_NL and IQ4_XS."""


def dequantize(data: U8, ggml_type: GGMLType, shape: tuple[int, ...]) -> F32:
    """Return the values of quantised data.

    data:    uint8, C-contiguous, exactly the bytes of the tensor
    shape:   row-major, the last dimension a multiple of the format's block
    returns: float32[shape], new array
    raises:  ValueError where data does not have that many bytes
    """
    if ggml_type is GGMLType.F32:
        return data.reshape(-1).view("<f4").astype(np.float32).reshape(shape)
    if ggml_type is GGMLType.F16:
        return data.reshape(-1).view("<f2").astype(np.float32).reshape(shape)
    if ggml_type is GGMLType.BF16:
        bits = data.reshape(-1).view("<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(shape)
    blocks = data.reshape(-1).view(BLOCK_DTYPES[ggml_type])
    with np.errstate(over="ignore", invalid="ignore"):  # hostile scales are infinite or NaN
        return _DECODERS[ggml_type](blocks).reshape(shape)


def embedding(data: U8, ggml_type: GGMLType, n_cols: int, ids: I32) -> F32:
    """Return rows ids[T] of a quantised table as float32[T, n_cols]; raises IndexError for an id outside of it."""
    block_elements, block_bytes = BLOCK_SIZES[ggml_type]
    rows = data.reshape(-1, n_cols // block_elements * block_bytes)
    if ids.size and (ids.min() < 0 or ids.max() >= len(rows)):
        raise IndexError(f"ids from {ids.min()} to {ids.max()}, expected 0 to {len(rows) - 1}")
    return dequantize(np.ascontiguousarray(rows[ids]), ggml_type, (len(ids), n_cols))


def unpack_k4_scales(packed: U8) -> tuple[U8, U8]:
    """Return scales and minima of Q4_K and Q5_K, uint8[N, 8] from 0 to 63 each, out of uint8[N, 12]."""
    first, second, last = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, (last & 15) | (first >> 6) << 4], axis=1)
    minima = np.concatenate([second & 63, (last >> 4) | (second >> 6) << 4], axis=1)
    return scales, minima


def unpack_q3_scales(packed: U8) -> npt.NDArray[np.int8]:
    """Return the scales of Q3_K, int8[N, 16] from -32 to 31, out of uint8[N, 12]."""
    low = np.concatenate([packed[:, 0:8] & 15, packed[:, 0:8] >> 4], axis=1)
    high = np.concatenate([packed[:, 8:12] >> shift & 3 for shift in (0, 2, 4, 6)], axis=1)
    scales: npt.NDArray[np.int8] = (low | high << 4).astype(np.int8) - np.int8(32)
    return scales


def _nibbles(qs: U8) -> U8:
    """Low nibbles of each group of bytes, then its high nibbles: uint8[N, G, B] -> uint8[N, G, 2B]."""
    return np.concatenate([qs & 15, qs >> 4], axis=-1)


def _pairs(qs: U8) -> U8:
    """Two-bit fields of every 32 bytes, the lowest of all 32 first: uint8[N, 32H] -> uint8[N, 128H]."""
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)
    fields: U8 = qs.reshape(len(qs), -1, 1, 32) >> shifts & np.uint8(3)
    return fields.reshape(len(qs), -1)


def _planes(packed: U8) -> U8:
    """Bits of 32 bytes, the lowest of all 32 first: uint8[N, 32] -> uint8[N, 256]."""
    bits: U8 = packed[:, None, :] >> np.arange(8, dtype=np.uint8).reshape(8, 1) & np.uint8(1)
    return bits.reshape(len(packed), 256)


def _by_group(values: npt.NDArray[np.generic], n_groups: int) -> F32:
    return values.reshape(len(values), n_groups, -1).astype(np.float32)


def _scale(blocks: Blocks, name: str = "d") -> F32:
    """A half of each block as float32[N, 1]."""
    return blocks[name].astype(np.float32).reshape(-1, 1)


def _small_quants(blocks: Blocks) -> F32:
    """Unsigned quants of the 32-element formats with four or five bits, float32[N, 32]."""
    q = _nibbles(blocks["qs"])
    if "qh" in (blocks.dtype.names or ()):
        q = q | np.unpackbits(blocks["qh"], axis=-1, bitorder="little") << np.uint8(4)
    return q.astype(np.float32)


def _q4_0(blocks: Blocks) -> F32:
    return _scale(blocks) * (_small_quants(blocks) - np.float32(8))


def _q5_0(blocks: Blocks) -> F32:
    return _scale(blocks) * (_small_quants(blocks) - np.float32(16))


def _q4_1_or_q5_1(blocks: Blocks) -> F32:
    return _scale(blocks) * _small_quants(blocks) + _scale(blocks, "m")


def _q8_0(blocks: Blocks) -> F32:
    return _scale(blocks) * blocks["qs"].astype(np.float32)


def _iq4_nl(blocks: Blocks) -> F32:
    return _scale(blocks) * IQ4_VALUES[_nibbles(blocks["qs"])]


def _q2_k(blocks: Blocks) -> F32:
    scales = _scale(blocks) * (blocks["scales"] & 15).astype(np.float32)
    minima = _scale(blocks, "dmin") * (blocks["scales"] >> 4).astype(np.float32)
    return scales[:, :, None] * _by_group(_pairs(blocks["qs"]), 16) - minima[:, :, None]


def _q3_k(blocks: Blocks) -> F32:
    scales = _scale(blocks) * unpack_q3_scales(blocks["scales"]).astype(np.float32)
    q = (_pairs(blocks["qs"]) | _planes(blocks["hmask"]) << 2).astype(np.int8) - np.int8(4)
    return scales[:, :, None] * _by_group(q, 16)


def _q4_k_or_q5_k(blocks: Blocks) -> F32:
    unpacked_scales, unpacked_minima = unpack_k4_scales(blocks["scales"])
    scales = _scale(blocks) * unpacked_scales.astype(np.float32)
    minima = _scale(blocks, "dmin") * unpacked_minima.astype(np.float32)
    q = _nibbles(blocks["qs"].reshape(-1, 4, 32)).reshape(len(blocks), 256)
    if "qh" in (blocks.dtype.names or ()):
        q = q | _planes(blocks["qh"]) << np.uint8(4)
    return scales[:, :, None] * _by_group(q, 8) - minima[:, :, None]


def _q6_k(blocks: Blocks) -> F32:
    scales = _scale(blocks) * blocks["scales"].astype(np.float32)
    low = _nibbles(blocks["ql"].reshape(-1, 2, 64)).reshape(len(blocks), 256)
    q = (low | _pairs(blocks["qh"]) << 4).astype(np.int8) - np.int8(32)
    return scales[:, :, None] * _by_group(q, 16)


def _iq4_xs(blocks: Blocks) -> F32:
    low = np.stack([blocks["scales_l"] & 15, blocks["scales_l"] >> 4], axis=-1).reshape(-1, 8)
    high = blocks["scales_h"].reshape(-1, 1) >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales = _scale(blocks) * ((low | high << 4).astype(np.float32) - np.float32(32))
    values: F32 = scales[:, :, None] * IQ4_VALUES[_nibbles(blocks["qs"].reshape(-1, 8, 16))]
    return values


_DECODERS: Final[dict[GGMLType, Callable[[Blocks], F32]]] = {
    GGMLType.Q4_0: _q4_0,
    GGMLType.Q4_1: _q4_1_or_q5_1,
    GGMLType.Q5_0: _q5_0,
    GGMLType.Q5_1: _q4_1_or_q5_1,
    GGMLType.Q8_0: _q8_0,
    GGMLType.Q2_K: _q2_k,
    GGMLType.Q3_K: _q3_k,
    GGMLType.Q4_K: _q4_k_or_q5_k,
    GGMLType.Q5_K: _q4_k_or_q5_k,
    GGMLType.Q6_K: _q6_k,
    GGMLType.IQ4_NL: _iq4_nl,
    GGMLType.IQ4_XS: _iq4_xs,
}
