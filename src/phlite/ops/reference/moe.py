"""The mixture of experts in NumPy: the router's rule token by token, the experts one after the other in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from phlite.ops.reference.linear import swiglu

__all__ = ["mix", "route"]

F32: TypeAlias = npt.NDArray[np.float32]
F64: TypeAlias = npt.NDArray[np.float64]
I32: TypeAlias = npt.NDArray[np.int32]


def route(scores: F32, jitter_eps: float) -> tuple[I32, F64]:
    """Return the two experts of every token, int32[T, 2], and their weights, float64[T, 2].

    scores:  float32[T, X]
    source:  transformers 5.x modeling_phimoe.sparsemixer in evaluation
    """
    experts = np.empty((len(scores), 2), np.int32)
    weights = np.empty((len(scores), 2), np.float64)
    for t, s in enumerate(scores):
        candidates = list(range(len(s)))
        for slot in range(2):
            best = max(candidates, key=lambda k: (s[k], -k))
            kept = [k for k in candidates if not _is_far(s[k], s[best], jitter_eps)]
            experts[t, slot] = best
            weights[t, slot] = 1.0 / np.exp(s[kept].astype(np.float64) - np.float64(s[best])).sum()
            candidates.remove(best)
    return experts, weights


def _is_far(score: np.float32, best: np.float32, jitter_eps: float) -> bool:
    scale = max(abs(score), best)
    return bool(scale != 0 and (best - score) / scale > np.float32(2 * jitter_eps))


def mix(h: F64, experts: I32, weights: F64, gate_up: Sequence[F32], down: Sequence[F32]) -> F64:
    """Return the weighted answers of each token's two experts, float64[T, E].

    h:        float64[T, E], normed
    experts:  int32[T, 2]; weights: float64[T, 2]
    gate_up:  float32[2F, E] of each expert, gate rows first; down: float32[E, F] of each expert
    """
    out = np.zeros_like(h)
    for t in range(len(h)):
        for expert, weight in zip(experts[t], weights[t], strict=True):
            inner = swiglu(h[t] @ gate_up[expert].T.astype(np.float64))
            out[t] += weight * (inner @ down[expert].T.astype(np.float64))
    return out
