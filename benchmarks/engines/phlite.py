"""phlite: the model layer for single sequences, the engine with greedy sampling for batches."""

from __future__ import annotations

import time

import numpy as np

from engines.base import PROMPT_OF_A_BATCH, Options, token_ids

SETTINGS = {"defaults": "as installed"}
BLOCK = 64


def why_missing(options: Options) -> str:
    return ""


def load(options: Options) -> PhliteEngine:
    return PhliteEngine(options)


class PhliteEngine:
    """The model with one cache per depth, so that the context is computed once and then kept."""

    def __init__(self, options: Options) -> None:
        from phlite import __version__, ops
        from phlite.models.registry import load_model

        self.options = options
        self.model = load_model(options.model, pool=ops.ThreadPool(options.n_threads))
        self.caches: dict[int, ops.KVCache] = {}
        self.facts: dict[str, str | int | float] = {"version": __version__, "isa": ops.isa_name()}

    def prefill(self, n: int, depth: int) -> float:
        """One forward pass over the prompt: every weight is read once."""
        self.fill(depth)
        started_s = time.perf_counter()
        self.forward(depth, n, depth)
        return time.perf_counter() - started_s

    def decode(self, n: int, depth: int) -> float:
        """One forward pass per token."""
        self.fill(depth)
        first = depth
        if not depth:
            self.forward(0, 1, depth)
            first = 1
        started_s = time.perf_counter()
        for position in range(first, first + n):
            self.forward(position, 1, depth)
        return time.perf_counter() - started_s

    def batch(self, n_sequences: int, n: int) -> float:
        """Steps of the engine, sampling included."""
        from phlite.engine import Engine, SamplingParams

        n_each = PROMPT_OF_A_BATCH + n + 2
        cache_tokens = n_sequences * (-(-n_each // BLOCK) * BLOCK)
        engine = Engine(self.model, n_ctx=n_each, kv_type=self.options.kv, cache_tokens=cache_tokens)
        params = SamplingParams.greedy(max_tokens=n + 1, ignore_eos=True, prompt_lookup_num_tokens=0)
        sequences = [engine.add(token_ids(PROMPT_OF_A_BATCH).tolist(), params) for _ in range(n_sequences)]
        while not all(sequence.output_ids for sequence in sequences):
            engine.step()
        n_before = sum(len(sequence.output_ids) for sequence in sequences)
        started_s = time.perf_counter()
        while engine.has_unfinished:
            engine.step()
        seconds = time.perf_counter() - started_s
        n_tokens = sum(len(sequence.output_ids) for sequence in sequences) - n_before
        return seconds * n_sequences * n / n_tokens

    def fill(self, depth: int) -> None:
        """Build the cache of this depth and compute its context, once."""
        if depth in self.caches:
            return
        self.caches[depth] = self.model.build_kv_cache(-(-(depth + self.options.n_ctx) // BLOCK), self.options.kv)
        for start in range(0, depth, 512):
            self.forward(start, min(512, depth - start), depth)

    def forward(self, start: int, n: int, depth: int) -> None:
        """Process n tokens from position `start` on in the cache of this depth."""
        from phlite.models.base import Batch

        cache = self.caches[depth]
        batch = Batch(
            token_ids=token_ids(n),
            positions=np.arange(start, start + n, dtype=np.int32),
            seq_starts=np.array([0, n], np.int32),
            block_tables=np.arange(cache.n_blocks, dtype=np.int32)[None],
            seq_lens=np.array([start + n], np.int32),
            logit_rows=np.array([n - 1], np.int32),
        )
        self.model.forward(batch, cache)
