"""Tokens that must not come: their logits become -inf. These steps come first, and their order does not matter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from phlite.engine.sampling.candidates import Candidates, Choice, Step

__all__ = ["mask_bad_words", "mask_ids", "mask_repeated_ngrams", "mask_stop_ids"]

NEVER = np.float32(-np.inf)


def mask_ids(ids: Iterable[int]) -> Step:
    """Return the step that forbids these ids."""
    rows = np.fromiter(ids, np.int64)

    def mask(candidates: Candidates, choice: Choice) -> None:
        candidates.change_logits()[rows] = NEVER

    return mask


def mask_stop_ids(candidates: Candidates, choice: Choice) -> None:
    """Forbid the stop ids until min_tokens are generated and prompt and output have min_length ids together."""
    n_ids = choice.ids.size
    if n_ids < choice.params.min_length or n_ids - choice.n_prompt < choice.params.min_tokens:
        candidates.change_logits()[list(choice.stop_ids)] = NEVER


def mask_bad_words(words: Sequence[tuple[int, ...]]) -> Step:
    """Return the step that forbids the last id of each word whose other ids were the last of the sequence.

    source: transformers NoBadWordsLogitsProcessor
    """
    longest = max(map(len, words))

    def mask(candidates: Candidates, choice: Choice) -> None:
        logits = candidates.change_logits()
        end = choice.ids[max(0, choice.ids.size - longest + 1) :].tolist()
        for *head, last in words:
            if len(head) <= len(end) and end[len(end) - len(head) :] == head:
                logits[last] = NEVER

    return mask


def mask_repeated_ngrams(candidates: Candidates, choice: Choice) -> None:
    """Forbid ids that would repeat no_repeat_ngram_size ids that prompt and output already hold in a row.

    source: transformers NoRepeatNGramLogitsProcessor
    """
    n_before, ids = choice.params.no_repeat_ngram_size - 1, choice.ids
    n_starts = ids.size - n_before
    if n_starts < 1:
        return
    is_repeat = np.ones(n_starts, np.bool_)
    for offset in range(n_before):
        is_repeat &= ids[offset : offset + n_starts] == ids[n_starts + offset]
    candidates.change_logits()[ids[np.flatnonzero(is_repeat) + n_before]] = NEVER
