"""How large a regular expression becomes when its counted repetitions are written out."""

from __future__ import annotations

import re

__all__ = ["MAX_EXPANDED", "expanded_size"]

# A forced text of so many characters takes about half a second to compile.
MAX_EXPANDED = 100_000

# An escape, a class (after [ or [^ a ] is an ordinary character), a count, or any other character.
_PART = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]?|\{(\d+)(?:,(\d*))?\}|.", re.DOTALL)


def expanded_size(pattern: str) -> int:
    """Return the number of single characters, classes and dots once every {m,n} is written out; groups nest.

    It is an estimate from above for sound patterns: an unbounded {m,} counts as m + 1.
    """
    sizes = [0]  # of the open groups, the innermost last
    last = 0  # of what a count would repeat
    for part in _PART.finditer(pattern):
        text = part[0]
        if text == "(":
            sizes.append(0)
        elif text == ")" and len(sizes) > 1:
            last = sizes.pop()
            sizes[-1] += last
        elif part[1] is not None:
            # Numbers of more digits than this are refused all the same.
            low, high = int(part[1][:9]), int((part[2] or "0")[:9])
            n_times = max(high, low + 1 if part[2] == "" else low)
            sizes[-1] += last * (n_times - 1)
            last *= n_times
        elif text not in "*+?|":
            last = 1
            sizes[-1] += 1
    return sum(sizes)
