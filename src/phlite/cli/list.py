"""`phlite list`: the models on this machine."""

from __future__ import annotations

import argparse
import json
import sys

from phlite.cli.parser import Parser
from phlite.hub import CachedModel, cache_dir, cached_models, format_bytes, known_names, resolve


def add_arguments(parser: Parser) -> None:
    """The arguments of `phlite list`."""
    parser.add_argument("--all", action="store_true", help="also the names that can be downloaded")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")


def run(options: argparse.Namespace) -> int:
    """Print a table, or JSON lines."""
    models = cached_models()
    if options.json:
        for model in models:
            print(json.dumps({**vars(model), "path": str(model.path)}))
        return 0
    rows: list[tuple[str, str, str, str]] = [
        (model.name, _size(model), model.state, f"{model.repo} @ {model.revision[:7]}") for model in models
    ]
    embedded = resolve("haiku").path
    if embedded is not None and embedded.exists():
        rows.insert(0, ("haiku", format_bytes(embedded.stat().st_size), "ok", "inside phlite"))
    if options.all:
        there = {row[0] for row in rows}
        rows += [(name, "", "not downloaded", resolve(name).repo or "") for name in known_names() if name not in there]
    _print_table([("NAME", "SIZE", "STATE", "FROM"), *rows])
    if not models:
        print(f"nothing is downloaded in {cache_dir()}; `phlite pull phi3` does that", file=sys.stderr)
    return 0


def _size(model: CachedModel) -> str:
    if model.state == "partial" and model.total_bytes:
        return f"{100 * model.size_bytes // model.total_bytes} % of {format_bytes(model.total_bytes)}"
    return format_bytes(model.size_bytes)


def _print_table(rows: list[tuple[str, str, str, str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
