"""What `--stats` and `--verbose-seed` print on stderr after an answer."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from phlite.cli.machine import peak_rss_bytes
from phlite.hub import format_bytes

if TYPE_CHECKING:
    from phlite.completion import Completion
    from phlite.engine.params import SamplingParams

# Fields that say when to stop or what to report, or that would not fit a line.
NOT_SAMPLING = ("seed", "max_tokens", "stop", "stop_token_ids", "logit_bias", "logits_function", "lora")

__all__ = ["named_sampling", "print_seed", "print_stats"]


def print_stats(completion: Completion, params: SamplingParams) -> None:
    """Print speeds, times and memory of one answer, how it was sampled, and the seed that gives it again."""
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
    fields = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n")
    others = [field.name for field in dataclasses.fields(params) if field.name not in (*fields, *NOT_SAMPLING)]
    plain = type(params)()
    changed = [name for name in others if getattr(params, name) != getattr(plain, name)]
    used = {name: getattr(params, name) for name in (*fields, *changed)}
    print(f"{'sampling':<12}{named_sampling(used)}", file=sys.stderr)


def named_sampling(fields: Mapping[str, object]) -> str:
    """Fields of SamplingParams and their values for people: "temperature 0.7, repeat penalty 1.0"; None is left out."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in fields.items() if value is not None)


def print_seed(completion: Completion) -> None:
    """Print the seed that gives the same answer again."""
    print(f"seed {completion.seed}", file=sys.stderr)
