"""Log-probabilities of generated tokens in the model's own distribution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from phlite.engine.sampling.candidates import F32, largest_rows, rows_with_largest

__all__ = ["TokenLogprob", "compute_logprob"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural log-probabilities of one generated token in the model's own distribution.

    top: the most likely (id, logprob), most likely first; as many as SamplingParams.logprobs asked for
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def compute_logprob(logits: F32, token_id: int, n_top: int) -> TokenLogprob:
    """Return the log-probability of token_id, and of the n_top most likely tokens, under softmax(logits).

    logits: float32[V], as the model gave them; of equal ones the lower id comes first
    """
    largest = logits.max()
    weights = np.exp(logits - largest)
    log_total = float(largest) + float(np.log(weights.sum(dtype=np.float64)))
    top: tuple[tuple[int, float], ...] = ()
    if n_top > 0:
        n_top = min(n_top, logits.size)
        rows = rows_with_largest(weights, n_top)
        rows = rows[largest_rows(logits[rows], n_top)]
        rows = rows[np.argsort(-logits[rows], kind="stable")]
        top = tuple((int(row), float(logits[row]) - log_total) for row in rows)
    return TokenLogprob(token_id, float(logits[token_id]) - log_total, top)
