"""A model to talk to: text in, text out. Joins hub, model file, tokenizer and engine.

    llm = phlite.load("haiku")
    print(llm.chat("Write a haiku about ice hockey").text)

Any number of threads and asyncio tasks may use one LLM; their sequences share the engine's forward passes.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard, cast, overload

import numpy as np

from phlite.completion import AsyncCompletionStream, Completion, CompletionStream, Transcript
from phlite.constrained import Constraint
from phlite.engine import Engine, SamplingParams
from phlite.engine.shared import SharedEngine
from phlite.errors import RequestError
from phlite.memory import available_memory_bytes
from phlite.models.base import CausalLM
from phlite.spelling import Speller

if TYPE_CHECKING:
    from phlite.constrained.compiler import ConstraintCompiler
    from phlite.engine import TokenConstraint
    from phlite.perplexity import Perplexity
    from phlite.tokenizer import ChatTemplate, Tokenizer

__all__ = ["LLM", "Message", "load"]

Message = Mapping[str, object]
"""One turn of a conversation: {"role": "system" | "user" | "assistant", "content": text}."""

PromptIds = list[int]

SEQUENCES_OF_CACHE = 8
SHARE_OF_MEMORY = 0.5
SMALLEST_CONTEXT = 512
MOST_THREADS = 1024
LARGEST_CACHE_TOKENS = 1 << 22  # a file may claim any context; tables of some bytes per position are made in advance
MEMORY_IF_UNKNOWN = 4 << 30

logger = logging.getLogger("phlite")


class LLM:
    """A loaded model with its tokenizer and its engine. Use `LLM.load`, or `phlite.load`, which is the same.

    name:           what was loaded, as the caller spelt it
    tokenizer:      text to ids and back
    engine:         the token loop under it, for its facts (n_ctx, cache); step it by hand only if nothing else uses
                    the LLM
    default_params: how answers are sampled where the caller does not say: what the model file recommends (its keys
                    general.sampling.*), for the rest SamplingParams()
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        chat_template: ChatTemplate,
        *,
        name: str = "model",
        load_ms: float = 0.0,
        default_params: SamplingParams | None = None,
    ) -> None:
        self.name = name
        self.engine = engine
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.load_ms = load_ms
        self.default_params = SamplingParams() if default_params is None else default_params
        self.shared = SharedEngine(engine)
        self.speller = Speller(tokenizer)
        self.constraints: ConstraintCompiler | None = None

    @classmethod
    def load(
        cls,
        name_or_path: str,
        *,
        n_ctx: int | None = None,
        threads: int | None = None,
        kv_type: str = "f16",
        quant: str | None = None,
        offline: bool = False,
        progress: bool = False,
        lora: str | os.PathLike[str] | Mapping[str, float] | None = None,
    ) -> LLM:
        """Load a model, downloading it first if it is a name that is not in the cache.

        name_or_path: "haiku" (embedded), "phi3", "phi3.5", ..., "owner/repo[:file]", the path of a .gguf file, or of a
                      Hugging Face folder (config.json, safetensors files, tokenizer.json)
        n_ctx:        longest prompt and answer together, in tokens; default: the model's own limit, or what fits into
                      half of the free memory
        threads:      worker threads; default: one per physical core
        kv_type:      numbers in the cache: "f16", "q8_0" (half the memory) or "f32"
        quant:        type to bring the weights of a safetensors checkpoint to while they are loaded, such as "Q4_K_M";
                      default: as they are stored, or Q4_K_M, with a warning, where that would not fit into memory
        offline:      never use the network
        progress:     show progress bars of the download, and of quantising a checkpoint, on stderr
        lora:         a LoRA adapter (PEFT folder or GGUF file), or a mapping of several to scales; see `add_lora`
        raises:       DownloadError, ModelFileError, UnsupportedModelError, RequestError
        """
        from phlite import ops
        from phlite.hub import fetch
        from phlite.loading import load_checkpoint_folder, load_gguf_file
        from phlite.tokenizer import build_chat_template

        check_load_options(n_ctx=n_ctx, threads=threads, kv_type=kv_type)
        local = fetch(name_or_path, offline=True if offline else None, progress=progress)
        started_s = time.perf_counter()
        pool = ops.ThreadPool(threads or ops.physical_core_count())
        if local.folder is not None:
            loaded = load_checkpoint_folder(
                local.folder, pool=pool, quant=quant, name=local.base_name, progress=progress
            )
        else:
            loaded = load_gguf_file(local.gguf, pool=pool, quant=quant)
        model, tokenizer = loaded.model, loaded.tokenizer
        engine = build_engine(model, n_ctx=n_ctx, kv_type=kv_type, eos_ids=tokenizer.stop_ids)
        load_ms = (time.perf_counter() - started_s) * 1e3
        logger.info(
            "loaded %s in %.0f ms: n_ctx %d (the model's limit is %d), cache %s for %d tokens, %d threads, %s",
            name_or_path,
            load_ms,
            engine.n_ctx,
            model.config.max_position_embeddings,
            kv_type,
            engine.cache_tokens,
            pool.n_threads,
            ops.isa_name(),
        )
        llm = cls(
            engine,
            tokenizer,
            build_chat_template(tokenizer, model_name=loaded.name),
            name=name_or_path,
            load_ms=load_ms,
            default_params=loaded.default_params,
        )
        adapters = {} if lora is None else lora if isinstance(lora, Mapping) else {lora: 1.0}
        for path, scale in adapters.items():
            llm.add_lora(path, scale=scale)
        return llm

    @property
    def n_ctx(self) -> int:
        """Longest prompt and answer together, in tokens."""
        return self.engine.n_ctx

    @overload
    def generate(
        self,
        prompt: str | PromptIds,
        params: SamplingParams | None = None,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        stop: str | Iterable[str] | None = None,
        constraint: Constraint | None = None,
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: list[str] | list[PromptIds],
        params: SamplingParams | None = None,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        stop: str | Iterable[str] | None = None,
        constraint: Constraint | None = None,
    ) -> list[Completion]: ...

    def generate(
        self,
        prompt: str | PromptIds | list[str] | list[PromptIds],
        params: SamplingParams | None = None,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        stop: str | Iterable[str] | None = None,
        constraint: Constraint | None = None,
    ) -> Completion | list[Completion]:
        """Continue a prompt, or a list of prompts side by side. No chat template is applied: see `chat`.

        prompt: text or token ids; a list of texts or of lists of ids gives a list of completions
        params: default `default_params`
        max_tokens, temperature, seed, stop, constraint: replace these fields of params where given
        raises: ContextLengthError, RequestError; what params.logits_function raises
        """
        params = self.merged(
            params, max_tokens=max_tokens, temperature=temperature, seed=seed, stop=stop, constraint=constraint
        )
        if is_one_prompt(prompt):
            return finished(self.start(self.prompt_ids(prompt), params, continues_text=True))
        streams: list[CompletionStream] = []
        try:
            for one in cast("list[str] | list[PromptIds]", prompt):
                streams.append(self.start(self.prompt_ids(one), params, continues_text=True))
            return [finished(stream) for stream in streams]
        finally:
            for stream in streams:
                stream.close()

    def stream(
        self,
        prompt: str | PromptIds,
        params: SamplingParams | None = None,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        stop: str | Iterable[str] | None = None,
        constraint: Constraint | None = None,
    ) -> CompletionStream:
        """Continue a prompt piece by piece; arguments as `generate`. `.completion` is there at the end."""
        params = self.merged(
            params, max_tokens=max_tokens, temperature=temperature, seed=seed, stop=stop, constraint=constraint
        )
        return self.start(self.prompt_ids(prompt), params, continues_text=True)

    def chat(
        self,
        messages: str | Iterable[Message],
        params: SamplingParams | None = None,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        stop: str | Iterable[str] | None = None,
        constraint: Constraint | None = None,
    ) -> Completion:
        """Answer a conversation through the model's chat template.

        messages: what the user says, or all turns so far, the last one the user's
        raises:   as `generate`; RequestError for a message without role or content
        """
        return finished(
            self.chat_stream(
                messages,
                params,
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
                stop=stop,
                constraint=constraint,
            )
        )

    def chat_stream(
        self,
        messages: str | Iterable[Message],
        params: SamplingParams | None = None,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        stop: str | Iterable[str] | None = None,
        constraint: Constraint | None = None,
    ) -> CompletionStream:
        """Answer a conversation piece by piece; arguments as `chat`."""
        params = self.merged(
            params, max_tokens=max_tokens, temperature=temperature, seed=seed, stop=stop, constraint=constraint
        )
        return self.start(self.chat_ids(messages), params, continues_text=False)

    async def agenerate(
        self,
        prompt: str | PromptIds,
        params: SamplingParams | None = None,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        stop: str | Iterable[str] | None = None,
        constraint: Constraint | None = None,
    ) -> Completion:
        """`generate` for asyncio. Requests that wait at the same time run in one batch; cancelling one ends it."""
        return await afinished(
            self.astream(
                prompt,
                params,
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
                stop=stop,
                constraint=constraint,
            )
        )

    def astream(
        self,
        prompt: str | PromptIds,
        params: SamplingParams | None = None,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        stop: str | Iterable[str] | None = None,
        constraint: Constraint | None = None,
    ) -> AsyncCompletionStream:
        """`stream` for `async for`; to be called inside a running event loop."""
        params = self.merged(
            params, max_tokens=max_tokens, temperature=temperature, seed=seed, stop=stop, constraint=constraint
        )
        return self.astart(self.prompt_ids(prompt), params, continues_text=True)

    async def achat(
        self,
        messages: str | Iterable[Message],
        params: SamplingParams | None = None,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        stop: str | Iterable[str] | None = None,
        constraint: Constraint | None = None,
    ) -> Completion:
        """`chat` for asyncio."""
        return await afinished(
            self.achat_stream(
                messages,
                params,
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
                stop=stop,
                constraint=constraint,
            )
        )

    def achat_stream(
        self,
        messages: str | Iterable[Message],
        params: SamplingParams | None = None,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        stop: str | Iterable[str] | None = None,
        constraint: Constraint | None = None,
    ) -> AsyncCompletionStream:
        """`chat_stream` for `async for`; to be called inside a running event loop."""
        params = self.merged(
            params, max_tokens=max_tokens, temperature=temperature, seed=seed, stop=stop, constraint=constraint
        )
        return self.astart(self.chat_ids(messages), params, continues_text=False)

    def perplexity(
        self,
        text: str | PromptIds,
        *,
        n_ctx: int = 512,
        stride: int | None = None,
        max_windows: int | None = None,
        lora: Mapping[str, float] | None = None,
        on_progress: Callable[[Perplexity], object] | None = None,
    ) -> Perplexity:
        """Measure how well the model predicts a text; `phlite.perplexity` says what is computed. Lower is better.

        text:        or its token ids; special tokens spelt in a text are plain text
        n_ctx:       tokens of a window
        stride:      None: windows side by side, their second halves scored; else windows begin every `stride` tokens,
                     and the last `stride` tokens of each are scored
        max_windows: score only so many, from the text's beginning
        lora:        adapters and their scales, as in SamplingParams
        on_progress: called with the figure so far after each forward pass that ended some windows
        raises:      RequestError for a text shorter than two windows, or a number out of range
        """
        from phlite.perplexity import cut_windows, score_windows

        if n_ctx > self.engine.model.config.max_position_embeddings:
            longest = self.engine.model.config.max_position_embeddings
            raise RequestError(f"n_ctx: got {n_ctx}, expected at most {longest}, the model's longest context")
        bos_id = self.tokenizer.bos_id if self.tokenizer.adds_bos else None
        windows = cut_windows(self.prompt_ids(text), n_ctx=n_ctx, stride=stride, bos_id=bos_id, max_windows=max_windows)
        figures = score_windows(
            self.engine.model,
            windows,
            kv_type=self.engine.kv_type,
            lead=self.shared.lead,
            lora=self.engine.adapters.chosen(lora),
        )
        for figure in figures:
            if on_progress is not None:
                on_progress(figure)
        return figure

    def add_lora(self, path: str | os.PathLike[str], *, name: str | None = None, scale: float = 1.0) -> str:
        """Load a LoRA adapter beside the model, whose weights stay as they are, and return its name.

        path:   a folder written by peft, or a GGUF file written by llama.cpp's converter
        name:   what `SamplingParams.lora` calls it; default: the folder's or file's name without ending
        scale:  of what it adds, in requests that name no adapters; 0: only those that name it use it
        raises: ModelFileError, UnsupportedModelError for an adapter of another model or kind; RequestError for a name
                that is taken
        """
        from phlite.engine.checks import checked_lora
        from phlite.models.lora import load_adapter

        place = Path(path)
        name = (place.resolve().name if place.is_dir() else place.stem) if name is None else name
        checked_lora({name: scale})
        with self.shared.lead():  # packing uses the model's threads
            self.engine.adapters.add(load_adapter(place, self.engine.model, name=name), scale)
        return name

    def remove_lora(self, name: str) -> None:
        """Forget an adapter; requests that run with it go on. raises: RequestError for an unknown name."""
        self.engine.adapters.remove(name)

    def merged(
        self,
        params: SamplingParams | None,
        *,
        max_tokens: int | None,
        temperature: float | None,
        seed: int | None,
        stop: str | Iterable[str] | None,
        constraint: Constraint | None,
    ) -> SamplingParams:
        """Return params, or default_params, with the given fields replaced."""
        given = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
            "stop": stop,
            "constraint": constraint,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        params = self.default_params if params is None else params
        return dataclasses.replace(params, **changes) if changes else params  # type: ignore[arg-type]

    def prompt_ids(self, prompt: str | PromptIds) -> list[int]:
        """Return the ids of a plain prompt. Special tokens spelt in it are plain text."""
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)

    def chat_ids(self, messages: str | Iterable[Message]) -> list[int]:
        """Return the ids of a conversation and the head of the answer, as the chat template writes them."""
        turns: list[Message] = [{"role": "user", "content": messages}] if isinstance(messages, str) else [*messages]
        return self.tokenizer.encode_prompt(self.chat_template.render(turns))

    def build_constraint(self, params: SamplingParams, *, continues_text: bool) -> TokenConstraint | None:
        """Return params.constraint compiled for this model, for `Engine.add`; None where there is none.

        continues_text: the answer goes on in the middle of a text, as in `generate`; not so in a chat
        raises:         BackendUnavailableError without llguidance, RequestError for what cannot be compiled
        """
        if params.constraint is None:
            return None
        if self.constraints is None:
            from phlite.constrained.compiler import ConstraintCompiler

            self.constraints = ConstraintCompiler(self.text_bytes, self.tokenizer.encode_continuation)
        leading_space = self.tokenizer.strips_leading_space and not continues_text
        return self.constraints.build_matcher(params.constraint, leading_space=leading_space)

    def text_bytes(self) -> list[bytes]:
        """Return the bytes of text of each row of the model's output, b"" for special tokens and padding."""
        tokenizer = self.tokenizer
        rows = range(self.engine.model.config.vocab_size)
        return [b"" if tokenizer.is_special(row) else tokenizer.token_bytes(row) for row in rows]

    def start(self, prompt_ids: list[int], params: SamplingParams, *, continues_text: bool) -> CompletionStream:
        """Queue a prompt; the stream does the work when it is read. continues_text: a leading space is text."""
        streams = functools.partial(self.tokenizer.stream, stop=params.stop_strings, continues_text=continues_text)
        constraint = self.build_constraint(params, continues_text=continues_text)
        sequence = self.shared.add(prompt_ids, self.speller.spelt(params), constraint=constraint)
        return CompletionStream(self.shared, Transcript(sequence, streams), self.load_ms)

    def astart(self, prompt_ids: list[int], params: SamplingParams, *, continues_text: bool) -> AsyncCompletionStream:
        """Queue a prompt for the driver thread, which wakes the running event loop after each step."""
        # Imported here: programs without asyncio need not wait for it at their start.
        import asyncio

        streams = functools.partial(self.tokenizer.stream, stop=params.stop_strings, continues_text=continues_text)
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        constraint = self.build_constraint(params, continues_text=continues_text)
        sequence = self.shared.add(
            prompt_ids,
            self.speller.spelt(params),
            constraint=constraint,
            on_progress=lambda: loop.call_soon_threadsafe(event.set),
        )
        return AsyncCompletionStream(self.shared, Transcript(sequence, streams), self.load_ms, event)


def load(
    name_or_path: str,
    *,
    n_ctx: int | None = None,
    threads: int | None = None,
    kv_type: str = "f16",
    quant: str | None = None,
    offline: bool = False,
    progress: bool = False,
    lora: str | os.PathLike[str] | Mapping[str, float] | None = None,
) -> LLM:
    """Load a model; the same as `LLM.load`, which describes the arguments."""
    return LLM.load(
        name_or_path,
        n_ctx=n_ctx,
        threads=threads,
        kv_type=kv_type,
        quant=quant,
        offline=offline,
        progress=progress,
        lora=lora,
    )


def check_load_options(*, n_ctx: int | None, threads: int | None, kv_type: str) -> None:
    """Raise RequestError for options that no model allows, before anything is downloaded or loaded."""
    from phlite.ops.attention import KV_DTYPES

    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise RequestError(f"threads: got {threads}, expected 1 to {MOST_THREADS}")
    if n_ctx is not None and n_ctx < 2:
        raise RequestError(f"n_ctx: got {n_ctx}, expected at least 2")
    if kv_type not in KV_DTYPES:
        raise RequestError(f"kv_type: got {kv_type!r}, expected one of {', '.join(KV_DTYPES)}")


def build_engine(model: CausalLM, *, n_ctx: int | None, kv_type: str, eos_ids: Iterable[int]) -> Engine:
    """Return an engine whose cache fits the free memory, with room for several sequences of n_ctx tokens if it can."""
    limit = model.config.max_position_embeddings
    free_bytes = available_memory_bytes() or MEMORY_IF_UNKNOWN
    n_fitting = min(int(free_bytes * SHARE_OF_MEMORY) // model.kv_bytes_per_token(kv_type), LARGEST_CACHE_TOKENS)
    if n_ctx is None:
        n_ctx = min(limit, max(n_fitting // 64 * 64, SMALLEST_CONTEXT))
    elif n_fitting < n_ctx <= limit:  # beyond the limit the engine refuses it
        logger.warning("the cache for n_ctx %d takes more than half of the free memory (%d bytes)", n_ctx, free_bytes)
    cache_tokens = max(n_ctx, min(n_ctx * SEQUENCES_OF_CACHE, n_fitting))
    return Engine(model, n_ctx=n_ctx, kv_type=kv_type, cache_tokens=cache_tokens, eos_ids=eos_ids)


def is_one_prompt(prompt: str | PromptIds | list[str] | list[PromptIds]) -> TypeGuard[str | PromptIds]:
    """Whether this is a text or a list of ids, not a list of prompts. An empty list is an empty prompt."""
    return isinstance(prompt, str) or all(isinstance(item, (int, np.integer)) for item in prompt)


def finished(stream: CompletionStream) -> Completion:
    """Read a stream to its end and return its completion."""
    for _ in stream:
        pass
    assert stream.completion is not None
    return stream.completion


async def afinished(stream: AsyncCompletionStream) -> Completion:
    """Read a stream to its end and return its completion."""
    async for _ in stream:
        pass
    assert stream.completion is not None
    return stream.completion
