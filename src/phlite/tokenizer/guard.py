"""Keeps the spelling of a special token inside a user's text from becoming that token.

A chat template joins trusted text (its markers) and untrusted text (what people wrote) into one string, and only the
markers may become control tokens. So before rendering, every place of the untrusted text where a special token's
spelling begins gets a guard character behind its first letter. The tokenizer cuts out special tokens first, finds
none that is guarded, and drops the guards from the remaining text before it looks for ordinary pieces.

Guards are Unicode noncharacters, which no text for interchange holds. A text that holds them all the same is escaped
and comes out unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["ESCAPES", "GUARD", "SpecialTextGuard", "unguard"]

GUARD = "\ufdd0"
_ESCAPE = "\ufdd1"
# (escaped, original): undone in this order, after the guards are dropped. A "0" of the user's behind U+FDD1 stands
# behind "1" once escaped, so the first replacement does not take it for an escape.
ESCAPES = ((_ESCAPE + "0", GUARD), (_ESCAPE + "1", _ESCAPE))


class SpecialTextGuard:
    """Guards texts against a fixed set of special spellings."""

    def __init__(self, special_texts: Iterable[str]) -> None:
        """Take the spellings over; each is non-empty."""
        self._texts = texts = frozenset(special_texts)
        endings: dict[str, list[str]] = {}
        for text in texts:
            endings.setdefault(text[0], []).append(re.escape(text[1:]))
        begins = (f"{re.escape(first)}(?={'|'.join(sorted(rest))})" for first, rest in endings.items())
        self._begins = re.compile("|".join(begins)) if texts else None
        self._heads = frozenset(text[:n] for text in texts for n in range(1, len(text)))
        self._tails = frozenset(text[n:] for text in texts for n in range(1, len(text)))
        self._longest = max((len(text) for text in texts), default=0)

    def guard(self, text: str) -> str:
        """Return text with no special spelling in it, alone or joined to a template's text on either side.

        A spelling's beginning at the end of text, and a spelling's end at the start of it, are guarded too. Only a
        plain word stays as it is: a template that writes `<|` and `|>` around one, a role say, means the token.
        """
        text = self.escape(text)
        if self._begins is None:
            return text
        guarded = self._begins.sub(lambda match: match.group() + GUARD, text)
        limit = min(self._longest, len(text))
        inside = 0 < len(text) < self._longest and not text.isalnum() and any(text in whole for whole in self._texts)
        if inside or any(text[:n] in self._tails for n in range(1, limit + 1)):
            guarded = GUARD + guarded
        if any(text[-n:] in self._heads for n in range(1, limit + 1)):
            guarded += GUARD
        return guarded

    @staticmethod
    def escape(text: str) -> str:
        """Return text in which guard characters of the writer's own survive unguard(); special spellings stay."""
        if GUARD in text or _ESCAPE in text:
            for escaped, original in reversed(ESCAPES):
                text = text.replace(original, escaped)
        return text


def unguard(text: str) -> str:
    """Return text as it was before guard() or escape()."""
    if GUARD in text or _ESCAPE in text:
        text = text.replace(GUARD, "")
        for escaped, original in ESCAPES:
            text = text.replace(escaped, original)
    return text
