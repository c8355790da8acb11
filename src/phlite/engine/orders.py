"""The samplers that can be put in order, and the orders of the engines that phlite imitates.

Each order holds all samplers: those that its original has at their place there, the others where they disturb least.
Where the presets compute differently with the same parameters is told in phlite.engine.sampling.order.
"""

from __future__ import annotations

from phlite.errors import RequestError

__all__ = ["ORDERS", "checked_order"]

ORDERS: dict[str, tuple[str, ...]] = {
    "candle": (
        *("logit_bias", "penalties", "dry", "logits_function", "temperature"),
        *("top_k", "top_p", "min_p", "typical_p", "top_n_sigma", "xtc"),
    ),
    "transformers": (
        *("logit_bias", "penalties", "dry", "logits_function", "temperature"),
        *("top_k", "top_p", "min_p", "typical_p", "top_n_sigma", "xtc"),
    ),
    "llama.cpp": (
        *("logit_bias", "penalties", "dry", "logits_function"),
        *("top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "xtc", "temperature"),
    ),
    "openai": (
        *("logit_bias", "penalties", "dry", "logits_function", "temperature"),
        *("top_k", "top_p", "min_p", "typical_p", "top_n_sigma", "xtc"),
    ),
}


def checked_order(order: object) -> str | tuple[str, ...]:
    """Return the name of a preset, or the caller's own order as a tuple.

    raises: RequestError for an unknown name or a sampler named twice; it lists the possible ones
    """
    names = ORDERS["candle"]
    if isinstance(order, str):
        if order in ORDERS:
            return order
        raise RequestError(
            f"sampler_order: got {order!r}, expected one of {', '.join(ORDERS)}, or a sequence of samplers:"
            f" {', '.join(names)}"
        )
    if not isinstance(order, (tuple, list)):
        raise RequestError(f"sampler_order: got {order!r}, expected one of {', '.join(ORDERS)} or a tuple of samplers")
    for i, name in enumerate(order):
        if name not in names:
            raise RequestError(f"sampler_order: got {name!r}, expected samplers among {', '.join(names)}")
        if name in order[:i]:
            raise RequestError(f"sampler_order: {name!r} stands in it twice, expected each sampler at most once")
    return tuple(order)
