"""One engine in a process of its own: `worker.py OPTIONS_JSON`, then one JSON command per line of standard input.

    {"test": "prefill", "n": 128, "depth": 0}   ->   {"seconds": 1.52, "peak_rss_bytes": 2600000000}

The first answer, after loading, is {"load_s": ..., "facts": {...}}. A test that the engine does not offer answers
{"not_offered": reason}. The worker sleeps in read() between commands, so it takes no time from the others.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import TextIO

from engines import Options, find_module
from engines.base import Engine, NotOfferedError


def main() -> None:
    started_s = time.perf_counter()
    answers = take_stdout()
    config = json.loads(sys.argv[1])
    engine = find_module(config["engine"]).load(Options(**config["options"]))
    answer(answers, load_s=time.perf_counter() - started_s, facts=engine.facts)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer(answers, seconds=measure(engine, command))
        except NotOfferedError as error:
            answer(answers, not_offered=str(error))


def measure(engine: Engine, command: dict[str, int | str]) -> float:
    n, depth, n_sequences = (int(command[key]) for key in ("n", "depth", "n_sequences"))
    if command["test"] == "prefill":
        return engine.prefill(n, depth)
    if command["test"] == "decode":
        return engine.decode(n, depth)
    return engine.batch(n_sequences, n)


def answer(file: TextIO, **fields: object) -> None:
    print(json.dumps({**fields, "peak_rss_bytes": peak_rss_bytes()}), file=file, flush=True)


def peak_rss_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def take_stdout() -> TextIO:
    """Return a file on standard output and send what the engines' libraries print there to standard error."""
    file = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return file


if __name__ == "__main__":
    main()
