"""The argument parser of all subcommands, and the value types that several share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

__all__ = ["Parser", "integer", "integers", "number", "or_none", "scaled_path"]


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, exact option names, and --debug everywhere."""

    def __init__(self, command: str, description: str, epilog: str | None = None) -> None:
        super().__init__(
            prog=f"phlite {command}",
            description=description[0].upper() + description[1:] + ".",
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def options(self) -> list[str]:
        """Every option in its long form."""
        return [name for action in self._actions for name in action.option_strings if name.startswith("--")]

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """Argument type: an integer of at least `low` and at most `high`."""
    bound = f"at least {low}" if high is None else f"from {low} to {high}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"got {text!r}, expected an integer {bound}")
        return value

    return parse


def number(text: str) -> float:
    """Argument type: a finite number; whether it makes sense is for the called function to say."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number")
    return value


def integers(low: int) -> Callable[[str], list[int]]:
    """Argument type: integers of at least `low`, separated by commas."""
    one = integer(low)
    return lambda text: [one(part) for part in text.split(",") if part.strip()]


def or_none(kind: Callable[[str], float]) -> Callable[[str], float | None]:
    """Argument type: `none`, or what `kind` accepts."""
    return lambda text: None if text.lower() == "none" else kind(text)


def scaled_path(text: str) -> tuple[str, float]:
    """Argument type: PATH, or PATH=SCALE with a finite number behind the last equals sign."""
    path, equals, scale = text.rpartition("=")
    return (path, number(scale)) if equals and path else (text, 1.0)
