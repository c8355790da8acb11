"""Text from files and models, made safe to show: it must not move the cursor or change the terminal's state."""

from __future__ import annotations

__all__ = ["printable"]

# C0 and C1 control characters but tab and line feed.
CONTROL_CHARACTERS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """Return the text without control characters (tabs and line ends stay)."""
    return text.translate(CONTROL_CHARACTERS)
