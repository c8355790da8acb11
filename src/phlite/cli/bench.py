"""`phlite bench MODEL`: tokens per second of prompts (pp) and of answers (tg), at several depths of context.

pp128         128 prompt tokens into an empty cache, the first token of the answer included
tg64          64 tokens, one by one (without prompt lookup), after a prompt of one token
tg64@d2048    the same after a prompt of 2048 tokens, whose time does not count
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from phlite import __version__
from phlite.cli.machine import cpu_model, peak_rss_bytes
from phlite.cli.parser import Parser, integer, integers, scaled_path
from phlite.engine.params import SamplingParams
from phlite.errors import RequestError
from phlite.hub import fetch, format_bytes

if TYPE_CHECKING:
    from phlite.engine import Engine, Sequence

EPILOG = """\
pp128 is a prompt of 128 tokens, tg64 an answer of 64, @d2048 after 2048 tokens of context.
Each test runs once to warm up, then -r times; the table shows mean and standard deviation."""

SEED = 0x9E3779B9


@dataclass(frozen=True)
class Test:
    """One thing to measure. kind: "pp" (n prompt tokens) or "tg" (n answer tokens), with `depth` tokens before."""

    kind: str
    n: int
    depth: int

    @property
    def name(self) -> str:
        """As in the table: "pp128", "tg64@d2048"."""
        return f"{self.kind}{self.n}" + (f"@d{self.depth}" if self.depth else "")

    @property
    def n_ctx(self) -> int:
        """Tokens of context that the test needs."""
        return max(self.depth, 1) + self.n + 1


def add_arguments(parser: Parser) -> None:
    """The arguments of `phlite bench`."""
    add = parser.add_argument
    add("name", help="which model: a name, owner/repo or a path")
    add("-p", "--prompt", type=integers(1), default=[128], metavar="N,...", help="prompt lengths in tokens (128)")
    add("-n", "--answer", type=integers(1), default=[64], metavar="N,...", help="answer lengths in tokens (64)")
    add("-d", "--depth", type=integers(0), default=[0], metavar="N,...", help="tokens of context before (0)")
    add("-t", "--threads", type=integers(1), default=[], metavar="N,...", help="threads (one per physical core)")
    add("-r", "--repeat", type=integer(1), default=5, metavar="N", help="measurements of each test (5)")
    add("--kv-type", choices=["f16", "q8_0", "f32"], default="f16", help="precision of the attention cache (f16)")
    add("--lora", action="append", default=[], type=scaled_path, metavar="PATH[=SCALE]", help="a LoRA adapter")
    add("--json", action="store_true", help="one JSON object per test and line, instead of the table")


def run(options: argparse.Namespace) -> int:
    """Measure and print as results come."""
    lengths = [("pp", options.prompt), ("tg", options.answer)]
    tests = [Test(kind, n, depth) for depth in options.depth for kind, values in lengths for n in values]
    if not tests:
        raise RequestError("there is nothing to measure: give -p, -n and -d at least one number each.")
    model_bytes = sum(path.stat().st_size for path in fetch(options.name, progress=True).paths)
    if not options.json:
        print(f"phlite {__version__}, {options.name} ({format_bytes(model_bytes)}), {cpu_model()}")
        print(f"{'threads':>7}  {'test':<14}{'tokens/s':>12}{'deviation':>12}")
    for threads in options.threads or [None]:
        _measure_all(options, threads, tests, model_bytes)
    if not options.json:
        print(f"peak memory {format_bytes(peak_rss_bytes())}")
    return 0


def _measure_all(options: argparse.Namespace, threads: int | None, tests: list[Test], model_bytes: int) -> None:
    from phlite.llm import LLM
    from phlite.ops import isa_name, physical_core_count

    n_ctx = max(test.n_ctx for test in tests)
    llm = LLM.load(options.name, n_ctx=n_ctx, threads=threads, kv_type=options.kv_type, lora=dict(options.lora))
    n_threads = threads or physical_core_count()
    for test in tests:
        samples = [_tokens_per_s(llm.engine, test) for _ in range(options.repeat + 1)][1:]
        if not options.json:
            deviation = statistics.stdev(samples) if len(samples) > 1 else 0.0
            print(f"{n_threads:>7}  {test.name:<14}{statistics.mean(samples):>12.2f}{deviation:>12.2f}")
        else:
            result = {
                "test": test.name,
                "samples_tokens_per_s": [round(sample, 4) for sample in samples],
                "n_threads": n_threads,
                "isa": isa_name(),
                "kv_type": options.kv_type,
                "load_s": round(llm.load_ms / 1e3, 4),
                "peak_rss_bytes": peak_rss_bytes(),
                "model": options.name,
                "lora": dict(options.lora),
                "model_bytes": model_bytes,
                "cpu": cpu_model(),
                "phlite_version": __version__,
                "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            }
            print(json.dumps(result))
        sys.stdout.flush()


def _tokens_per_s(engine: Engine, test: Test) -> float:
    """Measure once. The prompt is of random ids: speed does not depend on which they are."""
    n_prompt = test.depth + test.n if test.kind == "pp" else max(test.depth, 1)
    ids = np.random.default_rng(SEED).integers(0, engine.model.config.vocab_size, n_prompt)
    n_answer = 1 if test.kind == "pp" else test.n + 1
    sequence = engine.add(ids, SamplingParams.greedy(max_tokens=n_answer, ignore_eos=True, prompt_lookup_num_tokens=0))
    try:
        _encode_prompt(engine, sequence, test.depth if test.kind == "pp" else n_prompt)
        started_s = time.perf_counter()
        while sequence.finish_reason is None:
            engine.step()
        return test.n / (time.perf_counter() - started_s)
    finally:
        engine.abort(sequence)


def _encode_prompt(engine: Engine, sequence: Sequence, n_tokens: int) -> None:
    """Step until exactly the first n_tokens are in the cache, with a chunk cut short where needed."""
    scheduler = engine.scheduler
    usual = scheduler.max_batch_tokens
    try:
        while sequence.state.n_cached < n_tokens:
            scheduler.max_batch_tokens = min(usual, n_tokens - sequence.state.n_cached)
            engine.step()
    finally:
        scheduler.max_batch_tokens = usual
