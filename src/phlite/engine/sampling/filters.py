"""Steps that leave unlikely tokens out. Survivors stay in the order of their ids, so no step sorts the vocabulary.

Each works on the tokens that the steps before it left; how it measures them is said where presets differ.
"""

from __future__ import annotations

import numpy as np

from phlite.engine.sampling.candidates import (
    FLOORS,
    Candidates,
    Choice,
    Step,
    largest_rows,
    logit_rows_with_largest,
    rows_from,
    rows_with_largest,
)
from phlite.engine.sampling.draw import second_uniform

__all__ = [
    "keep_min_p",
    "keep_top_k_by",
    "keep_top_n_sigma",
    "keep_top_p_by",
    "keep_typical_by",
    "leave_out_top_choices",
]


def keep_top_k_by(*, with_ties: bool) -> Step:
    """Return the step that keeps the top_k largest logits, and those equal to the last of them if with_ties."""

    def keep_top_k(candidates: Candidates, choice: Choice) -> None:
        k = choice.params.top_k or 0
        if k >= candidates.logits.size:
            return
        values = candidates.logits if candidates.weights is None else candidates.weights
        rows = logit_rows_with_largest(values, k) if candidates.weights is None else rows_with_largest(values, k)
        candidates.keep(rows[largest_rows(values[rows], k, with_ties=with_ties)])

    return keep_top_k


def keep_top_p_by(*, of_whole_vocabulary: bool) -> Step:
    """Return the step that keeps the largest weights until their sum reaches top_p; the one that crosses it stays.

    of_whole_vocabulary: p is a part of the whole vocabulary's sum (Candle's rule), else of the tokens still in play
    """

    def keep_top_p(candidates: Candidates, choice: Choice) -> None:
        weights = candidates.softmax()
        total = candidates.total if of_whole_vocabulary else float(weights.sum(dtype=np.float64))
        wanted = (choice.params.top_p or 1.0) * total
        # Bands of weights are taken whole, largest first, while that is less than p; only the band that crosses is
        # sorted.
        taken, n_taken, upper = 0.0, 0, np.inf
        for floor in FLOORS:
            band = weights[(weights >= floor) & (weights < upper)]
            mass = float(band.sum(dtype=np.float64))
            if taken + mass >= wanted:
                break
            taken, n_taken, upper = taken + mass, n_taken + band.size, floor
        descending = np.sort(band)[::-1]
        sums = descending.cumsum(dtype=np.float64) + taken
        n_of_band = int(sums.searchsorted(wanted, side="left")) + 1
        if n_of_band <= band.size and n_taken + n_of_band < weights.size:
            candidates.keep(rows_from(weights, descending[n_of_band - 1], n_taken + n_of_band))

    return keep_top_p


def keep_min_p(candidates: Candidates, choice: Choice) -> None:
    """Drop weights below min_p times the largest."""
    weights = candidates.softmax()
    candidates.keep(np.flatnonzero(weights >= np.float32(choice.params.min_p or 0.0) * weights.max()))


def keep_typical_by(*, with_ties: bool) -> Step:
    """Return the step that keeps the tokens whose surprise is closest to the entropy, until they reach typical_p.

    with_ties: keep all that are as close as the last one
    source: Meister et al. 2022, arXiv 2202.00666
    """

    def keep_typical(candidates: Candidates, choice: Choice) -> None:
        p = candidates.probabilities()
        with np.errstate(divide="ignore", invalid="ignore"):
            surprise = -np.log(p)
            entropy = float(np.where(p > 0, p * surprise, 0.0).sum())
            distance = np.abs(surprise - entropy)
        order = np.argsort(distance, kind="stable")
        n_kept = int(p[order].cumsum().searchsorted(choice.params.typical_p or 1.0, side="left")) + 1
        if n_kept >= order.size:
            return
        rows = order[:n_kept]
        if with_ties:
            rows = np.flatnonzero(distance <= distance[rows[-1]])
        candidates.keep(np.sort(rows))

    return keep_typical


def keep_top_n_sigma(candidates: Candidates, choice: Choice) -> None:
    """Keep logits of at least the largest minus top_n_sigma standard deviations of the logits still in play.

    source: Tang et al. 2024, arXiv 2411.07641
    """
    logits = candidates.logits
    finite = logits[logits > -np.inf]
    if finite.size < 2:
        return
    bound = float(finite.max()) - (choice.params.top_n_sigma or 0.0) * float(finite.std(dtype=np.float64))
    candidates.keep(np.flatnonzero(logits >= bound))


def leave_out_top_choices(candidates: Candidates, choice: Choice) -> None:
    """With xtc_probability, drop all tokens of at least xtc_threshold but the least likely of them (XTC).

    The coin is a hash of the bits of the draw (`second_uniform`), so that a choice needs one random number.
    source: text-generation-webui (pull request 6335) as llama.cpp computes it
    """
    params = choice.params
    if params.xtc_threshold > 0.5 or second_uniform(choice.u) >= params.xtc_probability:
        return
    p = candidates.probabilities()
    top = np.flatnonzero(p >= params.xtc_threshold)
    if top.size < 2:
        return
    last = top[len(top) - 1 - int(p[top][::-1].argmin())]
    kept = p < params.xtc_threshold
    kept[last] = True
    candidates.keep(np.flatnonzero(kept))
