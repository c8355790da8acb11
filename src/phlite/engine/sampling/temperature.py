"""Steps that make the distribution sharper or flatter."""

from __future__ import annotations

import math

import numpy as np

from phlite.engine.sampling.candidates import Candidates, Choice, finite_max

__all__ = ["divide_by_dynamic_temperature", "divide_by_temperature", "softmax"]

SMALLEST_TEMPERATURE = 1e-7


def divide_by_temperature(candidates: Candidates, choice: Choice) -> None:
    """Divide the logits by the temperature (> 0)."""
    divide(candidates, choice.params.temperature)


def divide_by_dynamic_temperature(candidates: Candidates, choice: Choice) -> None:
    """Divide by a temperature between T - dynatemp_range and T + dynatemp_range: low for a sure model, high for an
    unsure one, by the dynatemp_exponent-th power of the entropy over its largest value.

    source: llama.cpp's extended temperature sampler
    """
    params = choice.params
    low = max(0.0, params.temperature - params.dynatemp_range)
    high = params.temperature + params.dynatemp_range
    p = candidates.probabilities()
    if p.size < 2:
        return
    positive = p[p > 0]
    entropy = -float((positive * np.log(positive)).sum())
    divide(candidates, low + (high - low) * (max(entropy, 0.0) / math.log(p.size)) ** params.dynatemp_exponent)


def divide(candidates: Candidates, temperature: float) -> None:
    """Divide the logits by a number; 0 leaves the largest alone in play."""
    # The largest is taken off first: a tiny temperature then gives -inf, which softmax knows, and never inf - inf.
    logits = candidates.change_logits()
    logits -= finite_max(logits)
    logits /= np.float32(max(temperature, SMALLEST_TEMPERATURE))
    candidates.shifted = True


def softmax(candidates: Candidates, choice: Choice) -> None:
    """Compute the weights of all tokens in play now, so that the steps after it measure parts of their sum."""
    candidates.softmax()
