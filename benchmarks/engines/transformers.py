"""transformers with PyTorch, as the reference that most people know; it is not built for speed on processors."""

# ruff: noqa: D102  (engines.base.Engine documents the methods)
from __future__ import annotations

import time
from typing import Any

import numpy as np

from engines.base import PROMPT_OF_A_BATCH, Options, missing_folder, missing_package, token_ids

SETTINGS = {"defaults": "bfloat16", "float32": "float32"}


def why_missing(options: Options) -> str:
    return (
        missing_package("torch")
        or missing_package("transformers")
        or missing_folder(options.folder, "--transformers-model")
    )


def load(options: Options) -> TransformersEngine:
    return TransformersEngine(options)


class TransformersEngine:
    """A PreTrainedModel and one DynamicCache per depth. The cache has the dtype of the model, whatever --kv says."""

    def __init__(self, options: Options) -> None:
        import torch
        import transformers

        torch.set_num_threads(options.n_threads)
        torch.set_grad_enabled(False)
        dtype = torch.float32 if options.setting == "float32" else torch.bfloat16
        self.torch, self.cache_class = torch, transformers.DynamicCache
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(options.folder, dtype=dtype)
        self.caches: dict[int, Any] = {}
        self.facts: dict[str, str | int | float] = {"version": transformers.__version__, "torch": torch.__version__}

    def prefill(self, n: int, depth: int) -> float:
        cache = self.rewound(depth)
        started_s = time.perf_counter()
        self.forward(token_ids(n)[None], cache)
        return time.perf_counter() - started_s

    def decode(self, n: int, depth: int) -> float:
        cache = self.rewound(depth)
        if not depth:
            self.forward(token_ids(1)[None], cache)
        started_s = time.perf_counter()
        for _ in range(n):
            self.forward(token_ids(1)[None], cache)
        return time.perf_counter() - started_s

    def batch(self, n_sequences: int, n: int) -> float:
        cache = self.cache_class()
        self.forward(np.tile(token_ids(PROMPT_OF_A_BATCH), (n_sequences, 1)), cache)
        started_s = time.perf_counter()
        for _ in range(n):
            self.forward(token_ids(n_sequences)[:, None], cache)
        return time.perf_counter() - started_s

    def rewound(self, depth: int) -> Any:
        """Return the cache of this depth, cut back to it."""
        if not depth:
            return self.cache_class()
        if depth not in self.caches:
            self.caches[depth] = self.cache_class()
            self.forward(token_ids(depth)[None], self.caches[depth])
        cache = self.caches[depth]
        # Negative: how many to remove. Some versions refuse the other meaning.
        if cache.get_seq_length() > depth:
            cache.crop(depth - cache.get_seq_length())
        return cache

    def forward(self, ids: np.ndarray, cache: Any) -> None:
        """Process int32[B, T] ids after what the cache holds; logits of the last position only."""
        self.model(input_ids=self.torch.from_numpy(ids.astype(np.int64)), past_key_values=cache, logits_to_keep=1)
