"""Norms, activation quantisation, matrix products and activation functions in NumPy.

Sums are float64 where the native code keeps float32 ones.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from phlite.gguf import BLOCK_SIZES, GGMLType

__all__ = ["gegelu", "gelu_tanh", "layer_norm", "linear", "quantize_activations", "rms_norm", "swiglu"]

F32: TypeAlias = npt.NDArray[np.float32]
F64: TypeAlias = npt.NDArray[np.float64]
I8: TypeAlias = npt.NDArray[np.int8]


def rms_norm(x: F32, weight: F32, eps: float) -> F64:
    """Return x / sqrt(mean(x²) + eps) · weight, float64[T, E].

    source: transformers 5.x modeling_phi3.Phi3RMSNorm
    """
    wide = x.astype(np.float64)
    normed: F64 = wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + eps) * weight
    return normed


def layer_norm(x: F32, weight: F32, bias: F32, eps: float) -> F64:
    """Return (x - mean(x)) / sqrt(mean((x - mean(x))²) + eps) · weight + bias, float64[T, E].

    source: Ba, Kiros & Hinton 2016, arXiv 1607.06450; the variance divides by E, as torch.nn.LayerNorm's does
    """
    centred = x.astype(np.float64) - x.mean(axis=-1, keepdims=True, dtype=np.float64)
    normed: F64 = centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + eps) * weight + bias
    return normed


def quantize_activations(x: F32, block: int) -> tuple[I8, F32]:
    """Round rows to int8 with one scale per `block` columns.

    x:       float32[T, K]
    returns: codes int8[T, K] = round(x · (127 / max|x|)), ties to even;
             scales float32[T, ceil(K / block)] = max|x| / 127
    """
    n_rows, n_cols = x.shape
    padded = np.zeros((n_rows, -(-n_cols // block) * block), np.float32)
    padded[:, :n_cols] = x
    blocks = padded.reshape(n_rows, -1, block)
    peak = np.abs(blocks).max(axis=-1)
    inverse = np.divide(np.float32(127), peak, out=np.zeros_like(peak), where=peak > 0)
    codes = np.rint(blocks * inverse[..., None]).astype(np.int8)
    return codes.reshape(n_rows, -1)[:, :n_cols], peak / np.float32(127)


def linear(x: F32, weights: F32, ggml_type: GGMLType) -> F64:
    """Return the product with a dequantised matrix, x seen as the kernels of its block format see it.

    x:       float32[T, K]
    weights: float32[N, K], dequantised from ggml_type
    returns: float64[T, N]; float formats take x as it is, others as int8 with a scale per block of the format
    """
    block = BLOCK_SIZES[ggml_type][0]
    if block == 1:
        return x.astype(np.float64) @ weights.T.astype(np.float64)
    codes, scales = quantize_activations(x, block)
    seen = codes.astype(np.float64) * np.repeat(scales.astype(np.float64), block, axis=1)[:, : x.shape[1]]
    return seen @ weights.T.astype(np.float64)


def swiglu(gate_up: F64) -> F64:
    """Return silu(gate) · up of rows [gate, up], float64[T, 2F] -> float64[T, F]; silu(z) = z / (1 + exp(-z))."""
    gate, up = np.split(gate_up, 2, axis=-1)
    return gate * (0.5 + 0.5 * np.tanh(0.5 * gate)) * up  # the logistic function without its overflow


def gelu_tanh(x: F64) -> F64:
    """Return x / 2 · (1 + tanh(sqrt(2/π) (x + 0.044715 x³))), float64 of x's shape.

    source: Hendrycks & Gimpel 2016, arXiv 1606.08415; transformers calls it gelu_new
    """
    result: F64 = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return result


def gegelu(gate_up: F64, limit: float) -> F64:
    """Return g · sigmoid(1.702 g) · (l + 1) of the even columns g and the odd columns l, float64[T, 2F] -> [T, F].

    limit:  g is at most this, l lies within plus and minus it; infinite values stay what they are
    source: Phi-3-small's modeling_phi3_small.gegelu
    """
    gate, linear = gate_up[..., 0::2], gate_up[..., 1::2]
    gate = np.where(np.isinf(gate), gate, np.minimum(gate, limit))
    linear = np.where(np.isinf(linear), linear, np.clip(linear, -limit, limit))
    result: F64 = gate * (0.5 + 0.5 * np.tanh(0.5 * 1.702 * gate)) * (linear + 1)
    return result
