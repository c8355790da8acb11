"""OpenVINO GenAI on a model folder of its own (`optimum-cli export openvino --weight-format int4`).

The pipeline keeps no context between calls, so the prompt is computed again for every measurement; the times are the
library's own: to the first token, and of every further one.
"""

# ruff: noqa: D102  (engines.base.Engine documents the methods)
from __future__ import annotations

import time
from typing import Any

import numpy as np

from engines.base import PROMPT_OF_A_BATCH, NotOfferedError, Options, missing_folder, missing_package

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
        self.facts: dict[str, str | int | float] = {"version": openvino_genai.__version__}

    def prefill(self, n: int, depth: int) -> float:
        if depth:
            raise NotOfferedError("the pipeline cannot stop inside a prompt")
        metrics = self.generate(1, n, 1)
        return float(metrics.get_ttft().mean) / 1e3

    def decode(self, n: int, depth: int) -> float:
        metrics = self.generate(1, max(depth, 1), n + 1)
        return float(metrics.get_tpot().mean) / 1e3 * n

    def batch(self, n_sequences: int, n: int) -> float:
        metrics = self.generate(n_sequences, PROMPT_OF_A_BATCH, n + 1)
        return float(metrics.get_tpot().mean) / 1e3 * n

    def generate(self, n_sequences: int, n_prompt: int, n_answer: int) -> Any:
        """Run a prompt of new ids each time, in case the pipeline remembers prompts; return its PerfMetrics."""
        ids = self.rng.integers(100, 1000, (n_sequences, n_prompt), dtype=np.int64)
        inputs = self.tokenized(self.tensor(ids), self.tensor(np.ones_like(ids)))
        result = self.pipeline.generate(inputs, max_new_tokens=n_answer, ignore_eos=True, do_sample=False)
        return result.perf_metrics
