"""The options of `phlite run` that are fields of SamplingParams."""

from __future__ import annotations

import argparse
import functools

from phlite.cli.parser import Parser, integer, number, or_none

__all__ = ["add_sampling", "sampling_fields"]

# Absent unless given, so that `--top-k none` differs from no --top-k.
FIELDS = (
    *("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n"),
    *("sampler_order", "typical_p", "top_n_sigma", "xtc_probability", "mirostat"),
    *("frequency_penalty", "presence_penalty", "dry_multiplier", "no_repeat_ngram_size", "bad_words"),
    *("min_tokens", "num_beams", "length_penalty", "prompt_lookup_num_tokens"),
)
# Beams are compared, not drawn: what only shapes a draw is off unless it is asked for, and then refused.
WITH_BEAMS = {"temperature": 0.0, "top_k": None, "top_p": None, "min_p": None, "repeat_penalty": 1.0}


def add_sampling(parser: Parser) -> None:
    """Add the options, in two groups."""
    group = parser.add_argument_group("sampling", "default: what the model file recommends, else the value in brackets")
    add = functools.partial(group.add_argument, default=argparse.SUPPRESS)
    add("--temperature", type=number, metavar="T", help="0 always takes the most likely token (1.0)")
    add("--top-p", type=or_none(number), metavar="P", help="keep the likeliest tokens that reach P together (none)")
    add("--top-k", type=or_none(integer(0)), metavar="K", help="keep the K likeliest tokens (none)")
    add("--min-p", type=or_none(number), metavar="P", help="drop tokens below P times the likeliest one (none)")
    add("--repeat-penalty", type=number, metavar="X", help="weaken recent tokens; 1 is off (1.2)")
    add("--repeat-last-n", type=integer(-1), metavar="N", help="how many are recent; -1 is all (64)")
    group.add_argument("--seed", type=integer(0), metavar="N", help="makes the answer repeatable (random)")
    more = parser.add_argument_group("more sampling", "off by default; docs/python.md explains each")
    add = functools.partial(more.add_argument, default=argparse.SUPPRESS)
    add(
        "--sampler-order",
        type=order,
        metavar="NAME",
        help="whose order and rules: candle, transformers, llama.cpp, openai, or samplers separated by commas (candle)",
    )
    add("--typical-p", type=or_none(number), metavar="P", help="keep tokens of usual surprise that reach P together")
    add("--top-n-sigma", type=or_none(number), metavar="N", help="keep logits within N deviations of the largest")
    add("--xtc-probability", type=number, metavar="P", help="how often the top choices but the last are left out")
    add("--mirostat", type=integer(0, 2), metavar="V", help="version 1 or 2, instead of the filters")
    add("--frequency-penalty", type=number, metavar="X", help="weaken tokens by how often they came")
    add("--presence-penalty", type=number, metavar="X", help="weaken tokens that came")
    add("--dry-multiplier", type=number, metavar="X", help="weaken what lengthens a repetition")
    add("--no-repeat-ngram-size", type=integer(0), metavar="N", help="no N tokens twice")
    add("--bad-word", dest="bad_words", action="append", metavar="TEXT", help="never complete it; may be repeated")
    add("--min-tokens", type=integer(0), metavar="N", help="do not end before N tokens")
    add("--num-beams", type=integer(1), metavar="N", help="beam search, the most likely text of N side by side")
    add("--length-penalty", type=number, metavar="X", help="above 1 prefers long beams (1)")
    add(
        "--prompt-lookup",
        dest="prompt_lookup_num_tokens",
        type=integer(0),
        metavar="N",
        help="guess up to N tokens that repeat the text: same answer, faster; 0 is off (15)",
    )


def order(text: str) -> str | tuple[str, ...]:
    """Argument type: the name of an order, or names of samplers separated by commas."""
    return tuple(part.strip() for part in text.split(",")) if "," in text else text


def sampling_fields(options: argparse.Namespace) -> dict[str, object]:
    """Return the fields of SamplingParams that were given, the seed included."""
    given = {name: getattr(options, name) for name in FIELDS if hasattr(options, name)}
    beams = WITH_BEAMS if given.get("num_beams", 1) > 1 else {}
    return {**beams, **given, "seed": options.seed}
