"""`phlite convert SOURCE OUT.gguf`: a Hugging Face checkpoint as one GGUF file."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from phlite.cli.parser import Parser, integer
from phlite.errors import RequestError
from phlite.hub import TerminalProgress, fetch, format_bytes

if TYPE_CHECKING:
    from phlite.gguf import FileType

EPILOG = """\
examples:
  phlite convert microsoft/Phi-3.5-mini-instruct phi3.5-bf16.gguf
  phlite convert ./my-finetuned-phi3 mine.gguf --type Q4_K_M
  phlite convert phi4-mini phi4-mini-q8_0.gguf --type Q8_0

SOURCE is a folder with config.json, tokenizer.json and safetensors files, a repository that holds them, or a name that
`phlite list --all` knows. phlite and llama.cpp run the result."""


def add_arguments(parser: Parser) -> None:
    """The arguments of `phlite convert`."""
    add = parser.add_argument
    add("source", help="a checkpoint folder, owner/repo, or a name")
    add("out", metavar="OUT.gguf", help="the file to write")
    add("--type", metavar="TYPE", help="F32, F16, BF16, or a quantisation such as Q4_K_M (as stored)")
    add("--name", help="the model's name inside the file (the repository's or folder's)")
    add("--force", action="store_true", help="replace a file that is there")
    add("-t", "--threads", type=integer(1), metavar="N", help="threads (one per physical core)")
    add("--offline", action="store_true", help="never use the network")


def run(options: argparse.Namespace) -> int:
    """Write the file with a progress bar on stderr."""
    from phlite import ops
    from phlite.checkpoint import load_checkpoint
    from phlite.convert import convert_checkpoint

    out = Path(options.out)
    if out.suffix.lower() != ".gguf":
        raise RequestError(f"{out}: expected a name that ends in .gguf")
    if out.exists() and not options.force:
        raise RequestError(f"{out} is there already; choose another name, or replace it with --force")
    file_type = None if options.type is None else _file_type(options.type)
    local = fetch(options.source, progress=True, offline=options.offline or None, checkpoint=True)
    assert local.folder is not None
    started_s, shown = time.perf_counter(), TerminalProgress()
    with load_checkpoint(local.folder) as checkpoint:
        try:
            path = convert_checkpoint(
                checkpoint,
                out,
                file_type=file_type,
                name=options.name or local.base_name,
                pool=ops.ThreadPool(options.threads or ops.physical_core_count()),
                force=options.force,
                on_plan=lambda total_bytes: shown.start(f"Writing {out.name}", total_bytes),
                progress=lambda _, n_bytes: shown.advance(n_bytes),
            )
        except OSError as error:
            raise RequestError(f"{out} cannot be written: {error.strerror or error}") from error
        finally:
            shown.finish()
    seconds = time.perf_counter() - started_s
    print(f"{path} ({format_bytes(path.stat().st_size)}) in {seconds:.1f} s", file=sys.stderr)
    return 0


def _file_type(name: str) -> FileType:
    from phlite.convert.mixture import parse_file_type
    from phlite.gguf import FileType

    return FileType.F32 if name.upper() == "F32" else parse_file_type(name)
