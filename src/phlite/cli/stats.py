"""What `--stats` and `--verbose-seed` print on stderr after an answer."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from phlite.cli.machine import peak_rss_bytes
from phlite.hub import format_bytes

if TYPE_CHECKING:
    from phlite.completion import Completion

__all__ = ["print_seed", "print_stats"]


def print_stats(completion: Completion) -> None:
    """Print speeds, times and memory of one answer, and the seed that gives it again."""
    timings = completion.timings
    lines = (
        ("prompt", f"{completion.prompt_tokens} tokens", f"{timings.prompt_tokens_per_s:.1f} tokens/s"),
        ("answer", f"{completion.completion_tokens} tokens", f"{timings.tokens_per_s:.1f} tokens/s"),
        ("first token", f"{timings.prefill_ms:.0f} ms", ""),
        ("load", f"{timings.load_ms:.0f} ms", ""),
        ("peak memory", format_bytes(peak_rss_bytes()), ""),
        ("seed", str(completion.seed), ""),
    )
    print(file=sys.stderr)
    for label, value, speed in lines:
        print(f"{label:<12}{value:>14}{speed:>20}".rstrip(), file=sys.stderr)


def print_seed(completion: Completion) -> None:
    """Print the seed that gives the same answer again."""
    print(f"seed {completion.seed}", file=sys.stderr)
