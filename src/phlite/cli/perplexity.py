"""`phlite perplexity MODEL FILE`: how well a model predicts a text, in the windows of llama.cpp's tool of the name."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from phlite.cli.parser import Parser, integer, scaled_path
from phlite.errors import RequestError

if TYPE_CHECKING:
    from phlite.llm import LLM
    from phlite.perplexity import Perplexity

EPILOG = """\
The text's tokens are cut into windows of --ctx, each encoded by itself; the tokens of its second half are scored. The
result is exp of their mean negative log-likelihood, with its standard error: lower is better, and only figures of the
same text, the same windows and the same vocabulary can be compared."""


def add_arguments(parser: Parser) -> None:
    """The arguments of `phlite perplexity`."""
    add = parser.add_argument
    add("name", help="which model: a name, owner/repo or a path")
    add("file", help="a text file in UTF-8; - is standard input")
    add("-c", "--ctx", type=integer(8), default=512, metavar="N", help="tokens of a window (512)")
    add("--stride", type=integer(1), metavar="N", help="begin a window every N tokens and score its last N")
    add("--windows", type=integer(1), metavar="N", help="only the first N windows")
    add("--lora", action="append", default=[], type=scaled_path, metavar="PATH[=SCALE]", help="a LoRA adapter")
    add("-t", "--threads", type=integer(1), metavar="N", help="threads (one per physical core)")
    add("--kv-type", choices=["f16", "q8_0", "f32"], default="f16", help="precision of the attention cache (f16)")
    add("--quant", metavar="TYPE", help="quantise a safetensors checkpoint while loading it, e.g. to Q4_K_M")
    add("--offline", action="store_true", help="never use the network")
    add("--json", action="store_true", help="one JSON object instead of the line")


def run(options: argparse.Namespace) -> int:
    """Measure with a bar on stderr, where that is a terminal; print the figure."""
    from phlite import load

    text = read_text(options.file)
    llm = load(
        options.name,
        n_ctx=options.ctx,
        threads=options.threads,
        kv_type=options.kv_type,
        quant=options.quant,
        offline=options.offline,
        progress=True,
        lora=dict(options.lora),
    )
    started_s = time.perf_counter()
    with _shown_progress() as show:
        result = llm.perplexity(
            text, n_ctx=options.ctx, stride=options.stride, max_windows=options.windows, on_progress=show
        )
    print(_json(options, llm, result, time.perf_counter() - started_s) if options.json else _line(options, result))
    return 0


def read_text(file: str) -> str:
    """Return the text of a file without its last line end; raises RequestError where it is not text."""
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise RequestError(f"{file} cannot be read: {error.strerror or error}; give a text file") from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{file} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}; give a text file in UTF-8"
        ) from None
    if "\0" in text:
        raise RequestError(f"{file} is not a text: byte {data.index(0)} is 0; give a text file in UTF-8")
    return text.removesuffix("\n")


@contextmanager
def _shown_progress() -> Iterator[Callable[[Perplexity], None] | None]:
    """Give what draws a bar with the figure so far and the time left, or None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("windows"), BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.description}"))
    bar = Progress(*columns, TimeRemainingColumn(), console=Console(file=sys.stderr), refresh_per_second=8)
    with bar:
        task = bar.add_task("perplexity ...", total=None)

        def show(figure: Perplexity) -> None:
            bar.update(
                task,
                total=figure.n_windows_all,
                completed=figure.n_windows,
                description=f"perplexity {figure.value:.4f}",
            )

        yield show


def _line(options: argparse.Namespace, result: Perplexity) -> str:
    return (
        f"perplexity {result.value:.4f} +/- {result.standard_error:.5f} "
        f"({result.n_tokens} tokens of {result.n_windows} windows of {options.ctx})"
    )


def _json(options: argparse.Namespace, llm: LLM, result: Perplexity, elapsed_s: float) -> str:
    from phlite import __version__
    from phlite.ops import isa_name

    return json.dumps(
        {
            "perplexity": result.value,
            "standard_error": result.standard_error,
            "mean_nll": result.mean_nll,
            "n_tokens": result.n_tokens,
            "n_windows": result.n_windows,
            "n_ctx": options.ctx,
            "stride": options.stride,
            "elapsed_s": round(elapsed_s, 3),
            "model": llm.name,
            "file": options.file,
            "lora": dict(options.lora),
            "kv_type": options.kv_type,
            "isa": isa_name(),
            "phlite_version": __version__,
        }
    )
