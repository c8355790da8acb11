"""`phlite pack NAME`: keep a model's weights as the kernels want them, so that it starts at once."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from phlite.cli.parser import Parser, integer
from phlite.hub import fetch, format_bytes

EPILOG = """\
Without a packed copy the weights are rearranged in memory at every start, which takes seconds for gigabytes. With one
they are mapped from disk: the start takes milliseconds, programs share the memory, and a model may be larger than it.
The copy takes as much disk as the model, in ~/.cache/phlite/tiles (or under $XDG_CACHE_HOME). It is used as long as the
model file does not change."""


def add_arguments(parser: Parser) -> None:
    """The arguments of `phlite pack`."""
    parser.add_argument("name", help="a model, as for `phlite run`; a name is downloaded first")
    parser.add_argument("--remove", action="store_true", help="delete the packed copy")
    parser.add_argument("--offline", action="store_true", help="never use the network")
    parser.add_argument("-t", "--threads", type=integer(1), metavar="N", help="threads (one per physical core)")


def run(options: argparse.Namespace) -> int:
    """Write the copy, or delete it, and say what was done."""
    from phlite.packing import remove_packed_copy

    model = fetch(options.name, progress=True, offline=options.offline or None).gguf
    if options.remove:
        n_bytes = remove_packed_copy(model)
        done = f"deleted the packed copy, {format_bytes(n_bytes)}" if n_bytes else "it has no packed copy"
        print(f"{options.name}: {done}", file=sys.stderr)
        return 0
    pack(options.name, model, threads=options.threads)
    return 0


def pack(name: str, model: Path, *, threads: int | None) -> None:
    """Write the packed copy of a model file and say where it is."""
    from phlite import ops
    from phlite.packing import write_packed_copy

    started_s = time.perf_counter()
    path = write_packed_copy(model, pool=ops.ThreadPool(threads or ops.physical_core_count()))
    elapsed_s = time.perf_counter() - started_s
    print(f"{name}: packed in {elapsed_s:.1f} s to {path} ({format_bytes(path.stat().st_size)})", file=sys.stderr)
