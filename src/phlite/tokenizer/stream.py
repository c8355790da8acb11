"""Token ids to text while they are generated: whole characters, no lost or doubled space, nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

from phlite.errors import RequestError

__all__ = ["TextStream", "check_stop_strings"]


class TextStream:
    """Decodes one sequence, token by token.

    Joined, what push() and flush() return is what Tokenizer.decode() returns for the same ids, up to the first stop
    string. Text is held back only while a character is incomplete or while it may be the beginning of a stop string.
    """

    def __init__(
        self, token_bytes: Callable[[int], bytes], *, stop: Sequence[str] = (), strips_leading_space: bool = False
    ) -> None:
        """Begin a sequence.

        token_bytes:          bytes of UTF-8 that a token adds to the text; b"" for a token that is not printed
        stop:                 strings that end the text; each non-empty
        strips_leading_space: drop one space at the very beginning of the text (the rule of SentencePiece vocabularies)
        raises:               RequestError for an empty stop string or one that is no string
        """
        check_stop_strings(stop)
        self._token_bytes = token_bytes
        self._stop = tuple(stop)
        self._longest_stop = max(map(len, self._stop), default=0)
        self._at_start = strips_leading_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._stopped: str | None = None

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text, or None."""
        return self._stopped

    def push(self, token_id: int) -> str:
        """Return the text that has become certain with this token, often "" or more than this token's own."""
        return self._advance(self._decoder.decode(self._token_bytes(token_id)))

    def flush(self) -> str:
        """Return what was held back; bytes of an unfinished character become U+FFFD. The sequence has ended."""
        text = self._advance(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return text + held

    def _advance(self, text: str) -> str:
        if self._stopped is not None or not text:
            return ""
        if self._at_start:
            self._at_start = False
            text = text.removeprefix(" ")
        if not self._stop:
            return text
        text = self._held + text
        match = _first_match(text, self._stop)
        if match is not None:
            start, self._stopped = match
            self._held = ""
            return text[:start]
        safe = len(text) - self._n_held_back(text)
        self._held = text[safe:]
        return text[:safe]

    def _n_held_back(self, text: str) -> int:
        """Return the length of the longest end of text with which a stop string may begin."""
        for n in range(min(self._longest_stop - 1, len(text)), 0, -1):
            end = text[len(text) - n :]
            if any(stop.startswith(end) for stop in self._stop):
                return n
        return 0


def check_stop_strings(stop: Sequence[str]) -> None:
    """Return nothing, or raise RequestError where stop is not a sequence of non-empty strings."""
    if isinstance(stop, str):
        raise RequestError(f"stop: got the string {stop!r}, expected a list of strings; write [{stop!r}]")
    for text in stop:
        if not isinstance(text, str) or not text:
            raise RequestError(f"stop: got {text!r}, expected non-empty strings")


def _first_match(text: str, stop: Sequence[str]) -> tuple[int, str] | None:
    """Return where a stop string begins and which one: that which ends first, the longest of those that end together.

    This is the one a reader sees who gets the text letter by letter, so it does not depend on how tokens cut the text.
    """
    matches = [(start + len(string), start, string) for string in stop if (start := text.find(string)) >= 0]
    if not matches:
        return None
    _, start, string = min(matches)
    return start, string
