"""How long work on a file is shown: a bar on a terminal, a line per tenth elsewhere, always on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TextIO

__all__ = ["NoProgress", "Progress", "TerminalProgress", "counted", "format_bytes"]


class Progress(Protocol):
    """What `fetch` tells while it works. One task runs at a time; `advance` may be negative (a restart)."""

    def note(self, message: str) -> None:
        """Say something that the user should know and that is no error."""

    def start(self, title: str, total_bytes: int | None, done_bytes: int = 0) -> None:
        """Begin a task, e.g. the download of one file of which `done_bytes` are there already."""

    def advance(self, n_bytes: int) -> None:
        """Count bytes done."""

    def finish(self) -> None:
        """End the task, done or not; harmless when none runs."""


@contextmanager
def counted(progress: Progress, title: str, path: Path) -> Iterator[Callable[[int], None]]:
    """Give a counter of bytes for reading `path` whole; the task begins with the first count, if any comes."""
    begun = False

    def advance(n_bytes: int) -> None:
        nonlocal begun
        if not begun:
            progress.start(title, path.stat().st_size)
            begun = True
        progress.advance(n_bytes)

    try:
        yield advance
    finally:
        if begun:
            progress.finish()


class NoProgress:
    """Says nothing."""

    def note(self, message: str) -> None:
        """Say nothing."""

    def start(self, title: str, total_bytes: int | None, done_bytes: int = 0) -> None:
        """Say nothing."""

    def advance(self, n_bytes: int) -> None:
        """Say nothing."""

    def finish(self) -> None:
        """Say nothing."""


class TerminalProgress:
    """Says it on stderr, with a bar when that is a terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._shown: _Bar | _Lines | None = None

    def note(self, message: str) -> None:
        """Print one line."""
        print(message, file=self._stream, flush=True)

    def start(self, title: str, total_bytes: int | None, done_bytes: int = 0) -> None:
        """Begin a bar, or print the first line."""
        self.finish()
        kind = _Bar if self._stream.isatty() else _Lines
        self._shown = kind(self._stream, title, total_bytes, done_bytes)

    def advance(self, n_bytes: int) -> None:
        """Move the bar."""
        if self._shown:
            self._shown.advance(n_bytes)

    def finish(self) -> None:
        """Leave the bar as it stands."""
        if self._shown:
            self._shown.finish()
        self._shown = None


class _Bar:
    def __init__(self, stream: TextIO, title: str, total_bytes: int | None, done_bytes: int) -> None:
        # Imported here: rich costs more start-up time than a cached model needs to begin its answer.
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.progress import TransferSpeedColumn as Speed

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            DownloadColumn(),
            Speed(),
            TimeRemainingColumn(compact=True),
            console=Console(file=stream),
            refresh_per_second=8,
        )
        self._task = self._bar.add_task(title, total=total_bytes, completed=done_bytes)
        self._bar.start()

    def advance(self, n_bytes: int) -> None:
        self._bar.advance(self._task, n_bytes)

    def finish(self) -> None:
        self._bar.stop()


class _Lines:
    def __init__(self, stream: TextIO, title: str, total_bytes: int | None, done_bytes: int) -> None:
        self._stream, self._title, self._total, self._done = stream, title, total_bytes, done_bytes
        self._tenths = self._tenths_done()
        size = f" ({format_bytes(total_bytes)})" if total_bytes else ""
        resumed = f", {format_bytes(done_bytes)} are there already" if done_bytes else ""
        print(f"{title}{size}{resumed}", file=stream, flush=True)

    def advance(self, n_bytes: int) -> None:
        self._done += n_bytes
        if self._tenths_done() > self._tenths:
            self._tenths = self._tenths_done()
            print(f"{self._title}: {self._tenths * 10} %", file=self._stream, flush=True)

    def finish(self) -> None:
        self._stream.flush()

    def _tenths_done(self) -> int:
        return self._done * 10 // self._total if self._total else 0


def format_bytes(n_bytes: int) -> str:
    """A size for people, in powers of ten as file managers and the hub show it: "2.39 GB"."""
    size = float(n_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
