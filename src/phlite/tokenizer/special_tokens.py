"""What the special tokens of the family are: which end an answer, which are control tokens, how white space is cut.

A model file names one or two end tokens by id, but several more end an answer in practice, and a file that forgets
one must not make the model talk to itself. Every engine read for this therefore recognises them by their text too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["STOP_TEXTS", "SpecialToken", "SpecialTokenCutter", "is_marker", "stop_ids_by_text"]

STOP_TEXTS = frozenset(
    [
        # Ends of a turn or of a text.
        *("<|end|>", "<|endoftext|>", "<|im_end|>", "</s>"),
        # Heads of a next turn: a model that writes one has finished, and carries on as somebody else.
        *("<|assistant|>", "<|user|>", "<|system|>", "<|im_start|>", "<|tool|>", "<|tool_response|>"),
    ]
)

# Unicode White_Space, the set that the `tokenizers` library strips. Python's own has four control characters more.
_WHITE_SPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_MARKER = re.compile(r"</?[^\s<>/][^\s<>]*>")


@dataclass(frozen=True)
class SpecialToken:
    """A token that is cut out of a text before anything else looks at it.

    lstrip, rstrip: the token swallows all white space directly before, directly after it
    """

    token_id: int
    text: str
    lstrip: bool = False
    rstrip: bool = False


def is_marker(text: str) -> bool:
    """Return whether a token reads as mark-up, `<|tool|>` or `</s>`, although its file does not call it special."""
    return _MARKER.fullmatch(text) is not None


def stop_ids_by_text(special_tokens: Mapping[str, int]) -> frozenset[int]:
    """Return the ids of those special tokens that end an answer in every member of the family."""
    return frozenset(token_id for text, token_id in special_tokens.items() if text in STOP_TEXTS)


class SpecialTokenCutter:
    """Cuts special tokens out of a text, leftmost first, longest first among those that begin at one place."""

    def __init__(self, tokens: Sequence[SpecialToken]) -> None:
        """Take the tokens over; texts are non-empty and distinct."""
        self._by_text = {token.text: token for token in tokens}
        texts = sorted(self._by_text, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, texts))) if texts else None

    def cut(self, text: str) -> Iterator[str | SpecialToken]:
        """Yield the non-empty fragments between special tokens, and the tokens, in order; strip flags are applied."""
        position = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            token = self._by_text[match.group()]
            if match.start() < position:
                continue  # white space that the token before has swallowed
            fragment = text[position : match.start()]
            if token.lstrip:
                fragment = fragment.rstrip(_WHITE_SPACE)
            if fragment:
                yield fragment
            yield token
            position = match.end()
            while token.rstrip and position < len(text) and text[position] in _WHITE_SPACE:
                position += 1
        if position < len(text):
            yield text[position:]
