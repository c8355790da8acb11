"""Prompt lookup: guesses the next tokens from what followed the same few tokens earlier in prompt or output.

A guess is checked by the model in the same forward pass that would have given one token: its logits at each position
are, to the bit, those of a pass of its own, and the sampler draws from them as it always does. So the ids are the same
with and without guesses; only the number of passes changes.

Rows beyond the first cost little while a pass waits for memory (docs/LOG.md: one more 3 %, three more 30 %, seven more
100 %), so guesses are long only after long ones were right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_ROWS", "Guesser", "find_guess"]

I32 = NDArray[np.int32]

NGRAM_SIZES = (4, 3, 2)
LENGTHS = (1, 3, 7, 11, 15)
LONGEST_PAUSE = 8
# Rows of one pass, of all sequences together, up to which guesses are worth their time.
MOST_ROWS = 16


@dataclass(slots=True)
class Guesser:
    """How far ahead to guess for one sequence. It follows how good the guesses were and never changes an id.

    most:     longest guess, 0: never guess
    level:    index into LENGTHS
    n_failed: wholly wrong guesses in a row
    n_pause:  tokens to generate before the next guess
    """

    most: int
    level: int = 1
    n_failed: int = 0
    n_pause: int = 0

    def guess(self, ids: I32, room: int) -> I32:
        """Return the guess after these ids, at most `room` long; empty where there is none."""
        n_most = min(self.most, LENGTHS[self.level], room)
        if self.n_pause > 0:
            self.n_pause -= 1
            n_most = 0
        return find_guess(ids, n_most) if n_most > 0 else ids[:0]

    def note(self, n_guessed: int, n_right: int) -> None:
        """Learn that the first n_right of n_guessed > 0 ids came."""
        if n_right == n_guessed:
            self.n_failed = 0
            self.level = min(self.level + 1, len(LENGTHS) - 1)
            return
        self.level = max(level for level, length in enumerate(LENGTHS) if length <= max(n_right, 1))
        self.n_failed = 0 if n_right else self.n_failed + 1
        self.n_pause = min(self.n_failed, LONGEST_PAUSE)


def find_guess(ids: I32, n_most: int) -> I32:
    """Return what followed the newest earlier occurrence of the last 4, else 3, else 2 ids: int32[n], n <= n_most.

    An occurrence that reaches into the end is a loop, and is guessed to go on. Empty when there is no occurrence.
    """
    data, n = ids.tobytes(), ids.size
    row = find_last(data, n, NGRAM_SIZES[-1])
    if row < 0:
        return ids[:0]
    for size in NGRAM_SIZES[:-1]:
        longer = find_last(data, n, size)
        if longer >= 0:
            row = longer
            break
    return np.resize(ids[row:], n_most) if n - row < n_most else ids[row : row + n_most]


def find_last(data: bytes, n: int, size: int) -> int:
    """Return the row after the newest earlier occurrence of the last `size` of n ids of 4 bytes; -1: there is none."""
    if n <= size:
        return -1
    pattern, end = data[(n - size) * 4 :], (n - 1) * 4
    start = data.rfind(pattern, 0, end)
    while start > 0 and start % 4:  # the end of one id and the beginning of the next
        start = data.rfind(pattern, 0, start + len(pattern) - 1)
    return start // 4 + size if start >= 0 and start % 4 == 0 else -1
