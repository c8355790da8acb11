"""Steps that change logits by what was said before, or by what the caller wants."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from phlite.engine.sampling.candidates import F32, I32, Candidates, Choice, Step
from phlite.errors import RequestError

__all__ = [
    "add_logit_bias",
    "apply_repeat_penalty",
    "call_logits_function",
    "penalise_counts_in",
    "penalise_dry",
    "penalise_repeats_in",
]

Window = Callable[[Choice], I32]
LARGEST_EXPONENT = 88.0  # ln of the largest float32, rounded down


def add_logit_bias(candidates: Candidates, choice: Choice) -> None:
    """Add the caller's bias to the logits it names."""
    logits = candidates.change_logits()
    for token_id, bias in (choice.params.logit_bias or {}).items():
        logits[token_id] += np.float32(bias)


def penalise_repeats_in(window: Window) -> Step:
    """Return the step that applies the repeat penalty to the ids of a window."""

    def penalise_repeats(candidates: Candidates, choice: Choice) -> None:
        ids = window(choice)
        if ids.size:
            apply_repeat_penalty(candidates.change_logits(), choice.params.repeat_penalty, ids)

    return penalise_repeats


def apply_repeat_penalty(logits: F32, penalty: float, window: I32) -> None:
    """Penalise, in place, each distinct id of the window once: logit / penalty if logit >= 0, else logit * penalty."""
    rows = np.fromiter(set(window.tolist()), np.int64)
    values = logits[rows]
    factor = np.float32(penalty)
    logits[rows] = np.where(values >= 0, values / factor, values * factor)


def penalise_counts_in(window: Window) -> Step:
    """Return the step that subtracts frequency_penalty * count + presence_penalty for every id of a window."""

    def penalise_counts(candidates: Candidates, choice: Choice) -> None:
        rows, counts = np.unique(window(choice), return_counts=True)
        if rows.size:
            penalty = choice.params.frequency_penalty * counts + choice.params.presence_penalty
            candidates.change_logits()[rows] -= penalty.astype(np.float32)

    return penalise_counts


def penalise_dry(breakers: Iterable[int]) -> Step:
    """Return the step that subtracts dry_multiplier * dry_base ** (length - dry_allowed_length) from repeating ids.

    An id repeats a length of n when the last n ids stand before an earlier occurrence of it; ids before the newest
    breaker do not count. Each id is penalised for its greatest length, breakers never.
    source: the DRY sampler of text-generation-webui (pull request 5677) as llama.cpp computes it
    """
    breaker_set = frozenset(breakers)
    breaker_ids = np.fromiter(breaker_set, np.int32)

    def penalise(candidates: Candidates, choice: Choice) -> None:
        params = choice.params
        ids = choice.window(params.dry_last_n, with_prompt=True)
        breaks = np.flatnonzero(np.isin(ids, breaker_ids))
        longest = ids.size - 1 - int(breaks[-1]) if breaks.size else ids.size
        found = repeated_lengths(ids, longest, params.dry_allowed_length)
        lengths = {token_id: length for token_id, length in found.items() if token_id not in breaker_set}
        if lengths:
            most = LARGEST_EXPONENT / math.log(params.dry_base) if params.dry_base > 1.0 else math.inf
            exponents = np.minimum(np.fromiter(lengths.values(), np.float64) - params.dry_allowed_length, most)
            amounts = (params.dry_multiplier * params.dry_base**exponents).astype(np.float32)
            candidates.change_logits()[np.fromiter(lengths, np.int64)] -= amounts

    return penalise


def repeated_lengths(ids: I32, longest: int, shortest: int) -> dict[int, int]:
    """Return id -> how many of the last ids, shortest .. longest, stand before one of its earlier occurrences."""
    lengths: dict[int, int] = {}
    if ids.size < 2:
        return lengths
    # ends: where the last `length` ids occur earlier, as the row of their last id. Longer matches are found later.
    ends = np.flatnonzero(ids[:-1] == ids[-1])
    for length in range(1, longest + 1):
        if length >= shortest:
            lengths.update(dict.fromkeys(ids[ends + 1].tolist(), length))
        ends = ends[ends >= length]
        if not ends.size:
            break
        ends = ends[ids[ends - length] == ids[ids.size - 1 - length]]
    return lengths


def call_logits_function(candidates: Candidates, choice: Choice) -> None:
    """Replace the logits by what the caller's function makes of them."""
    if choice.params.logits_function is None:
        return
    history = choice.ids.view()
    history.flags.writeable = False
    logits = candidates.change_logits()
    is_forbidden = np.isneginf(logits)
    result = np.array(choice.params.logits_function(history, logits), dtype=np.float32)
    if result.shape != logits.shape:
        raise RequestError(f"logits_function: returned shape {result.shape}, expected {logits.shape} float32 logits")
    # What a constraint, a bias or another step forbids, no function allows again.
    result[is_forbidden] = -np.inf
    candidates.logits = result
