"""The only token loop: ids in, ids out. Many sequences share each forward pass of the model.

    engine = Engine(model, n_ctx=4096, eos_ids={32000, 32007})
    sequence = engine.add(prompt_ids, SamplingParams(seed=7))
    while engine.has_unfinished:
        for output in engine.step():
            print(output.sequence is sequence, output.token_id, output.finish_reason)

One thread at a time; `SharedEngine` serves several. An exception inside a step, Ctrl-C included, loses no ids: the next
step drops the cache and encodes what is known again. The result does not change by that, because the draw of token n is
a function of the seed and n alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from phlite.engine.adapters import LoadedAdapters
from phlite.engine.batch import BatchBuilder
from phlite.engine.beam_search import BeamSearch
from phlite.engine.beam_step import take_beam
from phlite.engine.blocks import BLOCK_SIZE, n_blocks_for
from phlite.engine.constraint import TokenConstraint, allowed_tokens, must_end, only_token
from phlite.engine.params import SamplingParams
from phlite.engine.request import check_request, random_seed
from phlite.engine.sampling import F32, Choice, TokenLogprob, choose, compute_logprob, uniform
from phlite.engine.scheduler import Chunk, Scheduler
from phlite.engine.sequence import FinishReason, Sequence, SequenceState, build_sequence
from phlite.errors import ModelFileError, RequestError
from phlite.models.base import CausalLM

__all__ = ["Engine", "StepOutput"]


@dataclass(slots=True)
class StepOutput:
    """What one step did to one sequence: a new token, or its end.

    token_id:      the new id; None when sequence.error ended it
    finish_reason: set with the last token
    logprob:       set when params.logprobs is
    """

    sequence: Sequence
    token_id: int | None
    finish_reason: FinishReason | None
    logprob: TokenLogprob | None = None


class Engine:
    """A model, its cache and the sequences that are being generated.

    n_ctx:            longest sequence in tokens, prompt and output; default and upper limit: the model's
    kv_type:          "f16", "q8_0" or "f32"
    cache_tokens:     positions that the cache holds for all sequences together; default n_ctx
    max_batch_tokens: most tokens of one forward pass (decode tokens are never held back)
    max_sequences:    most sequences in one forward pass; others wait
    eos_ids:          ids that end every sequence, unless its params say ignore_eos
    raises:           RequestError for a value out of range
    """

    def __init__(
        self,
        model: CausalLM,
        *,
        n_ctx: int | None = None,
        kv_type: str = "f16",
        cache_tokens: int | None = None,
        max_batch_tokens: int = 512,
        max_sequences: int = 64,
        eos_ids: Iterable[int] = (),
    ) -> None:
        limit = model.config.max_position_embeddings
        self.model = model
        self.n_ctx = limit if n_ctx is None else n_ctx
        if not 2 <= self.n_ctx <= limit:
            raise RequestError(f"n_ctx: got {n_ctx}, expected 2 to {limit}, the model's longest context")
        cache_tokens = self.n_ctx if cache_tokens is None else cache_tokens
        if cache_tokens < self.n_ctx:
            raise RequestError(f"cache_tokens: got {cache_tokens}, expected at least n_ctx = {self.n_ctx}")
        for name, value in (("max_batch_tokens", max_batch_tokens), ("max_sequences", max_sequences)):
            if value < 1:
                raise RequestError(f"{name}: got {value}, expected at least 1")
        n_blocks = n_blocks_for(cache_tokens)
        self.cache_tokens = n_blocks * BLOCK_SIZE
        self.kv_type = kv_type
        self.eos_ids = frozenset(eos_ids)
        self.cache = model.build_kv_cache(n_blocks, kv_type)
        self.scheduler = Scheduler(
            model.rope_regime, n_blocks=n_blocks, max_batch_tokens=max_batch_tokens, max_sequences=max_sequences
        )
        self.adapters = LoadedAdapters()
        self.batches = BatchBuilder(self.n_ctx)
        self.unfinished: dict[int, Sequence] = {}
        self.in_step = False

    @property
    def has_unfinished(self) -> bool:
        """Whether any sequence still waits or runs."""
        return bool(self.unfinished)

    def add(
        self,
        prompt_ids: Iterable[int],
        params: SamplingParams | None = None,
        *,
        constraint: TokenConstraint | None = None,
    ) -> Sequence:
        """Queue a prompt and return its sequence; the work is done by `step`.

        constraint: what may be generated, at its beginning (`LLM.build_constraint` makes it from params.constraint)
        raises:     RequestError for an empty prompt, an id outside the vocabulary, an adapter that is not loaded, or
                    params.constraint without constraint; ContextLengthError when the prompt leaves no room for a token
        """
        sequence = self.build(prompt_ids, params, constraint=constraint)
        self.enqueue(sequence)
        return sequence

    def build(
        self,
        prompt_ids: Iterable[int],
        params: SamplingParams | None = None,
        *,
        constraint: TokenConstraint | None = None,
    ) -> Sequence:
        """Check a prompt and return its sequence without queueing it; safe while another thread is in `step`."""
        params = SamplingParams() if params is None else params
        ids = [int(token_id) for token_id in prompt_ids]
        check_request(
            ids,
            params,
            vocab_size=self.model.config.vocab_size,
            n_ctx=self.n_ctx,
            longest=self.model.config.max_position_embeddings,
            cache_tokens=self.cache_tokens,
        )
        if constraint is not None and params.num_beams > 1:
            raise RequestError("constraint: got num_beams above 1 too, and beam search cannot keep a constraint yet")
        if params.constraint is not None and constraint is None:
            raise RequestError(
                "params.constraint: the engine has no text to compile it with; ask an LLM, or give add() the"
                " constraint that LLM.build_constraint(params) returns"
            )
        return build_sequence(
            ids,
            params,
            seed=random_seed() if params.seed is None else params.seed,
            stop_ids=frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self.eos_ids),
            n_ctx=self.n_ctx,
            block_size=BLOCK_SIZE,
            lora=self.adapters.chosen(params.lora),
            constraint=constraint,
        )

    def enqueue(self, sequence: Sequence) -> None:
        """Queue a sequence from `build`; nothing happens when it is queued already."""
        if self.in_step:
            self.recover()
        if id(sequence) in self.unfinished:
            return
        self.in_step = True
        self.unfinished[id(sequence)] = sequence
        self.scheduler.add(sequence)
        self.in_step = False

    def step(self) -> list[StepOutput]:
        """Run one forward pass; return the tokens it gave, of one sequence several where guesses were right.

        Empty while prompts are encoded, or with nothing to do.
        """
        if self.in_step:
            self.recover()
        self.in_step = True
        outputs: list[StepOutput] = []
        chunks = self.scheduler.schedule()
        if chunks:
            started_s = time.perf_counter()
            for chunk in chunks:
                chunk.sequence.state.started_s = chunk.sequence.state.started_s or started_s
            for block, copy in self.scheduler.copies:
                self.cache.copy_block(block, copy)
            logits = self.model.forward(self.batches.build(chunks), self.cache)
            check_finite(logits)
            now_s = time.perf_counter()
            n_rows = 0
            for chunk in chunks:
                rows = logits[n_rows : n_rows + chunk.n_logits]
                n_rows += chunk.n_logits
                step = self.advance if chunk.sequence.state.group is None else self.advance_beams
                outputs += step(chunk, rows, now_s)
        self.in_step = False
        return outputs

    def generate(self, prompts: Iterable[Iterable[int]], params: SamplingParams | None = None) -> list[Sequence]:
        """Generate for all prompts together and return their finished sequences in order.

        raises: what `add` raises; what a logits_function raised
        """
        sequences: list[Sequence] = []
        try:
            for prompt_ids in prompts:
                sequences.append(self.add(prompt_ids, params))
            while any(sequence.finish_reason is None for sequence in sequences):
                self.step()
        finally:
            for sequence in sequences:
                self.abort(sequence)
        for sequence in sequences:
            if sequence.error is not None:
                raise sequence.error
        return sequences

    def abort(self, sequence: Sequence) -> None:
        """End a sequence with "aborted" and free its cache; nothing happens when it has ended."""
        self.finish(sequence, "aborted")

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence for a reason of the caller's, such as a stop string, and free its cache."""
        if sequence.finish_reason is not None:
            return
        if self.in_step:
            self.recover()
        self.in_step = True
        self.end(sequence, reason)
        self.in_step = False

    def advance(self, chunk: Chunk, logits: F32, now_s: float) -> list[StepOutput]:
        """Take over what a step encoded of a sequence: its next token, and more as long as the guesses were right.

        logits: float32[chunk.n_logits, V], after the last known id and after each guess
        """
        sequence, state = chunk.sequence, chunk.sequence.state
        n_known = chunk.end - chunk.n_guessed
        state.n_cached = n_known
        guess = state.ids[n_known : chunk.end].tolist()
        outputs: list[StepOutput] = []
        for row, guessed_id in zip(logits, [*guess, None], strict=False):
            outputs.append(self.extend(sequence, row, now_s))
            if sequence.finish_reason is not None or outputs[-1].token_id != guessed_id:
                break
            state.n_cached += 1  # the guess was right, so its keys and values stay
        if guess:
            state.guesser.note(len(guess), len(outputs) - 1)
        return outputs + self.append_forced(sequence, now_s) if outputs else outputs

    def advance_beams(self, chunk: Chunk, logits: F32, now_s: float) -> list[StepOutput]:
        """Take over what a step encoded of a prompt, or of one beam; with the last of them the search goes on.

        logits: float32[0 or 1, V]
        """
        sequence, state = chunk.sequence, chunk.sequence.state
        try:
            search = take_beam(chunk, logits)
        except Exception as error:
            return [self.give_up(sequence, error)]
        if search is not None and not state.first_token_s:
            state.first_token_s = now_s
            sequence.timings.prefill_ms = (now_s - state.started_s) * 1e3
        return self.end_beams(sequence, search, now_s) if search is not None and search.is_done else []

    def end_beams(self, sequence: Sequence, search: BeamSearch, now_s: float) -> list[StepOutput]:
        """Put out the best hypothesis, and end the sequence."""
        sequence.hypotheses = search.best
        sequence.timings.decode_ms = (now_s - sequence.state.first_token_s) * 1e3
        sequence.output_ids.extend(search.best[0].token_ids)
        self.end_if_done(sequence)
        *others, last = search.best[0].token_ids
        return [
            *(StepOutput(sequence, token_id, None) for token_id in others),
            StepOutput(sequence, last, sequence.finish_reason),
        ]

    def extend(self, sequence: Sequence, logits: F32, now_s: float) -> StepOutput:
        """Sample the next token of a sequence, append it, and end the sequence when it is the last."""
        params, state, n_ids = sequence.params, sequence.state, sequence.n_ids
        n_output = n_ids - state.n_prompt
        choice = Choice(
            params,
            state.ids[:n_ids],
            state.n_prompt,
            u=uniform(sequence.seed, n_output),
            stop_ids=state.stop_ids,
            mu=state.mus[n_output] if params.mirostat else 0.0,
        )
        try:
            token_id = choose(constrained(logits, state), choice, state.steps)
            logprob = None if params.logprobs is None else compute_logprob(logits, token_id, params.logprobs)
            if logprob is not None:
                sequence.logprobs.append(logprob)
            if params.mirostat:
                # Kept by the number of the token, so that a choice that is repeated after an interrupt finds its own.
                state.mus[n_output + 1 :] = [choice.mu]
            return self.append(sequence, token_id, now_s, logprob)
        except Exception as error:
            return self.give_up(sequence, error)

    def append_forced(self, sequence: Sequence, now_s: float) -> list[StepOutput]:
        """Append the tokens that a constraint leaves no choice about; the next step encodes them together."""
        constraint, outputs = sequence.state.constraint, list[StepOutput]()
        if constraint is None or needs_logits(sequence.params):
            return outputs
        try:
            while sequence.finish_reason is None and (token_id := only_token(constraint)) is not None:
                outputs.append(self.append(sequence, token_id, now_s))
        except Exception as error:
            outputs.append(self.give_up(sequence, error))
        return outputs

    def append(
        self, sequence: Sequence, token_id: int, now_s: float, logprob: TokenLogprob | None = None
    ) -> StepOutput:
        """Append a token, and end the sequence when it is the last."""
        state, n_ids = sequence.state, sequence.n_ids
        if state.constraint is not None and token_id not in state.stop_ids:
            state.constraint.accept(token_id)
        state.ids[n_ids] = token_id
        sequence.output_ids.append(token_id)
        self.note_time(sequence, now_s)
        self.end_if_done(sequence)
        return StepOutput(sequence, token_id, sequence.finish_reason, logprob)

    def give_up(self, sequence: Sequence, error: Exception) -> StepOutput:
        """End a sequence whose function, bias or constraint is at fault; the neighbours go on."""
        sequence.error = error
        self.end(sequence, "aborted")
        return StepOutput(sequence, None, "aborted")

    def note_time(self, sequence: Sequence, now_s: float) -> None:
        """Bring the timings of a sequence up to its newest token."""
        state, timings = sequence.state, sequence.timings
        if len(sequence.output_ids) == 1:
            state.first_token_s = now_s
            timings.prefill_ms = (now_s - state.started_s) * 1e3
        timings.decode_ms = (now_s - state.first_token_s) * 1e3

    def end_if_done(self, sequence: Sequence) -> None:
        """End a sequence whose newest token is a stop id, leaves nothing to follow, or fills its limit."""
        state = sequence.state
        is_stopped = bool(sequence.output_ids) and sequence.output_ids[-1] in state.stop_ids
        if is_stopped or (state.constraint is not None and must_end(state.constraint)):
            self.end(sequence, "stop")
        elif sequence.n_ids >= sequence.state.max_ids:
            self.end(sequence, "length")

    def end(self, sequence: Sequence, reason: FinishReason) -> None:
        """Set the reason and let go of everything the sequence holds."""
        sequence.finish_reason = reason
        self.scheduler.remove(sequence)
        del self.unfinished[id(sequence)]

    def recover(self) -> None:
        """Make the bookkeeping true again after a step that did not end: output_ids are kept, the cache is not."""
        self.unfinished = {key: seq for key, seq in self.unfinished.items() if seq.finish_reason is None}
        self.scheduler.reset(self.unfinished.values())
        for sequence in list(self.unfinished.values()):
            del sequence.logprobs[len(sequence.output_ids) :]
            restart_constraint(sequence)
            self.end_if_done(sequence)
        self.in_step = False


def constrained(logits: F32, state: SequenceState) -> F32:
    """Return logits with -inf for what the constraint of a sequence forbids."""
    if state.constraint is None:
        return logits
    allowed = allowed_tokens(state.constraint, logits.size, state.stop_ids)
    return np.where(allowed, logits, np.float32(-np.inf))


def needs_logits(params: SamplingParams) -> bool:
    """Return whether even a token without an alternative takes a pass: for its log-probability, or for the chance that
    the parameters forbid it or remember it.
    """
    forbid = params.logit_bias or params.bad_words or params.suppress_token_ids or params.no_repeat_ngram_size
    return bool(params.logprobs is not None or params.logits_function is not None or params.mirostat or forbid)


def restart_constraint(sequence: Sequence) -> None:
    """Bring the constraint to where the output is; an interrupt may have come between the two."""
    state = sequence.state
    if state.constraint_start is not None:
        state.constraint = state.constraint_start.clone()
        for token_id in sequence.output_ids:
            state.constraint.accept(token_id)


def check_finite(logits: F32) -> None:
    """Raise ModelFileError when the model gave NaN or infinite logits: float32[R, V]."""
    if logits.size and not math.isfinite(logits.max()):
        raise ModelFileError(
            "the model's logits are not finite numbers: its weights are damaged (NaN or infinite scales?);"
            " download or convert the file again"
        )
