"""A program on a pseudo terminal: type, wait for text, press Ctrl-C. Waits end when the text comes."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time

TIMEOUT_S = 30.0


class Terminal:
    """The program runs in a session of its own, so that Ctrl-C is the terminal's doing, as for a user."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        import pty

        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, preexec_fn=_take_terminal
        )
        os.close(theirs)
        self.shown = ""
        self._seen = 0

    def type(self, text: str) -> None:
        """Send keys; "\\n" is Enter, "\\x03" Ctrl-C, "\\x04" Ctrl-D."""
        os.write(self._ours, text.encode())

    def expect(self, text: str) -> str:
        """Wait until `text` appears behind what was expected before; returns what came up to it."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while text not in self.shown[self._seen :]:
            ready, _, _ = select.select([self._ours], [], [], max(0.0, deadline_s - time.monotonic()))
            data = self._read() if ready else b""
            if not data:
                raise AssertionError(f"{text!r} did not come; the terminal shows:\n{self.shown}")
            self.shown += data.decode(errors="replace")
        start, self._seen = self._seen, self.shown.index(text, self._seen) + len(text)
        return self.shown[start : self._seen]

    def wait(self) -> int:
        """Read until the program ends; returns its exit code."""
        while data := self._read():
            self.shown += data.decode(errors="replace")
        return self.process.wait(TIMEOUT_S)

    def close(self) -> None:
        """End the program if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def _read(self) -> bytes:
        try:
            return os.read(self._ours, 4096)
        except OSError:  # Linux says so when the program has closed its side
            return b""


def _take_terminal() -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
