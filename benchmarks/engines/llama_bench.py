"""The llama-bench binary on PATH. It loads the model for every measurement, so its rounds take longest."""

# ruff: noqa: D102  (engines.base.Engine documents the methods)
from __future__ import annotations

import json
import shutil
import subprocess

from engines.base import NotOfferedError, Options

SETTINGS = {"defaults": "as built", "flash": "flash attention on"}


def why_missing(options: Options) -> str:
    return "" if shutil.which("llama-bench") else "there is no llama-bench on PATH"


def load(options: Options) -> LlamaBench:
    return LlamaBench(options)


class LlamaBench:
    """Starts the binary with one repetition; it warms up by itself."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.facts: dict[str, str | int | float] = {"version": shutil.which("llama-bench") or ""}

    def prefill(self, n: int, depth: int) -> float:
        return self.run(n_prompt=n, n_answer=0, depth=depth)

    def decode(self, n: int, depth: int) -> float:
        return self.run(n_prompt=0, n_answer=n, depth=depth)

    def batch(self, n_sequences: int, n: int) -> float:
        raise NotOfferedError("llama-bench decodes one sequence")

    def run(self, *, n_prompt: int, n_answer: int, depth: int) -> float:
        """Return the seconds of the one sample that it prints."""
        options = self.options
        command = ["llama-bench", "-m", options.model, "-t", str(options.n_threads), "-r", "1", "-o", "jsonl"]
        command += ["-p", str(n_prompt), "-n", str(n_answer), "-d", str(depth)]
        command += ["-ctk", options.kv, "-ctv", options.kv, "-ngl", "0"]
        command += ["-fa", "1"] if options.setting == "flash" else []
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        result = json.loads(output.splitlines()[-1])
        self.facts["version"] = str(result["build_commit"])
        return float(result["samples_ns"][0]) / 1e9
