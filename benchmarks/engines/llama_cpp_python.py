"""llama-cpp-python through llama.cpp's C interface, timed as llama-bench times it: no sampling, no text.

The prompt is one llama_decode in one physical batch; the context of a test is a llama_context of its own, because all
cells of a context in use are visited by every attention.
"""

# ruff: noqa: D102  (engines.base.Engine documents the methods)
from __future__ import annotations

import ctypes
import time
from typing import Any

import numpy as np

from engines.base import PROMPT_OF_A_BATCH, Options, missing_package, token_ids

SETTINGS = {
    "defaults": "weights repacked where the library can, flash attention chosen by the library",
    "no-repack": "use_extra_bufts=False: the weights stay mapped as they are in the file",
    "no-flash": "flash attention off",
    "no-repack-no-flash": "both",
}
CELLS = 256


def why_missing(options: Options) -> str:
    return missing_package("llama_cpp")


def load(options: Options) -> LlamaCppEngine:
    return LlamaCppEngine(options)


class LlamaCppEngine:
    """A llama_model and its contexts."""

    def __init__(self, options: Options) -> None:
        import llama_cpp

        self.options, self.lib = options, llama_cpp
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts = "no-repack" not in options.setting
        self.model = llama_cpp.llama_model_load_from_file(options.model.encode(), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {options.model}")
        self.contexts: dict[tuple[int, int], Any] = {}
        system = llama_cpp.llama_print_system_info().decode()
        self.facts: dict[str, str | int | float] = {"version": llama_cpp.__version__, "system": system}

    def prefill(self, n: int, depth: int) -> float:
        """One llama_decode of n tokens; only the last asks for logits."""
        context = self.rewound(depth)
        return self.timed(context, [token_ids(n)])

    def decode(self, n: int, depth: int) -> float:
        """n calls of llama_decode with one token."""
        context = self.rewound(depth)
        if not depth:
            self.timed(context, [token_ids(1)])
        return self.timed(context, [token_ids(1)] * n)

    def batch(self, n_sequences: int, n: int) -> float:
        """n calls of llama_decode with one token of each sequence, all with logits."""
        context = self.rewound(0, n_sequences)
        for seq_id in range(n_sequences):
            self.decode_rows(context, [(seq_id, position) for position in range(PROMPT_OF_A_BATCH)])
        self.lib.llama_synchronize(context)
        started_s = time.perf_counter()
        for position in range(PROMPT_OF_A_BATCH, PROMPT_OF_A_BATCH + n):
            self.decode_rows(context, [(seq_id, position) for seq_id in range(n_sequences)])
        self.lib.llama_synchronize(context)
        return time.perf_counter() - started_s

    def rewound(self, depth: int, n_sequences: int = 1) -> Any:
        """Return the context of this depth, with its first `depth` tokens computed and nothing after them."""
        key = (depth, n_sequences)
        if key not in self.contexts:
            self.contexts[key] = self.build_context(depth, n_sequences)
            for start in range(0, depth, 512):
                self.timed(self.contexts[key], [token_ids(min(512, depth - start))])
        memory = self.lib.llama_get_memory(self.contexts[key])
        for seq_id in range(n_sequences):
            self.lib.llama_memory_seq_rm(memory, seq_id, depth, -1)
        return self.contexts[key]

    def build_context(self, depth: int, n_sequences: int) -> Any:
        lib, options = self.lib, self.options
        params = lib.llama_context_default_params()
        n_each = depth + options.n_ctx if n_sequences == 1 else PROMPT_OF_A_BATCH + options.n_ctx
        params.n_ctx = n_sequences * (-(-n_each // CELLS) * CELLS)
        params.n_batch = params.n_ubatch = max(options.n_ctx, 512)
        params.n_seq_max = n_sequences
        params.n_threads = params.n_threads_batch = options.n_threads
        params.type_k = params.type_v = getattr(lib, f"GGML_TYPE_{options.kv.upper()}")
        if "no-flash" in options.setting:
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        # The field is newer than some versions; before it every output was allowed.
        if hasattr(params, "n_outputs_max_per_seq"):
            params.n_outputs_max_per_seq = 1
        context = lib.llama_init_from_model(self.model, params)
        if not context:
            raise RuntimeError(f"llama.cpp cannot build a context of {params.n_ctx} tokens")
        return context

    def timed(self, context: Any, steps: list[np.ndarray]) -> float:
        """Decode arrays of ids one after the other at the end of sequence 0; return the seconds."""
        started_s = time.perf_counter()
        for ids in steps:
            pointer = ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            self.check(self.lib.llama_decode(context, self.lib.llama_batch_get_one(pointer, len(ids))))
        self.lib.llama_synchronize(context)
        return time.perf_counter() - started_s

    def decode_rows(self, context: Any, rows: list[tuple[int, int]]) -> None:
        """Decode one token for each (sequence, position); the last row of each sequence gives logits."""
        batch = self.lib.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        ids = token_ids(len(rows)).tolist()
        for row, (seq_id, position) in enumerate(rows):
            batch.token[row], batch.pos[row] = ids[row], position
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, seq_id
            batch.logits[row] = row + 1 == len(rows) or rows[row + 1][0] != seq_id
        self.check(self.lib.llama_decode(context, batch))
        self.lib.llama_batch_free(batch)

    def check(self, status: int) -> None:
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
