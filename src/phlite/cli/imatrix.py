"""`phlite imatrix MODEL TEXT -o FILE`: which columns of a model's weights count, measured over a text."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from phlite.cli.parser import Parser, integer
from phlite.errors import RequestError

EPILOG = """\
The text runs through the model in windows of --ctx tokens; the mean squares of what each matrix is multiplied by say
which of its columns count. `phlite quantize --imatrix FILE` and llama.cpp use the file. Some 100,000 tokens of the kind
of text that the model will see are plenty. MODEL is best the F16 or BF16 file that will be quantised."""


def add_arguments(parser: Parser) -> None:
    """The arguments of `phlite imatrix`."""
    add = parser.add_argument
    add("name", metavar="MODEL", help="which model: a name, owner/repo or a path of a GGUF file")
    add("text", metavar="TEXT", help="a text file in UTF-8; - is standard input")
    add("-o", "--output", required=True, metavar="FILE", help="the importance matrix to write (.gguf)")
    add("-c", "--ctx", type=integer(8), default=512, metavar="N", help="tokens of a window (512)")
    add("--windows", type=integer(1), metavar="N", help="only the first N windows")
    add("-t", "--threads", type=integer(1), metavar="N", help="threads (one per physical core)")
    add("--special", action="store_true", help="tokens such as <|user|> in the text are control tokens")
    add("--force", action="store_true", help="replace FILE")
    add("--offline", action="store_true", help="never use the network")


def run(options: argparse.Namespace) -> int:
    """Measure with a bar on stderr, where that is a terminal; write the file and say what is in it."""
    from phlite import ops
    from phlite.cli.perplexity import read_text
    from phlite.convert.importance import save_importance
    from phlite.gguf import load_gguf
    from phlite.hub import fetch
    from phlite.imatrix import InputSums, watch_windows
    from phlite.models.registry import build_model
    from phlite.perplexity import cut_windows
    from phlite.tokenizer import build_tokenizer

    target = Path(options.output)
    if target.exists() and not options.force:
        raise RequestError(f"{target} is there already; choose another name, or replace it with --force")
    if not target.parent.is_dir():
        raise RequestError(f"{target.parent} is no folder; expected one that exists to write {target.name} to")
    text = read_text(options.text)
    path = fetch(options.name, progress=True, offline=options.offline).gguf
    with load_gguf(path) as file:
        shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
        tokenizer = build_tokenizer(file.metadata, source=str(path))
        ids = tokenizer.encode(text, parse_special=options.special)
        bos_id = tokenizer.bos_id if tokenizer.adds_bos else None
        windows = cut_windows(ids, n_ctx=options.ctx, bos_id=bos_id, max_windows=options.windows)
        model = build_model(file, pool=ops.ThreadPool(options.threads or ops.physical_core_count()))
    longest = model.config.max_position_embeddings
    if options.ctx > longest:
        raise RequestError(f"--ctx: got {options.ctx}, expected at most {longest}, the model's longest context")
    sums = InputSums(shapes)
    with _shown_progress(len(windows.token_ids)) as show:
        for done in watch_windows(model, windows, sums):
            show(done)
    dataset = "standard input" if options.text == "-" else Path(options.text).name
    matrix = sums.matrix(source=str(target), dataset=dataset, n_windows=len(windows.token_ids), n_ctx=options.ctx)
    save_importance(target, matrix)
    print(
        f"{target}: {len(matrix.entries)} tensors, {matrix.n_chunks} windows of {matrix.chunk_size} tokens",
        file=sys.stderr,
    )
    unseen = [name for name, entry in matrix.entries.items() if (entry.counts == 0).any()]
    if unseen:
        print(f"some experts saw no token, such as one of {unseen[0]}; a longer text would help", file=sys.stderr)
    return 0


@contextmanager
def _shown_progress(n_windows: int) -> Iterator[Callable[[int], None]]:
    """Give what draws a bar with the time left; it does nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("windows"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), refresh_per_second=8) as bar:
        task = bar.add_task("", total=n_windows)
        yield lambda done: bar.update(task, completed=done)
