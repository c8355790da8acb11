"""Matrix products with packed weights, and what surrounds them in a decoder layer, as one native call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from phlite import _native
from phlite._native import PACKED_LAYOUT, PackedMatrix, ThreadPool
from phlite.errors import ModelFileError, ShapeError
from phlite.gguf import MappedFile
from phlite.ops.deferred import empty

__all__ = ["PACKED_LAYOUT", "Activation", "MatrixPart", "PackedMatrix", "ThreadPool", "linear", "norm", "pack_matrix"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]
MatrixPart = tuple[U8, int, int]
"""Bytes of a tensor (uint8[n], file layout), its ggml type id, its number of rows."""
Activation = Literal["none", "swiglu", "gelu_tanh", "gegelu"]
"""What a matrix makes of its product y, float32[R, N_pre]; the gated ones halve its columns:

none       y
swiglu     silu(gate) · up of y = [gate, up], silu(z) = z / (1 + exp(-z))
gelu_tanh  y / 2 · (1 + tanh(sqrt(2/π) (y + 0.044715 y³)))
gegelu     g / (1 + exp(-1.702 g)) · (l + 1) of the even columns g and the odd columns l, g = min(g, limit),
           l = clamp(l, -limit, limit); a value that is not finite makes the result not finite
"""


def pack_matrix(
    parts: Sequence[MatrixPart],
    n_cols: int,
    *,
    pool: ThreadPool,
    activation: Activation = "none",
    gegelu_limit: float | None = None,
    files: Sequence[MappedFile] = (),
    stored: U8 | None = None,
) -> PackedMatrix:
    """Repack the stacked rows of `parts` into tiles of sixteen rows for the kernels.

    parts:          tensors of `n_cols` columns in any block formats, stacked by rows (split q, k and v, say)
    activation:     what `linear` makes of the product; the rows stay in the order of the file, [gate; up] for swiglu
                    and gate 0, up 0, gate 1, ... for gegelu
    gegelu_limit:   clamps gegelu's inputs, above 0; None: no limit
    files:          open files that parts may be views of: their bytes are read, by all threads, instead of the mapped
                    pages, which are never touched
    stored:         `tiles` of a matrix packed from the same parts earlier, under the same PACKED_LAYOUT; used where
                    they lie, and the parts' data is not read
    returns:        a matrix of sum(rows) x n_cols that takes as many bytes as its parts
    raises:         ShapeError when rows, columns and bytes do not fit together, a format or an activation is unknown;
                    ModelFileError where a file cannot be read or was cut meanwhile
    """
    try:
        return _native.PackedMatrix(
            [(data, int(kind), rows) for data, kind, rows in parts],
            n_cols,
            activation,
            gegelu_limit,
            [(file.address, len(file), file.descriptor, str(file.path)) for file in files],
            stored,
            pool,
        )
    except ValueError as error:
        raise ShapeError(f"pack_matrix: {error}") from None
    except OSError as error:
        raise ModelFileError(str(error)) from None


def linear(
    x: F32,
    w: PackedMatrix,
    *,
    pool: ThreadPool,
    norm_weight: F32 | None = None,
    eps: float = 0.0,
    norm_bias: F32 | None = None,
    bias: F32 | None = None,
    addend: F32 | None = None,
    residual: F32 | None = None,
    rows: I32 | None = None,
    out: F32 | None = None,
) -> F32:
    """Return residual + activation(W norm(x) + bias + addend), every part but W being optional.

    x:           float32[T, K], C-contiguous
    w:           packed [N_pre, K] with its activation; N = N_pre, or N_pre / 2 for swiglu and gegelu
    norm_weight: float32[K]; x is replaced by `norm` of it, an RMS norm, or a LayerNorm with norm_bias float32[K]
    bias:        float32[N_pre], added to every row of the product before the activation, in the order of W's rows
    addend:      float32[R, N_pre], likewise, each row its own
    residual:    float32[T, N], added last, to each wanted row its own
    rows:        int32[R], rows of x that are wanted; all T rows when None
    out:         float32[R, N] to write to; without rows it may be `residual`
    returns:     float32[R, N]
    raises:      ShapeError when a shape, dtype or layout differs
    error:       K formats and 32-column formats see x as int8 with one scale per 256 or 32 columns: at most
                 max|x| / 254 per element and block; the sum itself as in csrc/matmul/kernels.h
    """
    if out is None:
        out = empty(len(x) if rows is None else len(rows), w.n_outputs, pool)
    try:
        _native.linear(w, x, out, pool, norm_weight, eps, residual, rows, norm_bias, bias, addend)
    except ValueError as error:
        raise ShapeError(f"linear: {error}") from None
    except TypeError:
        got = _dtypes(
            x=x,
            out=out,
            norm_weight=norm_weight,
            norm_bias=norm_bias,
            bias=bias,
            addend=addend,
            residual=residual,
            rows=rows,
        )
        raise ShapeError(f"linear: got {got}; expected C-contiguous float32 arrays and int32 rows") from None
    return out


def norm(x: F32, weight: F32, eps: float, bias: F32 | None = None, *, pool: ThreadPool | None = None) -> F32:
    """Return the RMS norm of the rows of x, or with a bias their LayerNorm: the bits that `linear` multiplies.

    x:       float32[T, K], C-contiguous, K > 0
    weight:  float32[K]
    bias:    float32[K]; None: x / sqrt(mean(x²) + eps) · weight, else, with d = x - mean(x),
             d / sqrt(mean(d²) + eps) · weight + bias
    pool:    its threads share the rows; None: the calling thread alone
    returns: float32[T, K], new array
    raises:  ShapeError when a shape, dtype or layout differs
    error:   csrc/matmul/kernels.h
    """
    out = np.empty_like(x)
    try:
        _native.norm(x, weight, eps, bias, out, pool)
    except ValueError as error:
        raise ShapeError(f"norm: {error}") from None
    except TypeError:
        got = _dtypes(x=x, weight=weight, bias=bias)
        raise ShapeError(f"norm: got {got}; expected C-contiguous float32 arrays") from None
    return out


def _dtypes(**arrays: F32 | I32 | None) -> str:
    return ", ".join(f"{k} {v.dtype}{list(v.shape)}" for k, v in arrays.items() if isinstance(v, np.ndarray))
