"""What `phlite show` says in the same words of a GGUF file and of a checkpoint folder."""

from __future__ import annotations

from collections.abc import Container, Iterable

from phlite.tokenizer.turn_formats import TURN_FORMATS, name_turn_format

__all__ = ["describe_architecture", "describe_chat_template", "describe_layers", "describe_parameters"]

_PHI2 = "Phi-1, Phi-1.5, Phi-2"
CLASSES = {
    "phi": _PHI2,
    "phi2": _PHI2,
    "phi3": "Phi-3-mini and medium, Phi-3.5-mini, Phi-4, Phi-4-mini",
    "phi3small": "Phi-3-small",
    "phimoe": "Phi-3.5-MoE, Phi-mini-MoE, Phi-tiny-MoE",
    "llama": "the first conversions of Phi-3-mini",
}
"""general.architecture of a GGUF file, or model_type of a config.json -> the members of the family that have it."""


def describe_architecture(name: str, known: Iterable[str]) -> str:
    """Return the architecture and whose it is, or that it is none of the known ones."""
    names = list(known)
    if name not in names:
        return f"{name}, which phlite does not run; it runs {', '.join(names)}"
    return f"{name}, that of {CLASSES[name]}" if name in CLASSES else name


def describe_parameters(n_all: int, *, n_in_experts: int, n_experts: int, n_used: int) -> str:
    """Return the number of weights, and how many of them a token uses where experts share the work.

    n_in_experts:      weights that belong to experts
    n_experts, n_used: experts of a layer, and of them those that work for one token; 0 where there are none
    """
    if not 0 < n_used < n_experts:
        return _count(n_all)
    n_active = n_all - n_in_experts + n_in_experts * n_used // n_experts
    return f"{_count(n_all)}, {_count(n_active)} of them for each token"


def describe_layers(
    *, n_layers: object, width: object, heads: object, kv_heads: object, mlp: object, n_experts: object, n_used: object
) -> str:
    """Return the shape of the layers; n_experts is 0 where there are none."""
    inner = f"{n_experts} experts of MLP {mlp}, {n_used} for each token" if n_experts else f"MLP {mlp}"
    return f"{n_layers} layers, {width} wide, {heads} heads ({kv_heads} for keys and values), {inner}"


def describe_chat_template(source: str, special_tokens: Container[str], model_name: str) -> str:
    """Return what is known of a template, "" for a model without one: there the special tokens tell the form."""
    if source:
        known = next((name for name, turns in TURN_FORMATS.items() if turns.source == source), None)
        return f"{len(source)} characters{f', the form {known}' if known else ''} (-v shows it)"
    form = name_turn_format(special_tokens, model_name)
    return f"none of its own; the form {form}, by its special tokens" if form else "none: not trained for chat"


def _count(n: int) -> str:
    return f"{n / 1e9:.2f} billion" if n >= 1e8 else f"{n / 1e6:.2f} million"
