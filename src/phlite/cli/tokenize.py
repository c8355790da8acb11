"""`phlite tokenize NAME TEXT`: how a model reads a text."""

from __future__ import annotations

import argparse
import json
import sys

from phlite.cli.parser import Parser
from phlite.cli.prompt import join_prompt
from phlite.cli.terminal import printable
from phlite.gguf import load_gguf
from phlite.hub import fetch
from phlite.tokenizer import build_tokenizer, load_tokenizer


def add_arguments(parser: Parser) -> None:
    """The arguments of `phlite tokenize`."""
    parser.add_argument("name", help="which model: a name, owner/repo or a path")
    parser.add_argument("text", nargs="*", help="the text; - or nothing reads it from standard input")
    parser.add_argument("--special", action="store_true", help="tokens such as <|user|> in the text are control tokens")
    parser.add_argument("--ids", action="store_true", help="only the ids, as one JSON list")


def run(options: argparse.Namespace) -> int:
    """Print one line per token: id, piece; and the count on stderr."""
    text = join_prompt(options.text or ["-"])
    local = fetch(options.name, progress=True)
    if local.folder is not None:
        tokenizer = load_tokenizer(local.folder)
    else:
        with load_gguf(local.gguf) as file:
            tokenizer = build_tokenizer(file.metadata, source=str(file.paths[0]))
    ids = tokenizer.encode(text, parse_special=options.special)
    if options.ids:
        print(json.dumps(ids))
        return 0
    for token_id in ids:
        print(printable(f"{token_id:>7}  {json.dumps(tokenizer.token_text(token_id), ensure_ascii=False)}"))
    print(f"{len(ids)} tokens, {len(text)} characters", file=sys.stderr)
    return 0
