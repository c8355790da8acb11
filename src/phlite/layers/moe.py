"""The mixture of experts in place of the feed-forward network: each token sees two of X gated networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phlite import ops
from phlite.layers.linear import Linear, build_linear, normed_rows
from phlite.layers.norm import Normed
from phlite.layers.weights import Weights

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SparseMoE:
    """x + w1 E_i1(h) + w2 E_i2(h), the experts i and their weights w chosen by the scores W_router h of each token.

    jitter_eps: experts within about twice this of the best, relative to their size, share its weight
    products:   what `experts` is made of: the router, and gate_up and down of each expert
    """

    experts: ops.Experts
    jitter_eps: float
    pool: ops.ThreadPool
    products: tuple[Linear, Sequence[Linear], Sequence[Linear]]

    def __call__(self, h: Normed, x: F32) -> F32:
        """Return float32[T, E]. h: LayerNorm of float32[T, E]; x: float32[T, E], what the answers are added to."""
        assert h.bias is not None
        watch = self.products[0].watch
        if watch is not None and watch.see is not None:
            self._show_inputs(normed_rows(h))
        return ops.mix(
            h.x,
            self.experts,
            norm_weight=h.weight,
            norm_bias=h.bias,
            eps=h.eps,
            jitter_eps=self.jitter_eps,
            residual=x,
            pool=self.pool,
        )

    def _show_inputs(self, h: F32) -> None:
        """Compute every product by itself, so that the watch sees its inputs. h: float32[T, E], normed."""
        router, gate_up, down = self.products
        chosen, _ = ops.route(router(h), self.jitter_eps)
        for e in range(len(gate_up)):
            rows = np.flatnonzero((chosen == e).any(axis=1)).astype(np.int32)
            if len(rows):
                down[e](gate_up[e](h[rows]))


def build_sparse_moe(
    weights: Weights,
    prefix: str,
    *,
    n_experts: int,
    hidden_size: int,
    intermediate_size: int,
    jitter_eps: float,
    pool: ops.ThreadPool,
) -> SparseMoE:
    """Pack `prefix`.gate and the w1 (gate), w3 (up) and w2 (down) of `prefix`.experts.0 to X - 1.

    Every expert has matrices of its own, so the memory of those that are never chosen is never read.

    raises: ModelFileError where a tensor is missing or has another shape
    """
    router = build_linear(weights, {f"{prefix}.gate.weight": n_experts}, n_cols=hidden_size, pool=pool)
    gate_up, down = [], []
    for e in range(n_experts):
        expert = f"{prefix}.experts.{e}"
        both: dict[str, int | None] = dict.fromkeys((f"{expert}.w1.weight", f"{expert}.w3.weight"), intermediate_size)
        gate_up.append(build_linear(weights, both, n_cols=hidden_size, pool=pool, activation="swiglu"))
        down.append(build_linear(weights, {f"{expert}.w2.weight": hidden_size}, n_cols=intermediate_size, pool=pool))
    experts = ops.Experts(router.weight, [part.weight for part in gate_up], [part.weight for part in down])
    return SparseMoE(experts, jitter_eps, pool, (router, gate_up, down))
