"""Run a loaded model on one sequence, step by step, without the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from phlite.engine.adapters import AdapterUse
from phlite.layers.lora import row_adapters
from phlite.models.base import Batch, CausalLM

_BLOCK = 64


def sequence_batch(
    token_ids: Sequence[int], *, start: int = 0, seq_len: int | None = None, logit_rows: Sequence[int] | None = None
) -> Batch:
    """Return the batch of one sequence whose tokens stand at positions start, start + 1, ... in blocks 0, 1, ...

    seq_len:    tokens of the sequence known now; None: up to the last one here
    logit_rows: None: the last
    """
    n, end = len(token_ids), start + len(token_ids)
    return Batch(
        token_ids=np.asarray(token_ids, np.int32),
        positions=np.arange(start, end, dtype=np.int32),
        seq_starts=np.array([0, n], np.int32),
        block_tables=np.arange(-(-end // _BLOCK), dtype=np.int32)[None],
        seq_lens=np.array([end if seq_len is None else seq_len], np.int32),
        logit_rows=np.array([n - 1] if logit_rows is None else logit_rows, np.int32),
    )


def all_logits(
    model: CausalLM,
    token_ids: Sequence[int],
    *,
    chunk: int | None = None,
    dtype: str = "f32",
    lora: Sequence[AdapterUse] = (),
) -> NDArray[np.float32]:
    """Return float32[T, V], the logits after every token, the prompt fed in chunks of this many tokens."""
    n = len(token_ids)
    cache = model.build_kv_cache(-(-n // _BLOCK), dtype)
    step = chunk or n
    parts = []
    for start in range(0, n, step):
        part = token_ids[start : start + step]
        batch = sequence_batch(part, start=start, seq_len=n, logit_rows=range(len(part)))
        if lora:
            scales = [(use.adapter, np.full(len(part), use.scale, np.float32)) for use in lora]
            batch = replace(batch, lora=row_adapters(len(part), scales))
        parts.append(model.forward(batch, cache))
    return np.concatenate(parts)


def greedy_ids(model: CausalLM, prompt_ids: Sequence[int], n_new: int, *, dtype: str = "f32") -> list[int]:
    """Return the n_new ids with the largest logits, one after the other; re-encodes where the rope regime changes."""
    ids = [int(i) for i in prompt_ids]
    cache = model.build_kv_cache(-(-(len(ids) + n_new) // _BLOCK), dtype)
    n_cached = 0
    for _ in range(n_new):
        if n_cached and model.rope_regime(len(ids)) != model.rope_regime(n_cached):
            n_cached = 0
        logits = model.forward(sequence_batch(ids[n_cached:], start=n_cached), cache)
        n_cached = len(ids)
        ids.append(int(np.argmax(logits[-1])))
    return ids[len(prompt_ids) :]
