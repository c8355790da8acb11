"""What a caller may ask of one generation: frozen, checked when it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from phlite.constrained import Constraint
from phlite.engine.checks import (
    check_integer,
    check_number,
    checked_breakers,
    checked_ids,
    checked_logit_bias,
    checked_lora,
    checked_stop,
    checked_words,
    only_ids,
)
from phlite.engine.contradictions import check_together
from phlite.engine.orders import checked_order
from phlite.errors import RequestError

__all__ = ["GREEDY_BELOW", "MAX_SEED", "LogitsFunction", "SamplingParams"]

MAX_SEED = 2**64 - 1
GREEDY_BELOW = 1e-7
MOST_BEAMS = 64
MOST_GUESSED = 15

# (all ids of the sequence so far, prompt first: int32[n], logits: float32[V]) -> float32[V]
LogitsFunction = Callable[[NDArray[np.int32], NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen, and when generation ends.

    The defaults are those of Microsoft's tutorial program: temperature 1.0, at most 100 tokens, no top-p, repeat
    penalty 1.2 over the last 64 generated tokens, a random seed. `SamplingParams.greedy()` is plain argmax,
    `SamplingParams.beam_search(4)` looks for the most likely text.

    temperature:       divides the logits; 0 (or < 1e-7) takes the largest logit
    top_k:             keep the k largest; None or 0: off
    top_p:             keep the smallest set of largest probabilities that reaches p, 0 < p <= 1; None or 1: off
    min_p:             drop tokens below min_p times the largest probability, 0 <= min_p <= 1; None or 0: off
    typical_p:         keep the tokens of most usual surprise that reach p together, 0 < p <= 1; None or 1: off
    top_n_sigma:       keep logits within n standard deviations of the largest; None: off
    xtc_probability:   how often all tokens of at least xtc_threshold but the least likely of them are left out; 0: off
    xtc_threshold:     0..1; above 0.5 nothing is left out
    dynatemp_range:    temperature moves by so much with the entropy, to the power dynatemp_exponent; 0: off
    mirostat:          1 or 2 (the version): keep the surprise near mirostat_tau bits, learning at rate mirostat_eta,
                       instead of the filters above; 0: off
    repeat_penalty:    > 0; each distinct id of the window: logit / penalty if logit >= 0, else logit * penalty; 1: off
    repeat_last_n:     window of repeat_penalty in tokens; 0: off, -1: all of them
    frequency_penalty: -2..2; logit -= penalty * (times the id was generated)
    presence_penalty:  -2..2; logit -= penalty, once, for each id that was generated
    dry_multiplier:    ids that lengthen a repetition of n >= dry_allowed_length tokens lose dry_multiplier *
                       dry_base ** (n - dry_allowed_length) of their logit; 0: off
    dry_last_n:        how many tokens of prompt and output are searched for it; -1: all
    dry_breakers:      ids, or texts (LLM only: every token that contains one), which a repetition does not cross
    logit_bias:        id -> number added to its logit; -inf forbids the id
    logits_function:   called with (ids so far, logits) before temperature; returns the logits to use
    sampler_order:     the engine whose order and rules are followed: "candle", "transformers", "llama.cpp", "openai";
                       or names of samplers in an order of one's own, by llama.cpp's rules (docs/python.md has both)
    no_repeat_ngram_size: no n tokens of prompt and output occur twice; 0: off
    bad_words:         sequences of ids, or texts (LLM only), that are never completed
    suppress_token_ids: ids that never come
    seed:              0..2**64 - 1; None: drawn from the operating system and reported with the result
    max_tokens:        most tokens to generate, >= 1; None: until the context is full
    max_length:        most tokens of prompt and output together; None: no such limit
    min_tokens:        no id that ends the generation comes before so many are generated
    min_length:        the same, of prompt and output together
    stop:              strings that end the generation and are cut off; needs text, so the engine alone ignores them
    stop_token_ids:    ids that end the generation, besides the model's own
    ignore_eos:        do not stop at the model's own end tokens
    prompt_lookup_num_tokens: most tokens that are guessed from prompt and output and checked in one pass: the ids are
                       the same, only the speed changes; 0: off
    constraint:        what the text must be, such as `Constraint.json_schema(...)`; needs text, so the engine alone
                       takes it as a TokenConstraint
    num_beams:         above 1: beam search, which keeps so many prefixes; needs temperature 0
    length_penalty:    beams are compared by the sum of their log-probabilities over length ** length_penalty
    early_stopping:    True: end when there are num_beams results; False: when no beam is likely to become better;
                       "never": when none can
    num_return_sequences: how many results are given, best first
    logprobs:          None: none; n >= 0: log-probability of each token and of the n most likely ones, of the model's
                       own distribution (before penalties, temperature and filters)
    lora:              name of an adapter -> scale of what it adds; {}: the bare model; None: the adapters that were
                       loaded with the model, each with the scale given there

    raises: RequestError that names the field, what was given and what is allowed
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    top_n_sigma: float | None = None
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    mirostat: Literal[0, 1, 2] = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    repeat_penalty: float = 1.2
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_last_n: int = -1
    dry_breakers: Iterable[str | int] = ("\n", ":", '"', "*")
    logit_bias: Mapping[int, float] | None = None
    logits_function: LogitsFunction | None = None
    sampler_order: str | tuple[str, ...] = "candle"
    no_repeat_ngram_size: int = 0
    bad_words: str | Iterable[str | Iterable[int]] = ()
    suppress_token_ids: Iterable[int] = ()
    seed: int | None = None
    max_tokens: int | None = 100
    max_length: int | None = None
    min_tokens: int = 0
    min_length: int = 0
    stop: str | Iterable[str] = ()
    stop_token_ids: Iterable[int] = ()
    ignore_eos: bool = False
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_return_sequences: int = 1
    prompt_lookup_num_tokens: int = MOST_GUESSED
    constraint: Constraint | None = None
    logprobs: int | None = None
    lora: Mapping[str, float] | None = None

    @classmethod
    def greedy(
        cls, *, max_tokens: int | None = 100, ignore_eos: bool = False, prompt_lookup_num_tokens: int = MOST_GUESSED
    ) -> SamplingParams:
        """Return parameters for the most likely token each time, with no penalty."""
        return cls(
            temperature=0.0,
            repeat_penalty=1.0,
            max_tokens=max_tokens,
            ignore_eos=ignore_eos,
            prompt_lookup_num_tokens=prompt_lookup_num_tokens,
        )

    @classmethod
    def beam_search(
        cls,
        num_beams: int,
        *,
        length_penalty: float = 1.0,
        early_stopping: bool | Literal["never"] = False,
        num_return_sequences: int = 1,
        max_tokens: int | None = 100,
    ) -> SamplingParams:
        """Return parameters for beam search as transformers does it, with no penalty."""
        return cls(
            temperature=0.0,
            repeat_penalty=1.0,
            sampler_order="transformers",
            num_beams=num_beams,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            num_return_sequences=num_return_sequences,
            max_tokens=max_tokens,
        )

    def with_seed(self, seed: int) -> SamplingParams:
        """Return the same parameters with this seed."""
        return replace(self, seed=seed)

    @property
    def is_greedy(self) -> bool:
        """Whether the largest logit is taken."""
        return self.temperature < GREEDY_BELOW

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Return `stop` as the tuple it was normalised to."""
        return tuple(self.stop)

    def most_ids(self, n_prompt: int, n_ctx: int) -> int:
        """Return how long prompt and output together may become."""
        by_tokens = n_ctx if self.max_tokens is None else n_prompt + self.max_tokens
        return min(n_ctx, by_tokens, n_ctx if self.max_length is None else self.max_length)

    def token_ids(self) -> list[tuple[str, Iterable[int]]]:
        """Return every field that names token ids, with them.

        raises: RequestError for a text in their place: only an LLM can spell it
        """
        words = [part for word in self.bad_words for part in ([word] if isinstance(word, str) else word)]
        return [
            ("logit_bias", self.logit_bias or ()),
            ("bad_words", only_ids("bad_words", words)),
            ("dry_breakers", only_ids("dry_breakers", self.dry_breakers if self.dry_multiplier else ())),
            ("suppress_token_ids", self.suppress_token_ids),
        ]

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, low=0.0)
        check_integer("top_k", self.top_k, low=0, optional=True)
        check_number("top_p", self.top_p, low=0.0, high=1.0, low_open=True, optional=True)
        check_number("min_p", self.min_p, low=0.0, high=1.0, optional=True)
        check_number("typical_p", self.typical_p, low=0.0, high=1.0, low_open=True, optional=True)
        check_number("top_n_sigma", self.top_n_sigma, low=0.0, low_open=True, optional=True)
        check_number("xtc_probability", self.xtc_probability, low=0.0, high=1.0)
        check_number("xtc_threshold", self.xtc_threshold, low=0.0, high=1.0)
        check_number("dynatemp_range", self.dynatemp_range, low=0.0)
        check_number("dynatemp_exponent", self.dynatemp_exponent, low=0.0)
        check_integer("mirostat", self.mirostat, low=0, high=2)
        check_number("mirostat_tau", self.mirostat_tau, low=0.0)
        check_number("mirostat_eta", self.mirostat_eta, low=0.0)
        check_number("repeat_penalty", self.repeat_penalty, low=0.0, low_open=True)
        check_integer("repeat_last_n", self.repeat_last_n, low=-1)
        check_number("frequency_penalty", self.frequency_penalty, low=-2.0, high=2.0)
        check_number("presence_penalty", self.presence_penalty, low=-2.0, high=2.0)
        check_number("dry_multiplier", self.dry_multiplier, low=0.0)
        check_number("dry_base", self.dry_base, low=1.0)
        check_integer("dry_allowed_length", self.dry_allowed_length, low=1)
        check_integer("dry_last_n", self.dry_last_n, low=-1)
        check_integer("no_repeat_ngram_size", self.no_repeat_ngram_size, low=0)
        check_integer("seed", self.seed, low=0, high=MAX_SEED, optional=True)
        check_integer("max_tokens", self.max_tokens, low=1, optional=True)
        check_integer("max_length", self.max_length, low=1, optional=True)
        check_integer("min_tokens", self.min_tokens, low=0)
        check_integer("min_length", self.min_length, low=0)
        check_integer("num_beams", self.num_beams, low=1, high=MOST_BEAMS)
        check_number("length_penalty", self.length_penalty, low=-10.0, high=10.0)
        check_integer("num_return_sequences", self.num_return_sequences, low=1)
        if self.early_stopping not in (True, False, "never"):
            raise RequestError(f"early_stopping: got {self.early_stopping!r}, expected True, False or 'never'")
        check_integer("prompt_lookup_num_tokens", self.prompt_lookup_num_tokens, low=0)
        check_integer("logprobs", self.logprobs, low=0, optional=True)
        if self.logits_function is not None and not callable(self.logits_function):
            raise RequestError(f"logits_function: got {self.logits_function!r}, expected a callable or None")
        if self.constraint is not None and not isinstance(self.constraint, Constraint):
            raise RequestError(
                f"constraint: got {type(self.constraint).__name__}, expected what Constraint.json_schema, .regex,"
                " .choice or .grammar returns, or None"
            )
        tidy = {
            "logit_bias": checked_logit_bias(self.logit_bias),
            "lora": checked_lora(self.lora),
            "dry_breakers": checked_breakers(self.dry_breakers),
            "bad_words": checked_words(self.bad_words),
            "sampler_order": checked_order(self.sampler_order),
            "suppress_token_ids": checked_ids("suppress_token_ids", self.suppress_token_ids),
            "stop_token_ids": checked_ids("stop_token_ids", self.stop_token_ids),
            "stop": checked_stop(self.stop),
        }
        for name, value in tidy.items():
            object.__setattr__(self, name, value)
        check_together(self)
