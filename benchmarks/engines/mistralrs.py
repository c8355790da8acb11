"""mistral.rs through its Python package, on the GGUF file. It takes text and tells its own times and token counts.

The prompt is computed again for every measurement. Its text is cut to the number of tokens asked for; where that cannot
be met exactly the times are scaled to it.
"""

# ruff: noqa: D102  (engines.base.Engine documents the methods)
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from engines.base import NotOfferedError, Options, missing_package

SETTINGS = {"defaults": "the threads asked for, no cache of prefixes"}


def why_missing(options: Options) -> str:
    return missing_package("mistralrs")


def load(options: Options) -> MistralRs:
    return MistralRs(options)


class MistralRs:
    """A Runner. The type of its cache is its own choice, whatever --kv says."""

    def __init__(self, options: Options) -> None:
        os.environ["RAYON_NUM_THREADS"] = os.environ["MISTRALRS_NUM_THREADS"] = str(options.n_threads)
        import importlib.metadata

        import mistralrs

        self.library = mistralrs
        model = Path(options.model)
        which = mistralrs.Which.GGUF(quantized_model_id=str(model.parent), quantized_filename=model.name)
        self.runner = mistralrs.Runner(which=which, prefix_cache_n=0, max_seqs=1)
        self.facts: dict[str, str | int | float] = {"version": importlib.metadata.version("mistralrs")}

    def prefill(self, n: int, depth: int) -> float:
        if depth:
            raise NotOfferedError("the runner cannot stop inside a prompt")
        usage = self.complete(n, 1)
        return float(usage.total_prompt_time_sec) * n / int(usage.prompt_tokens)

    def decode(self, n: int, depth: int) -> float:
        """The first token of an answer comes from the prompt, so n steps give n + 1 tokens."""
        usage = self.complete(max(depth, 1), n + 1)
        return float(usage.total_completion_time_sec) * n / (int(usage.completion_tokens) - 1)

    def batch(self, n_sequences: int, n: int) -> float:
        raise NotOfferedError("the runner answers one request at a time")

    def complete(self, n_prompt: int, n_answer: int) -> Any:
        """Answer a prompt of n_prompt tokens; return the usage."""
        request = self.library.CompletionRequest(
            prompt=self.text_of(n_prompt), model="default", max_tokens=n_answer, temperature=0.0, ignore_eos=True
        )
        return self.runner.send_completion_request(request).usage

    def text_of(self, n: int) -> str:
        """Return a text of n tokens, or as few more as words allow."""
        words = ["the"] * n
        while len(words) > 1 and self.n_tokens(words) > n:
            words.pop()
        return " ".join(words)

    def n_tokens(self, words: list[str]) -> int:
        text = " ".join(words)
        return len(self.runner.tokenize_text(text, add_special_tokens=True, enable_thinking=None))
