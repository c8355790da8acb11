"""Mirostat: keeps the surprise of the text near a target by a bound that follows what was drawn.

The bound mu is a fact about the sequence, not about the sampler: it goes in and comes out of every choice.
source: Basu et al. 2020, arXiv 2007.14966; the arithmetic follows llama.cpp's samplers
"""

from __future__ import annotations

import math

import numpy as np

from phlite.engine.params import SamplingParams
from phlite.engine.sampling.candidates import Candidates, Choice, largest_rows

__all__ = ["first_mu", "keep_by_zipf", "keep_unsurprising", "next_mu"]

N_FOR_EXPONENT = 100


def first_mu(params: SamplingParams) -> float:
    """Return the bound of the first token, in bits."""
    return 2.0 * params.mirostat_tau


def keep_unsurprising(candidates: Candidates, choice: Choice) -> None:
    """Keep tokens of at most mu bits of surprise, at least the most likely one (version 2)."""
    p = candidates.probabilities()
    kept = p >= 2.0 ** min(-choice.mu, 1000.0)
    kept[int(p.argmax())] = True
    candidates.keep(np.flatnonzero(kept))


def keep_by_zipf(candidates: Candidates, choice: Choice) -> None:
    """Keep the k most likely tokens; k follows from mu and a Zipf distribution fitted to the top 100 (version 1)."""
    p = candidates.probabilities()
    n_vocab = p.size
    top = np.sort(p[largest_rows(p.astype(np.float32), min(N_FOR_EXPONENT, n_vocab))])[::-1]
    top = top[top > 0]
    k = n_vocab
    if top.size > 1:
        ranks = np.arange(1, top.size)
        x = np.log((ranks + 1) / ranks)
        exponent = float((x * np.log(top[:-1] / top[1:])).sum() / (x * x).sum())
        k = zipf_cut(exponent, choice.mu, n_vocab)
    candidates.keep(largest_rows(candidates.softmax(), k))


def zipf_cut(exponent: float, mu: float, n_vocab: int) -> int:
    """Return how many tokens of a Zipf distribution have a mean surprise of about mu bits, 1 .. n_vocab."""
    epsilon = exponent - 1.0
    try:
        k = ((epsilon * 2.0**mu) / (1.0 - n_vocab ** (-epsilon))) ** (1.0 / exponent)
    except (OverflowError, ZeroDivisionError):
        return n_vocab
    return n_vocab if isinstance(k, complex) or not math.isfinite(k) else int(min(max(k, 1.0), n_vocab))


def next_mu(params: SamplingParams, mu: float, p: float) -> float:
    """Return the bound after a token of probability p (among those that were left) was drawn."""
    return mu - params.mirostat_eta * (-math.log2(p) - params.mirostat_tau)
