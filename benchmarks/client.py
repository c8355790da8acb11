"""The parent's side of a worker process."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import IO, cast

from engines import Options
from engines.base import NotOfferedError
from limits import Test

WORKER = Path(__file__).with_name("worker.py")


class WorkerError(Exception):
    """The worker ended; what it said last is in its log."""


class Worker:
    """One engine in its own process. Use as a context manager; the process ends with it.

    label: "engine/setting"
    log:   file that takes what the engine prints
    facts: from the engine, with load_s and peak_rss_bytes
    """

    def __init__(self, label: str, engine: str, options: Options, log: IO[str]) -> None:
        self.label = label
        config = json.dumps({"engine": engine, "options": dataclasses.asdict(options)})
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), config],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            bufsize=1,
        )
        try:
            answer = self.read()
        except WorkerError:
            self.close()
            raise
        self.facts = {**cast("dict[str, object]", answer["facts"]), "load_s": answer["load_s"]}
        self.peak_rss_bytes = cast("int", answer["peak_rss_bytes"])

    def measure(self, test: Test) -> float:
        """Run one test; return its seconds.

        raises: NotOfferedError where the engine's interface has no such thing, WorkerError where the process ended
        """
        assert self.process.stdin is not None
        command = {"test": test.kind, "n": test.n, "depth": test.depth, "n_sequences": test.n_sequences}
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(f"{self.label} has ended") from None
        answer = self.read()
        if "not_offered" in answer:
            raise NotOfferedError(str(answer["not_offered"]))
        self.peak_rss_bytes = cast("int", answer["peak_rss_bytes"])
        return cast("float", answer["seconds"])

    def read(self) -> dict[str, object]:
        """Return the next answer; WorkerError where the process ended instead."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise WorkerError(f"{self.label} ended with code {self.process.wait()}")
        return cast("dict[str, object]", json.loads(line))

    def close(self) -> None:
        """Let the process end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        # The pipe of a worker that has ended may still hold a command that nobody reads any more.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
