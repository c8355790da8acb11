"""`phlite rm NAME`: delete downloaded models."""

from __future__ import annotations

import argparse
import sys

from phlite.cli.parser import Parser
from phlite.errors import RequestError
from phlite.hub import cached_models, format_bytes, remove_model, resolve


def add_arguments(parser: Parser) -> None:
    """The arguments of `phlite rm`."""
    parser.add_argument("names", nargs="+", metavar="name", help="as `phlite list` shows it; owner/repo for all of it")


def run(options: argparse.Namespace) -> int:
    """Delete each from the cache; local files and the embedded model are never touched."""
    from phlite.packing import remove_packed_copy

    for name in options.names:
        source = resolve(name)
        if source.repo is None:
            raise RequestError(
                f"{name} is no downloaded model but {source.path}; phlite deletes only what it downloaded."
            )
        held = [model for model in cached_models() if model.repo == source.repo]
        files = [source.file] if source.file else [m.file for m in held if source.quant in (None, _quant(m.file))]
        if not any(model.file in files for model in held):
            there = ", ".join(sorted({model.name for model in cached_models()})) or "nothing"
            raise RequestError(f"{name} is not downloaded; there is {there}.")
        freed_bytes = sum(remove_packed_copy(model.path) for model in held if model.file in files)
        freed_bytes += sum(remove_model(source.repo, file) for file in files)
        print(f"deleted {name}, {format_bytes(freed_bytes)}", file=sys.stderr)
    return 0


def _quant(file: str) -> str | None:
    from phlite.hub.choose import quant_of

    return quant_of(file)
