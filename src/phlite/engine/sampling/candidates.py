"""The tokens still in play while a token is chosen, and how the largest of many are found without sorting."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phlite.engine.params import SamplingParams
from phlite.errors import RequestError

__all__ = ["F32", "I32", "Candidates", "Choice", "Step", "finite_max", "no_token_error"]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Floats = NDArray[np.float32] | NDArray[np.float64]

# Parts of the largest weight, which is 1, at which rare tokens are tried to be left out.
FLOORS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-7, 0.0)
LOGIT_FLOORS = tuple(np.float32(math.log(floor) if floor else -np.inf) for floor in FLOORS)


@dataclass(slots=True)
class Choice:
    """What the steps of one choice may look at besides the logits.

    ids:      int32[n], all ids of the sequence so far, prompt first; generated ones begin at n_prompt
    u:        the draw, 0 <= u < 1
    stop_ids: ids that end the sequence
    mu:       mirostat's bound on the surprise in bits; the choice replaces it by the one of the next token
    """

    params: SamplingParams
    ids: I32
    n_prompt: int
    u: float = 0.0
    stop_ids: frozenset[int] = frozenset()
    mu: float = 0.0

    def window(self, last_n: int, *, with_prompt: bool) -> I32:
        """Return the last last_n ids (-1: all), of the generated ones or of all."""
        first = 0 if with_prompt else self.n_prompt
        return self.ids[first if last_n < 0 else max(first, self.ids.size - last_n) :]


@dataclass(slots=True)
class Candidates:
    """The tokens still in play. Steps change it in place.

    logits:  float32[n]
    ids:     int64[n] ascending token ids of the logits, or None while they are the whole vocabulary
    weights: float32[n] exp(logit - largest logit) of each, or None when the logits have changed since
    total:   sum of the weights before any of them was left out
    shifted: whether the largest logit is 0
    """

    logits: F32
    ids: I64 | None = None
    weights: F32 | None = None
    total: float = 0.0
    shifted: bool = False

    def softmax(self) -> F32:
        """Return the unnormalised probabilities of the tokens in play; the largest is 1 unless it was left out."""
        if self.weights is None:
            self.weights = self.logits.copy() if self.shifted else self.logits - finite_max(self.logits)
            np.exp(self.weights, out=self.weights)
            self.total = float(self.weights.sum(dtype=np.float32))
        return self.weights

    def probabilities(self) -> NDArray[np.float64]:
        """Return the probabilities of the tokens in play, float64[n] of sum 1."""
        weights = self.softmax().astype(np.float64)
        weights /= weights.sum()
        return weights

    def change_logits(self) -> F32:
        """Return the logits to be changed in place."""
        self.weights = None
        self.shifted = False
        return self.logits

    def keep(self, rows: I64) -> None:
        """Keep these rows (ascending)."""
        if rows.size == self.logits.size:
            return
        self.logits = self.logits[rows]
        self.ids = rows if self.ids is None else self.ids[rows]
        if self.weights is not None:
            self.weights = self.weights[rows]

    def id_of(self, row: int) -> int:
        """Return the token id of a row."""
        return row if self.ids is None else int(self.ids[row])


Step = Callable[[Candidates, Choice], None]


def finite_max(logits: F32) -> np.float32:
    """Return the largest logit, refusing NaN, +inf and an empty choice (all -inf)."""
    largest: np.float32 = logits.max()
    if not math.isfinite(largest):
        raise no_token_error(float(largest))
    return largest


def no_token_error(largest: float) -> RequestError:
    """Return the error for logits from which no token can be chosen."""
    if largest == float("-inf"):
        return RequestError(
            "logits: all are -inf; the request forbids the whole vocabulary (logit_bias, logits_function, bad_words,"
            " no_repeat_ngram_size, suppress_token_ids, min_tokens and a constraint forbid tokens)"
        )
    return RequestError(f"logits: got {largest} among them, expected finite numbers or -inf; check logits_function")


def rows_with_largest(weights: F32, k: int) -> I64:
    """Return, ascending, few rows that include those of the k largest weights, the largest being about 1; k <= size."""
    for floor in FLOORS:
        is_above = weights >= floor
        if np.count_nonzero(is_above) >= k:
            break
    return np.flatnonzero(is_above)


def logit_rows_with_largest(logits: F32, k: int) -> I64:
    """Return, ascending, few rows that include those of the k largest logits; k <= size."""
    largest = finite_max(logits)
    for floor in LOGIT_FLOORS:
        is_above = logits >= largest + floor
        if np.count_nonzero(is_above) >= k:
            break
    return np.flatnonzero(is_above)


def largest_rows(values: Floats, k: int, *, with_ties: bool = False) -> I64:
    """Return the rows of the k largest values, ascending; of equal ones the lower rows, or all; 1 <= k <= size."""
    threshold = np.partition(values, values.size - k)[values.size - k]
    return np.flatnonzero(values >= threshold) if with_ties else rows_from(values, threshold, k)


def rows_from(values: Floats, threshold: np.floating, n: int) -> I64:
    """Return, ascending, the rows above the threshold and as many of the first ones equal to it as make n."""
    rows = np.flatnonzero(values >= threshold)
    n_extra = rows.size - n
    if n_extra > 0:
        equal = np.flatnonzero(values[rows] == threshold)
        rows = np.delete(rows, equal[equal.size - n_extra :])
    return rows
