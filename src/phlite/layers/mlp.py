"""The gated feed-forward products: silu(gate) · up in the epilogue of one matrix product."""

from __future__ import annotations

from phlite import ops
from phlite.layers.linear import Linear, build_linear
from phlite.layers.weights import Weights


def build_gate_up(
    weights: Weights, prefix: str, *, hidden_size: int, intermediate_size: int, pool: ops.ThreadPool
) -> Linear:
    """Return the map h -> silu(W_gate h) · (W_up h), from a fused gate_up_proj or from gate_proj and up_proj.

    The fused matrix holds the F gate rows first, then the F up rows. silu(z) = z / (1 + exp(-z)).
    source: Shazeer 2020, arXiv 2002.05202 (SwiGLU)
    """
    split = {f"{prefix}.gate_proj.weight": intermediate_size, f"{prefix}.up_proj.weight": intermediate_size}
    fused = {f"{prefix}.gate_up_proj.weight": 2 * intermediate_size}
    is_split = f"{prefix}.gate_proj.weight" in weights
    return build_linear(weights, split if is_split else fused, n_cols=hidden_size, pool=pool, activation="swiglu")
