"""`phlite quantize IN.gguf OUT.gguf TYPE`: a model file with smaller weights."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from phlite.cli.parser import Parser, integer
from phlite.hub import format_bytes

EPILOG = """\
types:  F16 BF16 Q8_0 Q6_K Q5_K_M Q5_K_S Q5_1 Q5_0 Q4_K_M Q4_K_S Q4_1 Q4_0 IQ4_NL IQ4_XS Q3_K_L Q3_K_M Q3_K_S Q2_K
        Each names a base format and which matrices get a better one, as in llama.cpp. Q4_K_M suits most.

IN.gguf holds F32, F16 or BF16 weights (the first part of a split file will do). An importance matrix, from `phlite
imatrix` or llama.cpp, makes the errors smaller where the model is sensitive; below five bits it is worth its time."""


def add_arguments(parser: Parser) -> None:
    """The arguments of `phlite quantize`."""
    add = parser.add_argument
    add("source", metavar="IN.gguf", help="the model file to read")
    add("target", metavar="OUT.gguf", help="the file to write")
    add("type", metavar="TYPE", help="the file type (see below)")
    add("--imatrix", metavar="FILE", help="an importance matrix, GGUF or .dat")
    add("-t", "--threads", type=integer(1), metavar="N", help="threads (one per physical core)")
    add("--force", action="store_true", help="replace OUT.gguf")
    add("--allow-requantize", action="store_true", help="also read weights that are quantised already")


def run(options: argparse.Namespace) -> int:
    """Write the file, with a bar on stderr, and say how large it is."""
    from phlite import ops
    from phlite.convert.importance import load_importance
    from phlite.convert.mixture import parse_file_type
    from phlite.convert.quantize import plan_types, quantize_file
    from phlite.gguf import load_gguf
    from phlite.hub.progress import TerminalProgress

    file_type = parse_file_type(options.type)
    importance = load_importance(options.imatrix) if options.imatrix else None
    shown = TerminalProgress()
    started_s = time.perf_counter()
    with load_gguf(options.source) as file:
        if importance is not None:
            missing = importance.missing(plan_types(file, file_type, has_importance=True))
            if missing:
                more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
                shown.note(f"{options.imatrix} lacks {', '.join(missing[:3])}{more}: there all columns count alike")
        n_before = sum(tensor.data.nbytes for tensor in file.tensors.values())
        begun = False

        def count(name: str, n_bytes: int) -> None:
            nonlocal begun
            if not begun:
                shown.start(f"quantizing to {file_type.name}", n_before)
                begun = True
            shown.advance(n_bytes)

        try:
            path = quantize_file(
                file,
                options.target,
                file_type,
                importance=importance,
                allow_requantize=options.allow_requantize,
                force=options.force,
                pool=ops.ThreadPool(options.threads or ops.physical_core_count()),
                progress=count,
            )
        finally:
            shown.finish()
    n_after = Path(path).stat().st_size
    print(
        f"{path}: {format_bytes(n_after)}, {n_after / n_before:.0%} of {format_bytes(n_before)}, "
        f"in {time.perf_counter() - started_s:.1f} s",
        file=sys.stderr,
    )
    return 0
