"""One generation: the ids known so far, where its keys and values lie, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from phlite.engine.adapters import AdapterUse
from phlite.engine.beam_cache import BeamGroup
from phlite.engine.beam_search import Hypothesis, begin_search
from phlite.engine.constraint import TokenConstraint
from phlite.engine.lookup import Guesser
from phlite.engine.params import SamplingParams
from phlite.engine.sampling import Step, TokenLogprob, build_steps, first_mu

__all__ = ["FinishReason", "Sequence", "Timings"]

FinishReason = Literal["stop", "length", "aborted"]


@dataclass(slots=True)
class Timings:
    """Wall times of one sequence in milliseconds; waiting for neighbours of the same step is part of them.

    prefill_ms: from the first step that worked on it to its first token
    decode_ms:  from its first token to its last
    """

    prefill_ms: float = 0.0
    decode_ms: float = 0.0


@dataclass(eq=False, slots=True)
class Sequence:
    """What `Engine.add` returns. Its public fields are for reading; the engine writes them.

    prompt_ids:    the prompt
    params:        the sampling parameters as given
    seed:          the seed in use: params.seed, or the one drawn for this sequence
    output_ids:    generated ids, in order; the stop id, if one ended it, is the last
    logprobs:      one TokenLogprob per output id when params.logprobs is set, else empty
    finish_reason: None while it runs; "stop" (a stop id, or `Engine.finish`), "length" (max_tokens or a full context)
                   or "aborted" (`Engine.abort`, or `error`)
    hypotheses:    with num_beams, the num_return_sequences best results, best first; output_ids are those of the first
    error:         what params.logits_function raised, if it did
    timings:       see Timings
    """

    prompt_ids: list[int]
    params: SamplingParams
    seed: int
    output_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    hypotheses: tuple[Hypothesis, ...] = ()
    error: Exception | None = None
    timings: Timings = field(default_factory=Timings)
    state: SequenceState = field(kw_only=True, repr=False)

    @property
    def n_ids(self) -> int:
        """Number of ids known: prompt and output."""
        return self.state.n_prompt + len(self.output_ids)

    @property
    def n_pending(self) -> int:
        """Number of known ids whose keys and values are not in the cache yet."""
        return self.n_ids - self.state.n_cached


@dataclass(slots=True)
class SequenceState:
    """The engine's own view of a sequence.

    stop_ids:    ids that end it
    max_ids:     n_ids at which it ends with "length"
    ids:         int32[max_ids]; the first n_ids hold prompt and output
    n_prompt:    ids of the prompt
    n_cached:    the first n_cached ids have keys and values in the cache
    regime:      the model's rope regime those were rotated with
    block_table: int32[max blocks]; cache blocks in order of position, -1 beyond n_blocks
    steps:       the sampling steps its parameters ask for
    guesser:     guesses its next tokens
    group:       its beams, if it has any
    mus:         with mirostat, its bound for each output id so far and for the next one
    lora:        the adapters it runs with, in the order of their names. Keys and values depend on them: whoever lets
                 sequences share cache blocks must compare this besides the ids
    constraint:  what may follow its output, None: everything
    constraint_start: that constraint before the first output id
    """

    stop_ids: frozenset[int]
    max_ids: int
    ids: NDArray[np.int32]
    n_prompt: int
    block_table: NDArray[np.int32]
    steps: tuple[Step, ...]
    guesser: Guesser
    group: BeamGroup | None
    mus: list[float]
    lora: tuple[AdapterUse, ...] = ()
    constraint: TokenConstraint | None = None
    constraint_start: TokenConstraint | None = None
    n_blocks: int = 0
    n_cached: int = 0
    regime: int = 0
    started_s: float = 0.0
    first_token_s: float = 0.0


def build_sequence(
    prompt_ids: list[int],
    params: SamplingParams,
    *,
    seed: int,
    stop_ids: frozenset[int],
    n_ctx: int,
    block_size: int,
    lora: tuple[AdapterUse, ...] = (),
    constraint: TokenConstraint | None = None,
) -> Sequence:
    """Return a sequence that has not begun; the caller has checked that the prompt is shorter than n_ctx."""
    n_prompt = len(prompt_ids)
    max_ids = params.most_ids(n_prompt, n_ctx)
    ids = np.empty(max_ids, np.int32)
    ids[:n_prompt] = prompt_ids
    state = SequenceState(
        stop_ids=stop_ids,
        max_ids=max_ids,
        ids=ids,
        n_prompt=n_prompt,
        block_table=np.full(-(-max_ids // block_size), -1, np.int32),
        steps=build_steps(params),
        guesser=Guesser(params.prompt_lookup_num_tokens if params.num_beams == 1 else 0),
        group=None
        if params.num_beams == 1
        else BeamGroup(begin_search(prompt_ids, params, stop_ids=stop_ids, max_ids=max_ids)),
        mus=[first_mu(params)],
        lora=lora,
        constraint=None if constraint is None else constraint.clone(),
        constraint_start=constraint,
    )
    return Sequence(prompt_ids, params, seed, state=state)
