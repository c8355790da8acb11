"""What a generation gives as text: pieces while it runs, and a Completion at its end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast, overload

from phlite.engine import FinishReason, Hypothesis, Sequence, TokenLogprob
from phlite.engine.shared import SharedEngine, has_progress
from phlite.errors import RequestError
from phlite.tokenizer import TextStream

if TYPE_CHECKING:
    import asyncio

    from phlite.constrained import JSONModel

__all__ = ["AsyncCompletionStream", "Candidate", "Completion", "CompletionStream", "CompletionTimings"]

Model = TypeVar("Model")


@dataclass(frozen=True, slots=True)
class CompletionTimings:
    """Wall times in milliseconds, and speeds in tokens per second (0 where nothing was measured).

    load_ms:             loading the model, once, before all its completions
    prefill_ms:          from the first step on the prompt to the first token
    decode_ms:           from the first token to the last
    prompt_tokens_per_s: prompt tokens over prefill_ms
    tokens_per_s:        tokens after the first over decode_ms
    """

    load_ms: float
    prefill_ms: float
    decode_ms: float
    prompt_tokens_per_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """One result of beam search.

    score: sum of the natural log-probabilities of its ids, over length ** length_penalty
    """

    text: str
    token_ids: tuple[int, ...]
    score: float
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished generation.

    text:              the generated text, without stop string and special tokens
    token_ids:         the generated ids; a stop id that ended it is the last
    finish_reason:     "stop", "length" (max_tokens or a full context) or "aborted" (by the caller)
    stop:              the stop string or stop id that ended it, else None
    prompt_tokens:     length of the prompt in tokens
    completion_tokens: length of token_ids
    logprobs:          one TokenLogprob per id when params.logprobs was set, else empty
    seed:              the seed that gives the same ids again
    constraint_satisfied: whether the whole text is what params.constraint asks for; False for one that
                       max_tokens, a stop string or the caller cut short; None without a constraint
    candidates:        with params.num_beams, the num_return_sequences best results; the first is this one
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop: str | int | None
    prompt_tokens: int
    completion_tokens: int
    logprobs: tuple[TokenLogprob, ...]
    seed: int
    timings: CompletionTimings
    constraint_satisfied: bool | None = None
    candidates: tuple[Candidate, ...] = ()

    @overload
    def parse(self) -> object: ...

    @overload
    def parse(self, model: type[Model]) -> Model: ...

    def parse(self, model: type[Model] | None = None) -> object:
        """Return the text as the JSON value that it is, or as an instance of a model class.

        model:  a class with `model_validate_json(text)`, such as a pydantic model
        raises: RequestError when the constraint is not satisfied or the text is not JSON; what the class raises
        """
        if self.constraint_satisfied is False:
            raise RequestError(
                f"the answer is unfinished (finish_reason {self.finish_reason!r} after {self.completion_tokens}"
                " tokens), so it is not what the constraint asks for; raise max_tokens"
            )
        if model is not None:
            return cast("JSONModel", model).model_validate_json(self.text)
        try:
            return json.loads(self.text)
        except ValueError as error:
            raise RequestError(f"the answer is not JSON: {error}; ask with Constraint.json_schema(...)") from None


class Transcript:
    """Reads the new ids of a sequence as text, from whatever thread, and sums up at the end.

    n_seen:  ids read so far
    ended:   whether everything has been read: the sequence ended, or a stop string was found
    streams: gives a fresh decoder
    """

    def __init__(self, sequence: Sequence, streams: Callable[[], TextStream]) -> None:
        self.sequence = sequence
        self.streams = streams
        self.stream = streams()
        self.n_seen = 0
        self.ended = False
        self.pieces: list[str] = []

    def read(self) -> str:
        """Return the text that has become certain since the last call."""
        # The reason is read before the ids: once it is set, all ids are there.
        reason = self.sequence.finish_reason
        n_ids = len(self.sequence.output_ids)
        stop_ids = self.sequence.state.stop_ids
        text = ""
        while self.n_seen < n_ids and self.stream.stopped is None:
            token_id = self.sequence.output_ids[self.n_seen]
            self.n_seen += 1
            if token_id not in stop_ids:
                text += self.stream.push(token_id)
        if reason is not None:
            text += self.stream.flush()
        self.ended = reason is not None or self.stream.stopped is not None
        if text:
            self.pieces.append(text)
        return text

    def completion(self, load_ms: float) -> Completion:
        """Return the sum of what was read."""
        sequence = self.sequence
        token_ids = tuple(sequence.output_ids[: self.n_seen])
        reason, stop = sequence.finish_reason or "aborted", self.stop_reached(token_ids)
        timings, n_decoded = sequence.timings, max(len(sequence.output_ids) - 1, 0)
        return Completion(
            text="".join(self.pieces),
            token_ids=token_ids,
            finish_reason=reason if stop is None else "stop",
            stop=stop,
            prompt_tokens=len(sequence.prompt_ids),
            completion_tokens=len(token_ids),
            logprobs=tuple(sequence.logprobs[: self.n_seen]),
            seed=sequence.seed,
            constraint_satisfied=self.satisfies_constraint(),
            timings=CompletionTimings(
                load_ms=load_ms,
                prefill_ms=timings.prefill_ms,
                decode_ms=timings.decode_ms,
                prompt_tokens_per_s=per_second(len(sequence.prompt_ids), timings.prefill_ms),
                tokens_per_s=per_second(n_decoded, timings.decode_ms),
            ),
            candidates=tuple(self.candidate(hypothesis) for hypothesis in sequence.hypotheses),
        )

    def satisfies_constraint(self) -> bool | None:
        """Return whether all of the text has been read, uncut, and is complete under the constraint; None without."""
        sequence = self.sequence
        constraint = sequence.state.constraint
        if constraint is None:
            return None
        is_whole = sequence.finish_reason in ("stop", "length") and self.n_seen == len(sequence.output_ids)
        return is_whole and self.stream.stopped is None and constraint.is_complete

    def candidate(self, hypothesis: Hypothesis) -> Candidate:
        """Return a hypothesis as text, cut at a stop string as any other."""
        stream = self.streams()
        stop_ids = self.sequence.state.stop_ids
        text = "".join(stream.push(token_id) for token_id in hypothesis.token_ids if token_id not in stop_ids)
        text += stream.flush()
        reason = hypothesis.finish_reason if stream.stopped is None else "stop"
        return Candidate(text, hypothesis.token_ids, hypothesis.score, reason)

    def stop_reached(self, token_ids: tuple[int, ...]) -> str | int | None:
        """Return the stop string or id that ended the text."""
        if self.stream.stopped is not None:
            return self.stream.stopped
        if token_ids and token_ids[-1] in self.sequence.state.stop_ids:
            return token_ids[-1]
        return None


class CompletionStream:
    """Iterator over pieces of text as they are generated; `completion` is there when it has ended.

    Closing it (close(), a with block, an exception, dropping it) ends the generation and frees its cache; `completion`
    then holds what had been read.
    """

    def __init__(self, shared: SharedEngine, transcript: Transcript, load_ms: float) -> None:
        self.shared = shared
        self.transcript = transcript
        self.load_ms = load_ms
        self.completion: Completion | None = None

    @property
    def seed(self) -> int:
        """The seed that gives the same ids again; known from the start."""
        return self.transcript.sequence.seed

    def __iter__(self) -> CompletionStream:
        return self

    def __next__(self) -> str:
        """Return the next piece, never empty."""
        try:
            while self.completion is None:
                piece = self.transcript.read()
                if self.transcript.ended:
                    self.close()
                    raise_error_of(self.transcript.sequence)
                if piece:
                    return piece
                if not self.transcript.ended:
                    self.shared.wait(self.transcript.sequence, self.transcript.n_seen)
        except BaseException:
            self.close()
            raise
        raise StopIteration

    def close(self) -> None:
        """End the generation if it runs, and set `completion`."""
        if self.completion is None:
            end(self.shared, self.transcript)
            self.completion = self.transcript.completion(self.load_ms)

    def __enter__(self) -> CompletionStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self.completion is None:
            self.shared.abandon(self.transcript.sequence)


class AsyncCompletionStream:
    """The same for `async for`: the steps run in a driver thread, batched with all other requests of the engine.

    Cancelling the task that waits for a piece, aclose(), an async with block, or dropping it ends the generation.
    """

    def __init__(self, shared: SharedEngine, transcript: Transcript, load_ms: float, event: asyncio.Event) -> None:
        self.shared = shared
        self.transcript = transcript
        self.load_ms = load_ms
        self.event = event
        self.completion: Completion | None = None

    @property
    def seed(self) -> int:
        """The seed that gives the same ids again; known from the start."""
        return self.transcript.sequence.seed

    def __aiter__(self) -> AsyncCompletionStream:
        return self

    async def __anext__(self) -> str:
        """Return the next piece, never empty."""
        try:
            while self.completion is None:
                piece = self.transcript.read()
                if self.transcript.ended:
                    self.close()
                    raise_error_of(self.transcript.sequence)
                if piece:
                    return piece
                if not self.transcript.ended:
                    await self.wait_for_progress()
        except BaseException:
            self.close()
            raise
        raise StopAsyncIteration

    async def wait_for_progress(self) -> None:
        """Return when there is something to read."""
        # Progress after the look at it sets the event again, so none is missed.
        self.event.clear()
        if not has_progress(self.transcript.sequence, self.transcript.n_seen):
            await self.event.wait()

    async def aclose(self) -> None:
        """End the generation if it runs, and set `completion`."""
        self.close()

    def close(self) -> None:
        """As aclose, for callers that cannot wait; it never blocks."""
        if self.completion is None:
            end(self.shared, self.transcript)
            self.completion = self.transcript.completion(self.load_ms)

    async def __aenter__(self) -> AsyncCompletionStream:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self.completion is None:
            self.shared.abandon(self.transcript.sequence)


def end(shared: SharedEngine, transcript: Transcript) -> None:
    """End the sequence: "stop" when a stop string was found, else "aborted" unless it has ended by itself."""
    shared.finish(transcript.sequence, "aborted" if transcript.stream.stopped is None else "stop")


def raise_error_of(sequence: Sequence) -> None:
    """Raise what made the engine give the sequence up, if anything did."""
    if sequence.error is not None:
        raise sequence.error


def per_second(count: int, elapsed_ms: float) -> float:
    """Return count per second, 0 when no time was measured."""
    return count / elapsed_ms * 1e3 if elapsed_ms > 0 else 0.0
