"""Where a prompt comes from: the command line, standard input, or both."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from phlite.errors import RequestError

__all__ = ["join_prompt"]


def join_prompt(words: Sequence[str]) -> str:
    """Join the words of a prompt with spaces; a word `-` stands for all of standard input, on lines of its own.

    raises: RequestError for an empty prompt, or standard input that is not UTF-8
    """
    if words.count("-") > 1:
        raise RequestError("standard input (-) can be used once in a prompt.")
    if "-" not in words:
        prompt = " ".join(words)
    else:
        at = list(words).index("-")
        parts = (" ".join(words[:at]), _standard_input(), " ".join(words[at + 1 :]))
        prompt = "\n\n".join(part for part in parts if part)
    if not prompt.strip():
        raise RequestError("the prompt is empty; give a text, or pipe one in.")
    return prompt


def _standard_input() -> str:
    data = sys.stdin.buffer.read()
    try:
        # A byte order mark and Windows line ends are the tools' doing, not the writer's.
        return data.decode("utf-8-sig").replace("\r\n", "\n").rstrip("\n")
    except UnicodeDecodeError as error:
        raise RequestError(f"standard input is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}.") from error
