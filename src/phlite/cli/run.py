"""`phlite run NAME [PROMPT]`: one answer on stdout, or a chat when no prompt is given on a terminal."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from phlite.cli.constraint import add_constraint_arguments, constraint_of, report_unsatisfied
from phlite.cli.parser import Parser, integer, scaled_path
from phlite.cli.prompt import join_prompt
from phlite.cli.sampling import add_sampling, sampling_fields
from phlite.cli.terminal import printable

if TYPE_CHECKING:
    from phlite.completion import CompletionStream
    from phlite.engine.params import SamplingParams
    from phlite.llm import LLM

EPILOG = """\
examples:
  phlite run haiku "Write a haiku about ice hockey"
  phlite run phi3                                       chat; /help lists its commands
  phlite run phi3 "Summarise this:" - < notes.txt       - is standard input
  phlite run phi3.5 --temperature 0 -n 0 "What is RoPE?"
  phlite run phi3.5 --choice good --choice bad "Is this praise? I would buy it again."
  phlite run phi3.5 -n 0 --json-schema invoice.json "Extract the invoice:" - < mail.txt

Sampling that is not given here is what the model file recommends (`phlite show` tells), for the rest that of the
tutorial that phlite starts from, in brackets above: temperature 1.0, repeat penalty 1.2 over the last 64 tokens, at
most 100 tokens, a random seed. A chat has no limit on the tokens of an answer."""

SLOW_LOAD_MS = 1500  # from here on a packed copy is worth a line


@dataclass(frozen=True)
class RunOptions:
    """The command line of `phlite run`, as checked values.

    sampling: fields of SamplingParams that were given; the model's own stand for the others
    """

    name: str
    sampling: Mapping[str, object]
    system: str | None
    raw: bool
    stats: bool
    verbose_seed: bool
    n_ctx: int | None
    threads: int | None
    kv_type: str
    quant: str | None
    offline: bool
    lora: Mapping[str, float]


def add_arguments(parser: Parser) -> None:
    """The arguments of `phlite run`."""
    add = parser.add_argument
    add("name", help="which model: a name such as phi3, owner/repo, or a path")
    add("prompt", nargs="*", help="the prompt; - reads it from standard input; without one, chat")
    text = parser.add_argument_group("prompt")
    text.add_argument("--system", metavar="TEXT", help="instructions that precede the conversation")
    text.add_argument("--raw", action="store_true", help="continue the prompt as it is, without a chat template")
    add_sampling(parser)
    limit = parser.add_argument_group("when to stop").add_argument
    limit("-n", "--sample-len", "--max-tokens", type=integer(0), metavar="N", help="most tokens; 0 is no limit (100)")
    limit("--stop", action="append", default=[], metavar="TEXT", help="stop before this text; may be repeated")
    add_constraint_arguments(parser)
    machine = parser.add_argument_group("machine").add_argument
    machine("--device", choices=["cpu"], default="cpu", help="where to compute")
    machine("-t", "--threads", type=integer(1), metavar="N", help="threads (one per physical core)")
    machine(
        "--ctx", type=integer(2), metavar="N", help="longest conversation in tokens (what the model and memory allow)"
    )
    machine("--kv-type", choices=["f16", "q8_0", "f32"], default="f16", help="precision of the attention cache (f16)")
    machine("--quant", metavar="TYPE", help="quantise a safetensors checkpoint while loading it, e.g. to Q4_K_M")
    text.add_argument(
        "--lora",
        action="append",
        default=[],
        type=scaled_path,
        metavar="PATH[=SCALE]",
        help="a LoRA adapter, PEFT folder or GGUF file; may be repeated",
    )
    machine("--offline", action="store_true", help="never use the network")
    report = parser.add_argument_group("report, on stderr").add_argument
    report("--stats", action="store_true", help="print speeds, load time, memory, sampling and seed")
    report("--verbose-seed", action="store_true", help="print the seed that gives the same answer again")


def run(options: argparse.Namespace) -> int:
    """Answer once, or chat."""
    prompt = options.prompt
    is_chat = not prompt and sys.stdin.isatty()
    if not prompt and not is_chat:
        prompt = ["-"]
    text = None if is_chat else join_prompt(prompt)
    checked = _check(options, limit=None if is_chat else 100)
    llm = _load(checked)
    params = replace(llm.default_params, **checked.sampling)  # type: ignore[arg-type]
    if text is None:
        from phlite.cli.chat import chat

        return chat(llm, params, checked)
    return _answer(llm, text, params, checked)


def _check(options: argparse.Namespace, limit: int | None) -> RunOptions:
    from phlite.engine.params import SamplingParams

    max_tokens = limit if options.sample_len is None else options.sample_len or None
    sampling = {**sampling_fields(options), "max_tokens": max_tokens, "stop": options.stop}
    sampling["constraint"] = constraint_of(options)
    SamplingParams(**sampling)  # refuses a wrong value before a model is downloaded and loaded
    return RunOptions(
        name=options.name,
        sampling=sampling,
        system=options.system,
        raw=options.raw,
        stats=options.stats,
        verbose_seed=options.verbose_seed,
        n_ctx=options.ctx,
        threads=options.threads,
        kv_type=options.kv_type,
        quant=options.quant,
        offline=options.offline,
        lora=dict(options.lora),
    )


def _load(options: RunOptions) -> LLM:
    from phlite.hub import fetch
    from phlite.llm import LLM

    # Downloads show their own bars, so they come first; loading a large file shows only that it goes on.
    is_checkpoint = fetch(options.name, progress=True, offline=options.offline or None).folder is not None
    # A checkpoint that is quantised shows a bar of its own.
    with contextlib.nullcontext() if is_checkpoint else _notice(f"loading {options.name} ..."):
        llm = LLM.load(
            options.name,
            n_ctx=options.n_ctx,
            threads=options.threads,
            kv_type=options.kv_type,
            quant=options.quant,
            offline=options.offline,
            progress=is_checkpoint,
            lora=options.lora,
        )
    if llm.load_ms > SLOW_LOAD_MS and sys.stderr.isatty():
        way = f"`phlite convert {options.name} model.gguf`" if is_checkpoint else f"`phlite pack {options.name}`"
        gain = "does the work once" if is_checkpoint else "makes that milliseconds"
        print(f"(loading took {llm.load_ms / 1e3:.1f} s; {way} {gain})", file=sys.stderr)
    return llm


@contextlib.contextmanager
def _notice(text: str) -> Iterator[None]:
    """Show a line on a terminal while the body runs."""
    if not sys.stderr.isatty():
        yield
        return
    print(text, end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print("\r" + " " * len(text) + "\r", end="", file=sys.stderr, flush=True)


def _answer(llm: LLM, prompt: str, params: SamplingParams, options: RunOptions) -> int:
    if options.raw:
        stream = llm.stream(prompt, params)
    else:
        system = [{"role": "system", "content": options.system}] if options.system else []
        stream = llm.chat_stream([*system, {"role": "user", "content": prompt}], params)
    with stream:
        print_pieces(stream)
    return 2 if report(stream, params, options) else 0


def print_pieces(stream: Iterable[str]) -> None:
    """Print text as it comes, and a line end if it has none.

    On a terminal, control characters are left out: a model's text must not move the cursor or change its state.
    """
    is_terminal = sys.stdout.isatty()
    last = ""
    try:
        for piece in stream:
            shown = printable(piece) if is_terminal else piece
            sys.stdout.write(shown)
            sys.stdout.flush()
            last = shown or last
    finally:
        if not last.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()


def report(stream: CompletionStream, params: SamplingParams, options: RunOptions) -> bool:
    """Say on stderr what was asked for, and that an answer was cut; return whether it misses its constraint by that."""
    from phlite.cli.stats import print_seed, print_stats

    completion = stream.completion
    if completion is None:
        return False
    is_unsatisfied = report_unsatisfied(completion)
    if not is_unsatisfied and completion.finish_reason == "length" and sys.stderr.isatty():
        if completion.completion_tokens == params.max_tokens:
            print(f"(cut after {completion.completion_tokens} tokens; -n 0 lets it finish)", file=sys.stderr)
        else:
            print("(cut: the context is full; --ctx sets its size)", file=sys.stderr)
    if options.stats:
        print_stats(completion, params)
    elif options.verbose_seed:
        print_seed(completion)
    return is_unsatisfied
