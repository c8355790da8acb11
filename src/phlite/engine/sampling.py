"""From logits to the next token id: pure functions, the same result for the same arguments always.

The order of the steps is Candle's, which the tutorial uses: logit bias, repeat penalty, frequency and presence
penalty, the caller's function, temperature, softmax, top-k, top-p, min-p, one draw. `build_steps` leaves out those that
the parameters switch off. Penalties look at generated tokens only, never at the prompt.

top-k keeps exactly k tokens (of equal logits the lower ids). top-p is measured in probabilities of the whole
vocabulary, not renormalised after top-k (Candle's TopKThenTopP), and keeps the token that crosses p. min-p compares
with the largest probability left. Survivors stay in id order, so no step has to sort the vocabulary.

source: candle-transformers 0.9 generation/mod.rs and utils.rs for the order, the penalty and top-p
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phlite.engine.params import SamplingParams
from phlite.errors import RequestError

__all__ = [
    "Candidates",
    "Step",
    "TokenLogprob",
    "apply_repeat_penalty",
    "build_steps",
    "compute_logprob",
    "sample",
    "uniform",
]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

GREEDY_BELOW = 1e-7
# Parts of the largest weight, which is 1, at which rare tokens are tried to be left out.
FLOORS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-7, 0.0)
DRAW_BLOCK = 256


@dataclass(slots=True)
class Candidates:
    """The tokens still in play. Steps change it in place.

    values: float32[n], logits until `softmax` has run, then weights exp(logit - largest logit)
    ids:    int64[n] ascending token ids of the values, or None while they are the whole vocabulary
    total:  sum of the weights of the whole vocabulary (set by `softmax`)
    """

    values: F32
    ids: NDArray[np.int64] | None = None
    total: float = 0.0

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Keep these rows (ascending) of the values."""
        self.values = self.values[rows]
        self.ids = rows if self.ids is None else self.ids[rows]


Step = Callable[[Candidates, SamplingParams, I32, int], None]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural log-probabilities of one generated token in the model's own distribution.

    top: the most likely (id, logprob), most likely first; as many as SamplingParams.logprobs asked for
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def sample(
    logits: F32,
    params: SamplingParams,
    ids: I32,
    *,
    n_prompt: int,
    u: float,
    steps: tuple[Step, ...] | None = None,
) -> int:
    """Return the next token id.

    logits:   float32[V], left unchanged
    ids:      int32[n], all ids of the sequence so far, prompt first; generated ones begin at n_prompt
    u:        the draw, 0 <= u < 1 (see `uniform`); unused when greedy
    steps:    build_steps(params), when the caller has kept it
    raises:   RequestError when the caller's bias or function left no token or made a NaN
    """
    if steps is None:
        steps = build_steps(params)
    greedy = params.temperature < GREEDY_BELOW
    if greedy and not steps:
        return int(logits.argmax())
    candidates = Candidates(logits.copy())
    # Forbidden tokens may be -inf or the most negative float: differences then overflow to -inf, as they should.
    with np.errstate(over="ignore"):
        for step in steps:
            step(candidates, params, ids, n_prompt)
    row = int(candidates.values.argmax()) if greedy else draw(candidates.values, u)
    if greedy and not math.isfinite(candidates.values[row]):
        raise no_token_error(float(candidates.values[row]))
    return row if candidates.ids is None else int(candidates.ids[row])


def build_steps(params: SamplingParams) -> tuple[Step, ...]:
    """Return the steps that these parameters switch on, in order. A greedy choice needs none after the penalties."""
    steps: list[Step] = []
    if params.logit_bias:
        steps.append(add_logit_bias)
    if params.repeat_penalty != 1.0 and params.repeat_last_n != 0:
        steps.append(penalise_repeats)
    if params.frequency_penalty != 0.0 or params.presence_penalty != 0.0:
        steps.append(penalise_counts)
    if params.logits_function is not None:
        steps.append(call_logits_function)
    if params.temperature < GREEDY_BELOW:
        return tuple(steps)
    if params.temperature != 1.0:
        steps.append(divide_by_temperature)
    steps.append(softmax)
    if params.top_k:
        steps.append(keep_top_k)
    if params.top_p is not None and params.top_p < 1.0:
        steps.append(keep_top_p)
    if params.min_p:
        steps.append(keep_min_p)
    return tuple(steps)


def uniform(seed: int, index: int) -> float:
    """Return draw number `index` of the stream `seed`: a multiple of 2**-53 in [0, 1).

    A function of its two arguments alone, so a step that is repeated, after a preemption or an interrupt, draws the
    same number. seed, index: 0 .. 2**64 - 1.
    source: SplitMix64 (Steele, Lea, Flood 2014), its state being mix(seed) + (index + 1) * golden ratio
    """
    state = mix64(seed + GOLDEN) + (index + 1) * GOLDEN
    return (mix64(state) >> 11) * 2.0**-53


GOLDEN = 0x9E3779B97F4A7C15
MASK64 = 2**64 - 1


def mix64(z: int) -> int:
    """Return SplitMix64's finalizer of z modulo 2**64."""
    z &= MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    return z ^ (z >> 31)


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


def apply_repeat_penalty(logits: F32, penalty: float, window: I32) -> None:
    """Penalise, in place, each distinct id of the window once: logit / penalty if logit >= 0, else logit * penalty."""
    rows = np.fromiter(set(window.tolist()), np.int64)
    values = logits[rows]
    factor = np.float32(penalty)
    logits[rows] = np.where(values >= 0, values / factor, values * factor)


def add_logit_bias(candidates: Candidates, params: SamplingParams, ids: I32, n_prompt: int) -> None:
    """Add the caller's bias to the logits it names."""
    for token_id, bias in (params.logit_bias or {}).items():
        candidates.values[token_id] += np.float32(bias)


def penalise_repeats(candidates: Candidates, params: SamplingParams, ids: I32, n_prompt: int) -> None:
    """Apply the repeat penalty over the last repeat_last_n generated ids."""
    start = n_prompt if params.repeat_last_n < 0 else max(n_prompt, ids.size - params.repeat_last_n)
    if start < ids.size:
        apply_repeat_penalty(candidates.values, params.repeat_penalty, ids[start:])


def penalise_counts(candidates: Candidates, params: SamplingParams, ids: I32, n_prompt: int) -> None:
    """Subtract frequency_penalty * count + presence_penalty for every generated id (OpenAI's rule)."""
    rows, counts = np.unique(ids[n_prompt:], return_counts=True)
    if rows.size:
        penalty = params.frequency_penalty * counts + params.presence_penalty
        candidates.values[rows] -= penalty.astype(np.float32)


def call_logits_function(candidates: Candidates, params: SamplingParams, ids: I32, n_prompt: int) -> None:
    """Replace the logits by what the caller's function makes of them."""
    if params.logits_function is None:
        return
    history = ids.view()
    history.flags.writeable = False
    result = np.array(params.logits_function(history, candidates.values), dtype=np.float32)
    if result.shape != candidates.values.shape:
        raise RequestError(
            f"logits_function: returned shape {result.shape}, expected {candidates.values.shape} float32 logits"
        )
    candidates.values = result


def divide_by_temperature(candidates: Candidates, params: SamplingParams, ids: I32, n_prompt: int) -> None:
    """Divide the logits by the temperature (> 0)."""
    # The largest is taken off first: a tiny temperature then gives -inf, which softmax knows, and never inf - inf.
    values = candidates.values
    values -= finite_max(values)
    values /= np.float32(params.temperature)


def softmax(candidates: Candidates, params: SamplingParams, ids: I32, n_prompt: int) -> None:
    """Turn logits into unnormalised probabilities and note their sum."""
    weights = candidates.values
    weights -= finite_max(weights)
    np.exp(weights, out=weights)
    candidates.total = float(weights.sum(dtype=np.float32))


def keep_top_k(candidates: Candidates, params: SamplingParams, ids: I32, n_prompt: int) -> None:
    """Keep the top_k largest weights."""
    k = params.top_k or 0
    if k < candidates.values.size:
        rows = rows_with_largest(candidates.values, k)
        candidates.keep(rows[largest_rows(candidates.values[rows], k)])


def keep_top_p(candidates: Candidates, params: SamplingParams, ids: I32, n_prompt: int) -> None:
    """Keep the largest weights until their sum reaches top_p of the whole vocabulary's; the crossing one stays."""
    weights = candidates.values
    wanted = (params.top_p or 1.0) * candidates.total
    # Bands of weights are taken whole, largest first, while that is less than p; only the band that crosses is sorted.
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


def keep_min_p(candidates: Candidates, params: SamplingParams, ids: I32, n_prompt: int) -> None:
    """Drop weights below min_p times the largest."""
    floor = np.float32(params.min_p or 0.0) * candidates.values.max()
    rows = np.flatnonzero(candidates.values >= floor)
    if rows.size < candidates.values.size:
        candidates.keep(rows)


def draw(weights: F32, u: float) -> int:
    """Return the first row whose running sum exceeds u times the sum of all; its weight is above zero."""
    if weights.size <= 2 * DRAW_BLOCK:
        sums = weights.cumsum(dtype=np.float64)
        return row_at(sums, u * sums[-1])
    # Sums of blocks first, then rows of one block: a running sum over a whole vocabulary takes ten times as long.
    starts = np.arange(0, weights.size, DRAW_BLOCK)
    block_sums = np.add.reduceat(weights, starts).cumsum(dtype=np.float64)
    target = u * block_sums[-1]
    block = row_at(block_sums, target)
    before = block_sums[block - 1] if block else 0.0
    start = block * DRAW_BLOCK
    return start + row_at(weights[start : start + DRAW_BLOCK].cumsum(dtype=np.float64), target - before)


def row_at(sums: NDArray[np.float64], target: float) -> int:
    """Return the first row whose running sum exceeds the target."""
    row = int(sums.searchsorted(target, side="right"))
    # The target may round up to the sum itself; the last row that adds anything is meant then.
    return row if row < sums.size else int(sums.searchsorted(sums[-1], side="left"))


def rows_with_largest(weights: F32, k: int) -> NDArray[np.int64]:
    """Return, ascending, few rows that include those of the k largest weights, the largest being about 1; k <= size."""
    for floor in FLOORS:
        is_above = weights >= floor
        if np.count_nonzero(is_above) >= k:
            break
    return np.flatnonzero(is_above)


def largest_rows(values: F32, k: int) -> NDArray[np.int64]:
    """Return the rows of the k largest values, ascending; of equal ones the lower rows; 1 <= k <= size."""
    threshold = np.partition(values, values.size - k)[values.size - k]
    return rows_from(values, threshold, k)


def rows_from(values: F32, threshold: np.float32, n: int) -> NDArray[np.int64]:
    """Return, ascending, the rows above the threshold and as many of the first ones equal to it as make n."""
    rows = np.flatnonzero(values >= threshold)
    n_extra = rows.size - n
    if n_extra > 0:
        equal = np.flatnonzero(values[rows] == threshold)
        rows = np.delete(rows, equal[equal.size - n_extra :])
    return rows


def finite_max(logits: F32) -> np.float32:
    """Return the largest logit, refusing NaN, +inf and an empty choice (all -inf)."""
    largest: np.float32 = logits.max()
    if not math.isfinite(largest):
        raise no_token_error(float(largest))
    return largest


def no_token_error(largest: float) -> RequestError:
    """Return the error for logits from which no token can be chosen."""
    if largest == float("-inf"):
        return RequestError("logits: all are -inf; logit_bias or logits_function forbids the whole vocabulary")
    return RequestError(f"logits: got {largest} among them, expected finite numbers or -inf; check logits_function")
