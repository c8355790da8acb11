"""ONNX Runtime GenAI on a model folder of its own (model builder: `-p int4 -e cpu`)."""

# ruff: noqa: D102  (engines.base.Engine documents the methods)
from __future__ import annotations

import json
import time
from typing import Any

import numpy as np

from engines.base import PROMPT_OF_A_BATCH, Options, missing_folder, missing_package, token_ids

SETTINGS = {"defaults": "the folder's session options and the threads asked for"}


def why_missing(options: Options) -> str:
    return missing_package("onnxruntime_genai") or missing_folder(options.folder, "--onnx-model")


def load(options: Options) -> OnnxRuntimeGenAI:
    return OnnxRuntimeGenAI(options)


class OnnxRuntimeGenAI:
    """A Model and one Generator per depth, rewound between measurements. The folder decides the type of the cache."""

    def __init__(self, options: Options) -> None:
        import onnxruntime_genai

        self.library, self.options = onnxruntime_genai, options
        config = onnxruntime_genai.Config(options.folder)
        session = {"intra_op_num_threads": options.n_threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = onnxruntime_genai.Model(config)
        self.generators: dict[int, Any] = {}
        self.facts: dict[str, str | int | float] = {"version": onnxruntime_genai.__version__}

    def prefill(self, n: int, depth: int) -> float:
        generator = self.rewound(depth)
        started_s = time.perf_counter()
        generator.append_tokens(token_ids(n)[None])
        return time.perf_counter() - started_s

    def decode(self, n: int, depth: int) -> float:
        generator = self.rewound(depth)
        generator.append_tokens(token_ids(1)[None])
        return self.timed_steps(generator, n)

    def batch(self, n_sequences: int, n: int) -> float:
        generator = self.build_generator(PROMPT_OF_A_BATCH + n + 2, n_sequences)
        generator.append_tokens(np.tile(token_ids(PROMPT_OF_A_BATCH), (n_sequences, 1)))
        return self.timed_steps(generator, n)

    def timed_steps(self, generator: Any, n: int) -> float:
        """Return the seconds of n forward passes with greedy sampling: the first call samples only."""
        generator.generate_next_token()
        started_s = time.perf_counter()
        for _ in range(n):
            generator.generate_next_token()
        return time.perf_counter() - started_s

    def rewound(self, depth: int) -> Any:
        if depth not in self.generators:
            self.generators[depth] = self.build_generator(depth + self.options.n_ctx + 2, 1)
            if depth:
                self.generators[depth].append_tokens(token_ids(depth)[None])
        self.generators[depth].rewind_to(depth)
        return self.generators[depth]

    def build_generator(self, length: int, n_sequences: int) -> Any:
        params = self.library.GeneratorParams(self.model)
        # A minimum equal to the maximum keeps the end token from ending the measurement.
        params.set_search_options(max_length=length, min_length=length, batch_size=n_sequences, do_sample=False)
        return self.library.Generator(self.model, params)
