"""Reads from a mapped file that never leave it, and the error that says where something is wrong."""

from __future__ import annotations

import mmap
from typing import Final

from phlite.errors import ModelFileError

# A header may not ask for more memory than this, whatever it claims. The largest vocabularies known (262144 tokens,
# half a million merges) take a third of it.
MAX_METADATA_BYTES: Final = 1 << 26


def quoted(text: str) -> str:
    """Return a name from a file for a message: its repr, shortened, because the file chose both text and length."""
    return repr(text if len(text) <= 80 else f"{text[:80]}...")


class Cursor:
    """A position in a mapped file, and reads that move it forward."""

    def __init__(self, buffer: mmap.mmap, source: str) -> None:
        """Start at byte 0; source is the file's name for messages."""
        self.buffer = buffer
        self.source = source
        self.size = len(buffer)
        self.position = 0

    def take(self, n_bytes: int, what: str) -> bytes:
        """Return a copy of the next n_bytes, at most MAX_METADATA_BYTES."""
        start, end = self.position, self.position + n_bytes
        if end > self.size:
            raise self.broken(start, f"the end of the file at byte {self.size}", f"{n_bytes} bytes for {what}")
        if n_bytes > MAX_METADATA_BYTES:
            raise self.broken(start, f"{n_bytes} bytes for {what}", f"at most {MAX_METADATA_BYTES}")
        self.position = end
        return self.buffer[start:end]

    def read_u32(self, what: str) -> int:
        """Return the next four bytes as an unsigned integer."""
        return int.from_bytes(self.take(4, what), "little")

    def read_u64(self, what: str) -> int:
        """Return the next eight bytes as an unsigned integer."""
        return int.from_bytes(self.take(8, what), "little")

    def read_count(self, what: str, maximum: int) -> int:
        """Return a u64 of at most maximum."""
        start = self.position
        count = self.read_u64(f"the number of {what}")
        if count > maximum:
            raise self.broken(start, f"{count} {what}", f"at most {maximum}")
        return count

    def read_string(self, what: str, maximum: int) -> str:
        """Return a u64 length and that many bytes, at most maximum, as text."""
        start = self.position
        length = self.read_u64(f"the length of {what}")
        if length > maximum:
            raise self.broken(start, f"{length} bytes for {what}", f"at most {maximum}")
        raw = self.take(length, what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            position, reason = start + 8 + error.start, error.reason
        raise self.broken(position, f"{what} that is not UTF-8 ({reason})", "UTF-8 text")

    def broken(self, offset_bytes: int, got: str, expected: str) -> ModelFileError:
        """Return the error for something wrong at a byte of the file."""
        return ModelFileError(f"{self.source}: byte {offset_bytes}: got {got}, expected {expected}")
