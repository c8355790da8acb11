"""How well a model predicts a text: exp of the mean negative log-likelihood of its tokens.

The text's tokens are cut into windows of n_ctx, each encoded by itself. Only the tokens of a window's second half are
scored, so that every prediction has seen at least half a window; the first token of a window is replaced by the
begin-of-text token where the vocabulary adds one. source: llama.cpp tools/perplexity, whose figures are comparable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from phlite.engine.adapters import AdapterUse
from phlite.engine.blocks import BLOCK_SIZE
from phlite.errors import ModelFileError, RequestError
from phlite.layers.lora import row_adapters
from phlite.models.base import Batch, CausalLM

if TYPE_CHECKING:
    from phlite.ops import KVCache

__all__ = ["Perplexity", "Windows", "cut_windows", "score_windows"]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

SMALLEST_WINDOW = 8
BATCH_TOKENS = 512  # of one forward pass; more are no faster, but take more memory: docs/LOG.md
LOGIT_BYTES = 128 << 20  # of one forward pass
LARGEST_EXPONENT = 709.0  # exp of more is no float64


@dataclass(frozen=True, slots=True)
class Perplexity:
    """The figure over the windows seen so far.

    value:          exp(mean_nll)
    standard_error: of value, from the spread of the tokens' negative log-likelihoods, taken as independent
    mean_nll:       mean negative natural logarithm of the probability of a scored token
    n_tokens:       scored tokens
    n_windows:      windows seen
    n_windows_all:  windows that will be seen in the end
    """

    value: float
    standard_error: float
    mean_nll: float
    n_tokens: int
    n_windows: int
    n_windows_all: int


@dataclass(frozen=True, slots=True)
class Windows:
    """Equally long pieces of a text and what is scored in them.

    token_ids:    int32[n, n_ctx], what the model reads
    first_scored: position of the first scored token in every window, at least 1; all behind it are scored too
    """

    token_ids: I32
    first_scored: int


def cut_windows(
    token_ids: Sequence[int],
    *,
    n_ctx: int,
    stride: int | None = None,
    bos_id: int | None = None,
    max_windows: int | None = None,
) -> Windows:
    """Return the windows of a text.

    token_ids:   the whole text, with a begin-of-text token in front where the vocabulary adds it
    stride:      None: windows side by side, the tokens behind the middle of each are scored; otherwise a window begins
                 every `stride` tokens, the last `stride` tokens of each are scored, and no token is replaced
    bos_id:      replaces the first token of every window where there is no stride; None: nothing does
    max_windows: take only so many, from the beginning
    raises:      RequestError for a number out of range, or a text shorter than two windows
    """
    if n_ctx < SMALLEST_WINDOW:
        raise RequestError(f"n_ctx: got {n_ctx}, expected at least {SMALLEST_WINDOW}")
    if stride is not None and not 1 <= stride < n_ctx:
        raise RequestError(f"stride: got {stride}, expected 1 to {n_ctx - 1}, below the window of {n_ctx} tokens")
    if max_windows is not None and max_windows < 1:
        raise RequestError(f"max_windows: got {max_windows}, expected at least 1")
    if len(token_ids) < 2 * n_ctx:
        raise RequestError(
            f"the text has {len(token_ids)} tokens, expected at least {2 * n_ctx}, two windows of n_ctx = {n_ctx}; "
            "give a longer text or a smaller n_ctx"
        )
    ids = np.asarray(token_ids, np.int32)
    step = n_ctx if stride is None else stride
    # With a stride the text's last token is left to the window that would begin there: llama.cpp's count.
    n_windows = len(ids) // n_ctx if stride is None else -(-(len(ids) - n_ctx) // stride)
    n_windows = n_windows if max_windows is None else min(n_windows, max_windows)
    windows = np.lib.stride_tricks.sliding_window_view(ids, n_ctx)[::step][:n_windows].copy()
    if stride is None and bos_id is not None:
        windows[:, 0] = bos_id
    return Windows(windows, n_ctx // 2 + 1 if stride is None else n_ctx - stride)


def score_windows(
    model: CausalLM,
    windows: Windows,
    *,
    kv_type: str,
    lead: Callable[[], AbstractContextManager[object]],
    lora: tuple[AdapterUse, ...] = (),
) -> Iterator[Perplexity]:
    """Yield the figure after every forward of some windows; the last is the result.

    kv_type: numbers in the cache, "f16", "q8_0" or "f32"; the cache is this function's own
    lead:    entered around each forward pass, since a model runs one at a time: `SharedEngine.lead`
    lora:    adapters for all windows
    raises:  ModelFileError where the model's logits are not finite
    """
    n_all, n_ctx = windows.token_ids.shape
    n_together = min(max(BATCH_TOKENS // n_ctx, 1), n_all)
    cache = model.build_kv_cache(n_together * -(-n_ctx // BLOCK_SIZE), kv_type)
    total = total_of_squares = 0.0
    n_tokens = 0
    for start in range(0, n_all, n_together):
        group = Windows(windows.token_ids[start : start + n_together], windows.first_scored)
        for nll in nll_of_group(model, group, cache, lead, lora):
            total += math.fsum(nll)
            total_of_squares += math.fsum(nll * nll)
            n_tokens += nll.size
        yield estimate(total, total_of_squares, n_tokens, min(start + n_together, n_all), n_all)


def nll_of_group(
    model: CausalLM,
    windows: Windows,
    cache: KVCache,
    lead: Callable[[], AbstractContextManager[object]],
    lora: tuple[AdapterUse, ...],
) -> Iterator[NDArray[np.float64]]:
    """Yield the negative log-likelihoods of all scored tokens of windows that go through the model together."""
    n_windows, n_ctx = windows.token_ids.shape
    first_row = windows.first_scored - 1  # the logits of a position are about the next token
    n_at_once = max(BATCH_TOKENS // n_windows, 1)
    n_with_logits = max(min(n_at_once, LOGIT_BYTES // (4 * model.config.vocab_size * n_windows)), 1)
    start = 0
    while start < n_ctx - 1:
        is_scored = start >= first_row
        end = min(start + n_with_logits, n_ctx - 1) if is_scored else min(start + n_at_once, first_row)
        batch = batch_of_columns(windows.token_ids, start, end, wants_logits=is_scored, lora=lora)
        with lead():
            logits = model.forward(batch, cache)
        if is_scored:
            yield negative_log_likelihoods(logits, windows.token_ids[:, start + 1 : end + 1].reshape(-1))
        start = end


def batch_of_columns(
    token_ids: I32, start: int, end: int, *, wants_logits: bool, lora: tuple[AdapterUse, ...]
) -> Batch:
    """Return the batch of positions start .. end of every window, with the logits of all of them or of none."""
    n_windows, n_ctx = token_ids.shape
    n_new, n_blocks = end - start, -(-n_ctx // BLOCK_SIZE)
    n_rows = n_windows * n_new
    scales = [(use.adapter, np.full(n_rows, use.scale, np.float32)) for use in lora]
    return Batch(
        token_ids=np.ascontiguousarray(token_ids[:, start:end]).reshape(-1),
        positions=np.tile(np.arange(start, end, dtype=np.int32), n_windows),
        seq_starts=np.arange(n_windows + 1, dtype=np.int32) * np.int32(n_new),
        block_tables=np.arange(n_windows * n_blocks, dtype=np.int32).reshape(n_windows, n_blocks),
        seq_lens=np.full(n_windows, n_ctx, np.int32),
        logit_rows=np.arange(n_rows if wants_logits else 0, dtype=np.int32),
        lora=row_adapters(n_rows, scales) if lora else None,
    )


def negative_log_likelihoods(logits: F32, token_ids: I32) -> NDArray[np.float64]:
    """Return float64[R]: log(sum(exp(logits))) - logits[token], natural logarithm, row by row in float64.

    logits: float32[R, V]; token_ids: int32[R]
    raises: ModelFileError where a result is not finite
    """
    result = np.empty(len(token_ids), np.float64)
    for row, token_id in enumerate(token_ids.tolist()):
        values = logits[row].astype(np.float64)
        values -= values.max()
        result[row] = np.log(np.exp(values).sum()) - values[token_id]
    if not np.isfinite(result).all():
        raise ModelFileError(
            "the model's logits are not finite numbers: its weights are damaged (NaN or infinite scales?);"
            " download or convert the file again"
        )
    return result


def estimate(total: float, total_of_squares: float, n_tokens: int, n_windows: int, n_all: int) -> Perplexity:
    """Return the figure from the sums of the tokens' negative log-likelihoods and of their squares."""
    mean = total / n_tokens
    variance = max(total_of_squares / n_tokens - mean * mean, 0.0)
    # exp'(mean) = exp(mean): the error of the mean, carried over to first order.
    value = math.exp(mean) if mean < LARGEST_EXPONENT else math.inf
    error = value * math.sqrt(variance / max(n_tokens - 1, 1))
    return Perplexity(value, error, mean, n_tokens, n_windows, n_all)
