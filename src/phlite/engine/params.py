"""What a caller may ask of one generation: frozen, checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from phlite.errors import RequestError

__all__ = ["MAX_SEED", "LogitsFunction", "SamplingParams"]

MAX_SEED = 2**64 - 1

# (all ids of the sequence so far, prompt first: int32[n], logits: float32[V]) -> float32[V]
LogitsFunction = Callable[[NDArray[np.int32], NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen, and when generation ends.

    The defaults are those of Microsoft's tutorial program: temperature 1.0, at most 100 tokens, no top-p, repeat
    penalty 1.2 over the last 64 generated tokens, a random seed. `SamplingParams.greedy()` is plain argmax.

    temperature:       divides the logits; 0 (or < 1e-7) takes the largest logit
    top_k:             keep the k largest; None or 0: off
    top_p:             keep the smallest set of largest probabilities that reaches p, 0 < p <= 1; None or 1: off
    min_p:             drop tokens below min_p times the largest probability, 0 <= min_p <= 1; None or 0: off
    repeat_penalty:    > 0; each distinct id of the window: logit / penalty if logit >= 0, else logit * penalty; 1: off
    repeat_last_n:     window of generated tokens for repeat_penalty; 0: off, -1: all of them
    frequency_penalty: -2..2; logit -= penalty * (times the id was generated)
    presence_penalty:  -2..2; logit -= penalty, once, for each id that was generated
    logit_bias:        id -> number added to its logit; -inf forbids the id
    logits_function:   called with (ids so far, logits) before temperature; returns the logits to use
    seed:              0..2**64 - 1; None: drawn from the operating system and reported with the result
    max_tokens:        most tokens to generate, >= 1; None: until the context is full
    stop:              strings that end the generation and are cut off; needs text, so the engine alone ignores them
    stop_token_ids:    ids that end the generation, besides the model's own
    ignore_eos:        do not stop at the model's own end tokens
    logprobs:          None: none; n >= 0: log-probability of each token and of the n most likely ones, of the model's
                       own distribution (before penalties, temperature and filters)

    raises: RequestError that names the field, what was given and what is allowed
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float = 1.2
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    logits_function: LogitsFunction | None = None
    seed: int | None = None
    max_tokens: int | None = 100
    stop: str | Iterable[str] = ()
    stop_token_ids: Iterable[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    @classmethod
    def greedy(cls, *, max_tokens: int | None = 100, ignore_eos: bool = False) -> SamplingParams:
        """Return parameters for the most likely token each time, with no penalty."""
        return cls(temperature=0.0, repeat_penalty=1.0, max_tokens=max_tokens, ignore_eos=ignore_eos)

    def with_seed(self, seed: int) -> SamplingParams:
        """Return the same parameters with this seed."""
        return replace(self, seed=seed)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Return `stop` as the tuple it was normalised to."""
        return tuple(self.stop)

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, low=0.0)
        check_integer("top_k", self.top_k, low=0, optional=True)
        check_number("top_p", self.top_p, low=0.0, high=1.0, low_open=True, optional=True)
        check_number("min_p", self.min_p, low=0.0, high=1.0, optional=True)
        check_number("repeat_penalty", self.repeat_penalty, low=0.0, low_open=True)
        check_integer("repeat_last_n", self.repeat_last_n, low=-1)
        check_number("frequency_penalty", self.frequency_penalty, low=-2.0, high=2.0)
        check_number("presence_penalty", self.presence_penalty, low=-2.0, high=2.0)
        check_integer("seed", self.seed, low=0, high=MAX_SEED, optional=True)
        check_integer("max_tokens", self.max_tokens, low=1, optional=True)
        check_integer("logprobs", self.logprobs, low=0, optional=True)
        if self.logits_function is not None and not callable(self.logits_function):
            raise RequestError(f"logits_function: got {self.logits_function!r}, expected a callable or None")
        object.__setattr__(self, "logit_bias", checked_logit_bias(self.logit_bias))
        object.__setattr__(self, "stop", checked_stop(self.stop))
        ids = tuple(self.stop_token_ids)
        for token_id in ids:
            check_integer("stop_token_ids", token_id, low=0)
        object.__setattr__(self, "stop_token_ids", ids)


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


def checked_stop(stop: str | Iterable[str]) -> tuple[str, ...]:
    """Return the stop strings as a tuple without empty entries allowed."""
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    for text in strings:
        if not isinstance(text, str) or not text:
            raise RequestError(f"stop: got {text!r}, expected non-empty strings")
    return strings
