"""OpenVINO GenAI on a model folder of its own (`optimum-cli export openvino --weight-format int4`).

The times are the library's own: to the first token, and of every further one. A prompt's last tokens are new each time,
since the pipeline remembers prompts; that is also how a measurement at depth finds its context already computed.
"""

# ruff: noqa: D102  (engines.base.Engine documents the methods)
from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.base import PROMPT_OF_A_BATCH, Options, missing_folder, missing_package

SETTINGS = {
    "defaults": "the threads asked for",
    "dynamic-128": "DYNAMIC_QUANTIZATION_GROUP_SIZE=128: activations quantised in larger groups",
}
KV_PRECISION = {"f16": "f16", "q8_0": "u8", "f32": "f32"}


def why_missing(options: Options) -> str:
    return missing_package("openvino_genai") or missing_folder(options.folder, "--openvino-model")


def load(options: Options) -> OpenVINOGenAI:
    return OpenVINOGenAI(options)


class OpenVINOGenAI:
    """An LLMPipeline on the processor."""

    def __init__(self, options: Options) -> None:
        import openvino
        import openvino_genai

        self.tensor = openvino.Tensor
        self.tokenized = openvino_genai.TokenizedInputs
        properties: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": options.n_threads,
            "KV_CACHE_PRECISION": KV_PRECISION[options.kv],
        }
        if options.setting == "dynamic-128":
            properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 128
        self.pipeline = openvino_genai.LLMPipeline(options.folder, "CPU", **properties)
        self.rng = np.random.default_rng(time.monotonic_ns())
        self.contexts: dict[int, NDArray[np.int64]] = {}
        self.facts: dict[str, str | int | float] = {"version": openvino_genai.__version__}

    def prefill(self, n: int, depth: int) -> float:
        metrics = self.generate(self.prompts(1, n, depth), 1)
        return float(metrics.get_ttft().mean) / 1e3

    def decode(self, n: int, depth: int) -> float:
        metrics = self.generate(self.prompts(1, 1, depth), n + 1)
        return float(metrics.get_tpot().mean) / 1e3 * n

    def batch(self, n_sequences: int, n: int) -> float:
        metrics = self.generate(self.prompts(n_sequences, PROMPT_OF_A_BATCH, 0), n + 1)
        return float(metrics.get_tpot().mean) / 1e3 * n

    def prompts(self, n_sequences: int, n: int, depth: int) -> NDArray[np.int64]:
        """Return int64[n_sequences, depth + n] ids: n new ones after a context that is computed before."""
        new = self.rng.integers(100, 1000, (n_sequences, n), dtype=np.int64)
        if not depth:
            return new
        if depth not in self.contexts:
            self.contexts[depth] = self.rng.integers(100, 1000, (1, depth), dtype=np.int64)
        # Computes it the first time; afterwards keeps it from being the oldest, which the pipeline forgets first.
        self.generate(self.contexts[depth], 1)
        return np.concatenate([self.contexts[depth], new], axis=1)

    def generate(self, ids: NDArray[np.int64], n_answer: int) -> Any:
        """Run prompts; return the PerfMetrics."""
        inputs = self.tokenized(self.tensor(ids), self.tensor(np.ones_like(ids)))
        result = self.pipeline.generate(inputs, max_new_tokens=n_answer, ignore_eos=True, do_sample=False)
        return result.perf_metrics
