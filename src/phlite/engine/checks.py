"""Checks of the values that a caller gives: each raises RequestError that names the field, or returns a tidy copy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import numpy as np

from phlite.errors import RequestError

__all__ = [
    "check_integer",
    "check_number",
    "checked_breakers",
    "checked_ids",
    "checked_logit_bias",
    "checked_lora",
    "checked_stop",
    "checked_words",
    "only_ids",
]

MAX_LORA_SCALE = 1e4


def check_number(
    name: str,
    value: object,
    *,
    low: float,
    high: float = math.inf,
    low_open: bool = False,
    optional: bool = False,
) -> None:
    """Raise RequestError unless value is a finite real number in [low, high], or (low, high] with low_open."""
    if value is None and optional:
        return
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if is_number:
        number = float(value)  # type: ignore[arg-type]
        if math.isfinite(number) and low <= number <= high and not (low_open and number == low):
            return
    bound = f"{'>' if low_open else '>='} {low:g}" + (f" and <= {high:g}" if high != math.inf else "")
    raise RequestError(f"{name}: got {value!r}, expected a number {bound}{' or None' if optional else ''}")


def check_integer(name: str, value: object, *, low: int, high: int | None = None, optional: bool = False) -> None:
    """Raise RequestError unless value is an integer (no bool) in [low, high]."""
    if value is None and optional:
        return
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if is_integer and low <= int(value) and (high is None or int(value) <= high):  # type: ignore[call-overload]
        return
    bound = f">= {low}" + (f" and <= {high}" if high is not None else "")
    raise RequestError(f"{name}: got {value!r}, expected an integer {bound}{' or None' if optional else ''}")


def checked_logit_bias(bias: Mapping[int, float] | None) -> Mapping[int, float] | None:
    """Return a read-only copy of the bias, None when it is empty."""
    if not bias:
        return None
    if not isinstance(bias, Mapping):
        raise RequestError(f"logit_bias: got {type(bias).__name__}, expected a mapping of token id to number")
    for token_id, value in bias.items():
        check_integer("logit_bias (token id)", token_id, low=0)
        is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
        if not is_number or math.isnan(value) or value == math.inf:
            raise RequestError(f"logit_bias[{token_id}]: got {value!r}, expected a finite number or -inf")
    return MappingProxyType({int(token_id): float(value) for token_id, value in bias.items()})


def checked_lora(lora: Mapping[str, float] | None) -> Mapping[str, float] | None:
    """Return a read-only copy of adapter names and their scales, finite numbers."""
    if lora is None:
        return None
    if not isinstance(lora, Mapping):
        raise RequestError(f"lora: got {type(lora).__name__}, expected a mapping of adapter name to scale")
    for name, scale in lora.items():
        check_number(f"lora[{name!r}]", scale, low=-MAX_LORA_SCALE, high=MAX_LORA_SCALE)
    return MappingProxyType({str(name): float(scale) for name, scale in lora.items()})


def checked_stop(stop: str | Iterable[str]) -> tuple[str, ...]:
    """Return the stop strings as a tuple without empty entries allowed."""
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    for text in strings:
        if not isinstance(text, str) or not text:
            raise RequestError(f"stop: got {text!r}, expected non-empty strings")
    return strings


def checked_ids(name: str, ids: Iterable[int]) -> tuple[int, ...]:
    """Return token ids as a tuple."""
    checked = tuple(ids)
    for token_id in checked:
        check_integer(name, token_id, low=0)
    return tuple(int(token_id) for token_id in checked)


def checked_words(words: str | Iterable[str | Iterable[int]]) -> tuple[str | tuple[int, ...], ...]:
    """Return bad words as a tuple of texts and tuples of ids, none of them empty."""
    checked: list[str | tuple[int, ...]] = []
    for word in (words,) if isinstance(words, str) else words:
        if isinstance(word, (int, np.integer)):
            raise RequestError(f"bad_words: got {word!r}, expected texts or sequences of ids such as [[{word}]]")
        if not isinstance(word, str):
            word = checked_ids("bad_words", word)
        if not word:
            raise RequestError(f"bad_words: got {word!r}, expected non-empty texts or sequences of ids")
        checked.append(word)
    return tuple(checked)


def checked_breakers(breakers: Iterable[str | int]) -> tuple[str | int, ...]:
    """Return the breakers of DRY as a tuple of texts and ids."""
    checked = (breakers,) if isinstance(breakers, str) else tuple(breakers)
    for breaker in checked:
        if not isinstance(breaker, str):
            check_integer("dry_breakers", breaker, low=0)
        elif not breaker:
            raise RequestError("dry_breakers: got '', expected non-empty texts or ids")
    return checked


def only_ids(name: str, entries: Iterable[str | int]) -> list[int]:
    """Return the entries, refusing texts, which only an LLM can spell."""
    ids: list[int] = []
    for entry in entries:
        if isinstance(entry, str):
            raise RequestError(f"{name}: got the text {entry!r}, expected token ids; texts need an LLM")
        ids.append(entry)
    return ids
