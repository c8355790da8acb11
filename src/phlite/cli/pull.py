"""`phlite pull NAME`: download a model, or bring it up to date and verify all of it."""

from __future__ import annotations

import argparse
import sys

from phlite.cli.parser import Parser
from phlite.hub import fetch, format_bytes

EPILOG = """\
A model that is there is compared with the hub's newest revision, and read whole to verify its checksum.
An interrupted download continues where it ended.

names:  phi3  phi3:mini-128k  phi3.5  phi4  phi4-mini  phi3:mini-4k-q8_0 (another quantisation)
        owner/repo  owner/repo:Q5_K_M  owner/repo@revision:file.gguf"""


def add_arguments(parser: Parser) -> None:
    """The arguments of `phlite pull`."""
    parser.add_argument("name", help="which model (see below)")
    parser.add_argument("--force", action="store_true", help="download again whatever is there")
    parser.add_argument("--pack", action="store_true", help="also make the packed copy of `phlite pack`")


def run(options: argparse.Namespace) -> int:
    """Fetch, and say where it is."""
    model = fetch(options.name, progress=True, refresh=not options.force, force=options.force)
    size_bytes = sum(path.stat().st_size for path in model.paths)
    print(f"{options.name} is ready: {model.folder or model.gguf} ({format_bytes(size_bytes)})", file=sys.stderr)
    if options.pack:
        from phlite.cli.pack import pack

        pack(options.name, model.gguf, threads=None)
    return 0
