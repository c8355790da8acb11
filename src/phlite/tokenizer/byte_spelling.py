"""How vocabularies spell bytes: GPT-2's table of stand-in characters, and SentencePiece's `▁` and `<0x0A>`."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["BYTE_CHARACTERS", "spell_byte_level", "spell_sentencepiece"]

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


def _byte_characters() -> dict[int, str]:
    """Return GPT-2's table: printable bytes stand for themselves, the other 68 for U+0100 and up, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(0x100 + i) for i, byte in enumerate(others)}}


BYTE_CHARACTERS: Final = _byte_characters()
_BYTE_OF = {character: byte for byte, character in BYTE_CHARACTERS.items()}


def spell_byte_level(piece: str) -> bytes:
    """Return the bytes of a byte-level piece; one with a character outside the table stands for its own text."""
    try:
        return bytes(map(_BYTE_OF.__getitem__, piece))
    except KeyError:
        return piece.encode()


def spell_sentencepiece(piece: str) -> bytes:
    """Return the bytes of a SentencePiece piece: `<0x0A>` is one byte, `▁` a space, the rest its own text."""
    match = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(match[1], 16)]) if match else piece.replace("\u2581", " ").encode()
