"""The options of `phlite run` that say what the whole answer must be."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from phlite.errors import RequestError

if TYPE_CHECKING:
    from phlite.completion import Completion
    from phlite.constrained import Constraint

__all__ = ["add_constraint_arguments", "constraint_of", "report_unsatisfied"]


def add_constraint_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options; at most one of them may be given (--choice several times)."""
    group = parser.add_argument_group("what the answer must be", 'needs: pip install "phlite[constrained]"')
    add = group.add_mutually_exclusive_group().add_argument
    add("--json", action="store_true", help="a JSON object")
    add("--json-schema", metavar="FILE|TEXT", help="JSON that this schema describes; text begins with {")
    add("--regex", metavar="PATTERN", help="a text that the whole pattern matches")
    add("--choice", action="append", metavar="TEXT", help="one of these texts; repeat the option")
    add("--grammar", metavar="FILE", help="what a grammar derives, in Lark's or llama.cpp's syntax")


def constraint_of(options: argparse.Namespace) -> Constraint | None:
    """Return the constraint that was asked for, or None; raises RequestError for one that makes no sense."""
    from phlite.constrained import Constraint
    from phlite.constrained.vocabulary import import_llguidance

    if options.json:
        constraint = Constraint.json_object()
    elif options.json_schema is not None:
        schema = options.json_schema
        constraint = Constraint.json_schema(
            schema if schema.lstrip()[:1] == "{" else read_text(schema, "--json-schema")
        )
    elif options.regex is not None:
        constraint = Constraint.regex(options.regex)
    elif options.choice is not None:
        constraint = Constraint.choice(options.choice)
    elif options.grammar is not None:
        constraint = Constraint.grammar(read_text(options.grammar, "--grammar"))
    else:
        return None
    import_llguidance()  # says so before a model is downloaded
    return constraint


def read_text(path: str, option: str) -> str:
    """Return the text of a UTF-8 file."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise RequestError(f"{option}: cannot read {path!r}: {error}") from None


def report_unsatisfied(completion: Completion) -> bool:
    """Say on stderr that an answer is not what was asked for; return whether that is so."""
    if completion.constraint_satisfied is not False:
        return False
    reason = {"length": "-n 0 or a larger --ctx lets it go on", "stop": "a --stop text cut it"}
    hint = reason.get(completion.finish_reason, "it was interrupted")
    print(
        f"phlite: unfinished after {completion.completion_tokens} tokens and not what was asked for: {hint}",
        file=sys.stderr,
    )
    return True
