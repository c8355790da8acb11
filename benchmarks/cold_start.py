"""From a new process to the first token of a 32-token prompt, and the most memory held on the way.

    python benchmarks/cold_start.py -m Phi-3-mini-4k-instruct-q4.gguf -t 2 -r 5

A packed copy of the model (`phlite pack`) is made in a temporary folder; phlite starts with it and without. The files
are read once before, so the page cache is warm. Each program runs in a process of its own, in rounds of changing order,
because the memory that a program finds depends on what the last one left. The clock runs from before the process is
started until its first byte is here: the Python programs print one at the first token, `phlite run` writes the token's
text.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from engines.base import token_ids
from peers import describe_run, shuffled, warm_page_cache, write

N_PROMPT = 32
PACKED = ", packed copy"

PHLITE = """\
import phlite
llm = phlite.load({model!r}, threads={threads}, n_ctx=512)
for _ in llm.stream({ids}, max_tokens=1, temperature=0.0):
    break
print("x", flush=True)
"""

LLAMA = """\
from llama_cpp import Llama
llm = Llama({model!r}, n_threads={threads}, n_threads_batch={threads}, n_ctx=512, verbose=False)
for _ in llm.generate({ids}, temp=0.0):
    break
print("x", flush=True)
"""

NO_REPACK = """\
import llama_cpp
defaults = llama_cpp.llama_model_default_params
def without_extra_buffers():
    params = defaults()
    params.use_extra_bufts = False
    return params
llama_cpp.llama_cpp.llama_model_default_params = without_extra_buffers
"""


@dataclass(frozen=True)
class Start:
    """One start of one program: seconds to the first byte, and the most memory it held."""

    first_token_s: float
    peak_rss_bytes: int


def main() -> None:
    options = parse_options()
    programs = build_programs(options.model, options.threads)
    starts: dict[str, list[Start]] = {name: [] for name in programs}
    with tempfile.TemporaryDirectory() as cache, open(options.out, "w", encoding="utf-8") as out:
        os.environ["XDG_CACHE_HOME"] = cache
        from phlite import ops
        from phlite.packing import write_packed_copy

        warm_page_cache(str(write_packed_copy(Path(options.model), pool=ops.ThreadPool(options.threads))))
        warm_page_cache(options.model)
        write(out, record="run", **describe_run(options))
        for round_idx in range(options.rounds):
            for name in shuffled(programs, str(round_idx)):
                start = measure(programs[name], cache if PACKED in name else os.path.join(cache, "none"))
                starts[name].append(start)
                fields = {"first_token_s": start.first_token_s, "peak_rss_bytes": start.peak_rss_bytes}
                write(out, record="start", round=round_idx, program=name, **fields)
    print_table(starts, options.model)


def build_programs(model: str, threads: int) -> dict[str, list[str]]:
    """Return name -> command line of the programs that can run here."""
    fields = {"model": model, "threads": threads, "ids": token_ids(N_PROMPT).tolist()}
    run = [
        "run",
        model,
        prompt_text(model),
        "--raw",
        "-n",
        "1",
        "-t",
        str(threads),
        "--ctx",
        "512",
        "--temperature",
        "0",
    ]
    programs = {
        "python -c, phlite": [sys.executable, "-c", PHLITE.format(**fields)],
        "phlite run": [sys.executable, "-m", "phlite", *run],
    }
    programs |= {name + PACKED: command for name, command in programs.items()}
    if importlib.util.find_spec("llama_cpp"):
        programs["python -c, llama-cpp-python"] = [sys.executable, "-c", LLAMA.format(**fields)]
        programs["python -c, llama-cpp-python, no repacking"] = [
            sys.executable,
            "-c",
            NO_REPACK + LLAMA.format(**fields),
        ]
    return programs


def prompt_text(model: str) -> str:
    """Return a text of N_PROMPT tokens of this model."""
    from phlite.gguf import load_gguf
    from phlite.tokenizer import build_tokenizer

    with load_gguf(model) as file:
        tokenizer = build_tokenizer(file.metadata, source=model)
    text = "ice"
    while len(tokenizer.encode(text)) < N_PROMPT:
        text += " ice"
    return text


def measure(command: list[str], cache: str) -> Start:
    """Run one program to its end, packed copies being looked for in `cache`."""
    environment = {**os.environ, "XDG_CACHE_HOME": cache}
    started_s = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    assert process.stdout is not None
    process.stdout.read(1)
    first_token_s = time.perf_counter() - started_s
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[:3]} ended with code {process.returncode}")
    return Start(first_token_s, peak_bytes(usage))


def peak_bytes(usage: resource.struct_rusage) -> int:
    return usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024


def print_table(starts: dict[str, list[Start]], model: str) -> None:
    model_bytes = os.path.getsize(model)
    width = max(len(name) for name in starts)
    head = f"{'program':<{width}}{'first token':>13}{'min..max':>14}{'peak memory':>13}{'of file':>9}"
    print(head, "-" * len(head), sep="\n")
    for name, own in starts.items():
        times = [start.first_token_s for start in own]
        peak = max(start.peak_rss_bytes for start in own)
        range_ = f"{min(times):.2f}..{max(times):.2f}"
        median = statistics.median(times)
        print(f"{name:<{width}}{median:>11.2f} s{range_:>14}{peak / 1e9:>10.2f} GB{peak / model_bytes:>9.2f}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure cold starts to the first token.")
    add = parser.add_argument
    add("-m", "--model", required=True, metavar="FILE", help="a GGUF file")
    add("-t", "--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="threads (all processors)")
    add("-r", "--rounds", type=int, default=5, metavar="N", help="rounds (5)")
    add("--out", default="cold_start.jsonl", metavar="FILE", help="results, one JSON object per line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
