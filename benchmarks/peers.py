"""phlite and its peers on one machine, in interleaved rounds, next to the machine's limits measured in the same rounds.

    python benchmarks/peers.py -m Phi-3-mini-4k-instruct-q4.gguf -p 32,128,512 -n 64 -d 0,2048 -t 2 -r 5 --batch 8

Runs the engines that it finds and installs nothing. Each engine loads once in a process of its own; a round runs every
test once on every engine, in another order each time, so that a slow phase of the machine meets all of them. Before and
after each measurement the read bandwidth and the 8-bit multiply-adds per second are measured. docs/benchmarks.md tells
what is compared and what is not.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import random
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TypeVar

from client import Worker, WorkerError
from engines import ENGINES, Options, all_settings, find_module, split_name
from engines.base import NotOfferedError
from limits import KV_BYTES, Machine, Test, Work
from report import format_table, read_records, write_plot

T = TypeVar("T")

DEFAULT_ENGINES = ["phlite", "llama-cpp-python", "llama-cpp-python/no-repack", *list(ENGINES)[2:]]
FOLDERS = {"onnxruntime-genai": "onnx_model", "openvino-genai": "openvino_model", "transformers": "transformers_model"}


def main() -> None:
    options = parse_options()
    tests = list(chosen_tests(options))
    work, machine = Work.of(options.model, options.kv), Machine(options.threads)
    warm_page_cache(options.model)
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(open(options.out, "w", encoding="utf-8"))
        log = stack.enter_context(open(options.log, "a", encoding="utf-8"))
        write(out, record="run", **describe_run(options), kv=options.kv)
        workers = []
        for label in options.engines:
            name, setting = split_name(label)
            full_label = f"{name}/{setting}"
            folder = getattr(options, FOLDERS.get(name, ""), None) or ""
            n_ctx = max(test.n for test in tests) + 2
            load = Options(options.model, folder, setting, options.threads, options.kv, n_ctx)
            reason = find_module(name).why_missing(load)
            if not reason:
                try:
                    workers.append(stack.enter_context(Worker(full_label, name, load, log)))
                    continue
                except WorkerError as error:
                    reason = f"{error} while loading, see {options.log}"
            print(f"{full_label}: skipped, {reason}", file=sys.stderr)
            write(out, record="skipped", engine=full_label, reason=reason)
        measure_rounds(workers, tests, work, machine, options, out)
        for worker in workers:
            write(out, record="engine", engine=worker.label, facts=worker.facts, peak_rss_bytes=worker.peak_rss_bytes)
    records = read_records([options.out])
    print(format_table(records))
    if options.plot:
        print(write_plot(records, options.plot))


def measure_rounds(
    workers: list[Worker], tests: list[Test], work: Work, machine: Machine, options: argparse.Namespace, out: IO[str]
) -> None:
    """Warm up, then measure; an engine that fails or does not offer a test is left out from there on."""
    dropped: set[tuple[str, str]] = set()
    for round_idx in range(-options.warm_up, options.rounds):
        for test in tests:
            for worker in shuffled(workers, f"{round_idx} {test.name}"):
                if (worker.label, test.name) in dropped:
                    continue
                before = machine.measure()
                try:
                    seconds = worker.measure(test)
                except (NotOfferedError, WorkerError) as error:
                    dropped.add((worker.label, test.name))
                    write(out, record="skipped", engine=f"{worker.label} {test.name}", reason=str(error))
                    continue
                if round_idx < 0:
                    continue
                limits = before.mean(machine.measure())
                speed = test.n_tokens / seconds
                write(
                    out,
                    record="sample",
                    round=round_idx,
                    test=test.name,
                    engine=worker.label,
                    tokens_per_s=speed,
                    limit_tokens_per_s=work.tokens_per_s(test, limits),
                    bytes_per_s=limits.bytes_per_s,
                    macs_per_s=limits.macs_per_s,
                )
                print(f"round {round_idx}  {test.name:<14}{worker.label:<36}{speed:9.2f}", file=sys.stderr)


def shuffled(values: Iterable[T], seed: str) -> list[T]:
    """Return the values in an order that the seed decides, so that none always follows the same neighbour."""
    result = list(values)
    random.Random(seed).shuffle(result)
    return result


def chosen_tests(options: argparse.Namespace) -> Iterator[Test]:
    for depth in options.depth:
        for n in options.prompt:
            yield Test("prefill", n, depth)
        for n in options.answer:
            yield Test("decode", n, depth)
    for n_sequences in options.batch:
        for n in options.answer:
            yield Test("batch", n, 0, n_sequences)


def warm_page_cache(path: str) -> None:
    """Read the file once: reading from the disk is not what is measured."""
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 24):
            pass


def describe_run(options: argparse.Namespace) -> dict[str, object]:
    """When, where, and with which command and sources."""
    from phlite.cli.machine import cpu_model

    folder = Path(__file__).parent
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit.stdout.strip(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "model": Path(options.model).name,
        "model_bytes": os.path.getsize(options.model),
        "n_threads": options.threads,
    }


def write(file: IO[str], **fields: object) -> None:
    """Append one JSON object as a line."""
    print(json.dumps(fields), file=file, flush=True)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure phlite and its peers in interleaved rounds.")
    add = parser.add_argument
    add("-m", "--model", required=True, metavar="FILE", help="a GGUF file of a dense Phi model")
    add("-p", "--prompt", type=numbers, default=[32, 128, 512], metavar="N,...", help="prompt lengths (32,128,512)")
    add("-n", "--answer", type=numbers, default=[64], metavar="N,...", help="answer lengths (64)")
    add("-d", "--depth", type=numbers, default=[0], metavar="N,...", help="tokens of context before (0)")
    add("-b", "--batch", type=numbers, default=[], metavar="N,...", help="sequences that decode together (none)")
    add("-t", "--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="threads (all processors)")
    add("-r", "--rounds", type=int, default=5, metavar="N", help="measured rounds (5)")
    add("--warm-up", type=int, default=1, metavar="N", help="rounds before that do not count (1)")
    add("--kv", choices=list(KV_BYTES), default="f16", help="numbers in the attention cache (f16)")
    add("--engines", type=lambda text: text.split(","), default=DEFAULT_ENGINES, metavar="NAME[/SETTING],...")
    add("--list", action="store_true", help="print the engines and their settings and end")
    add("--onnx-model", metavar="DIR", help="the model as ONNX Runtime GenAI reads it")
    add("--openvino-model", metavar="DIR", help="the model as OpenVINO GenAI reads it")
    add("--transformers-model", metavar="DIR", help="the model as transformers reads it")
    add("--out", default="peers.jsonl", metavar="FILE", help="results, one JSON object per line (peers.jsonl)")
    add("--log", default="peers.log", metavar="FILE", help="what the engines print (peers.log)")
    add("--plot", metavar="FILE", help="draw the ratios to the limit (needs matplotlib)")
    if "--list" in sys.argv:
        print(*all_settings(), sep="\n")
        raise SystemExit(0)
    options = parser.parse_args()
    unknown = [label for label in options.engines if "/".join(split_name(label)) not in all_settings()]
    if unknown:
        parser.error(f"unknown engines {', '.join(unknown)}; there are {', '.join(all_settings())}")
    return options


if __name__ == "__main__":
    main()
