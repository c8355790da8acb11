"""The mixture of experts: which experts see a token, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from phlite import _native
from phlite.errors import ShapeError
from phlite.ops.linear import PackedMatrix, ThreadPool

__all__ = ["EXPERTS_PER_TOKEN", "MAX_EXPERTS", "Experts", "mix", "route"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

EXPERTS_PER_TOKEN = 2
"""Experts that see one token; the router's rule is defined for two."""

MAX_EXPERTS = 256


def route(scores: F32, jitter_eps: float) -> tuple[I32, F32]:
    """Choose the two experts of every token, and the weights of their answers.

    scores:     float32[T, X], C-contiguous, 2 <= X <= 256: the router's product, one score for each expert
    jitter_eps: experts within about 2 jitter_eps of the best, relative to their size, share its weight
    returns:    int32[T, 2], the best expert and the second, ties to the lowest index; float32[T, 2], their weights in
                (0, 1], which do not add up to 1
    raises:     ShapeError when shape, dtype or layout differs
    source:     transformers 5.x modeling_phimoe.sparsemixer in evaluation; csrc/moe/route.h
    """
    experts = np.empty((len(scores), EXPERTS_PER_TOKEN), np.int32)
    weights = np.empty((len(scores), EXPERTS_PER_TOKEN), np.float32)
    try:
        _native.route(scores, jitter_eps, experts, weights)
    except ValueError as error:
        raise ShapeError(f"route: {error}") from None
    except TypeError:
        raise ShapeError(
            f"route: scores are {scores.dtype}{list(scores.shape)}; expected C-contiguous float32[T, X]"
        ) from None
    return experts, weights


class Experts(_native.Experts):
    """The router and the X experts of one layer, 2 <= X <= 256.

    router:  packed [X, E]
    gate_up: X packed [2F, E] with the swiglu activation
    down:    X packed [E, F]
    attributes: n_experts, n_hidden
    raises:  ShapeError when the matrices do not fit together
    """

    def __init__(self, router: PackedMatrix, gate_up: Sequence[PackedMatrix], down: Sequence[PackedMatrix]) -> None:
        try:
            super().__init__(router, list(gate_up), list(down))
        except ValueError as error:
            raise ShapeError(f"experts: {error}") from None


def mix(
    x: F32,
    experts: Experts,
    *,
    norm_weight: F32,
    norm_bias: F32,
    eps: float,
    jitter_eps: float,
    residual: F32,
    pool: ThreadPool,
) -> F32:
    """Return residual + the weighted answers of each token's two experts to the LayerNorm h of x.

    x:        float32[T, E], C-contiguous; norm_weight, norm_bias: float32[E]
    residual: float32[T, E]
    returns:  float32[T, E], residual[t] + (w1 E_i1(h[t]) + w2 E_i2(h[t])) with the experts i and weights w of
              `route(W_router h, jitter_eps)` and E_e(h) = W_down,e (silu(W_gate,e h) · W_up,e h); a row has the same
              bits whatever the other rows
    raises:   ShapeError when a shape, dtype or layout differs
    source:   transformers 5.x modeling_phimoe.PhimoeSparseMoeBlock; csrc/moe/experts.h
    """
    out = np.empty(x.shape, np.float32)
    try:
        _native.mix(experts, x, norm_weight, norm_bias, eps, jitter_eps, residual, out, pool)
    except ValueError as error:
        raise ShapeError(f"mix: {error}") from None
    except TypeError:
        given = {"x": x, "norm_weight": norm_weight, "norm_bias": norm_bias, "residual": residual}
        got = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in given.items())
        raise ShapeError(f"mix: got {got}; expected C-contiguous float32 arrays") from None
    return out
