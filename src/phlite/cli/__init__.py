"""The command `phlite`: one file per subcommand, each with `add_arguments(parser)` and `run(options) -> exit code`.

The model's text goes to stdout, everything else to stderr. Exit codes: 0 done, 2 an error that one line explains,
130 interrupted, 1 a bug. A command's module, and what it needs, is imported only when that command is called: the
time until the first word counts, and argparse costs a tenth of the libraries that draw nicer help.
"""

from __future__ import annotations

import errno
import gc
import importlib
import io
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from phlite.errors import PhliteError

__all__ = ["COMMANDS", "load_command", "main"]

# name -> what it does; the module is phlite.cli.<name>
COMMANDS = {
    "run": "answer a prompt, or chat",
    "pull": "download a model",
    "pack": "make a model start at once",
    "list": "show the downloaded models",
    "show": "describe a model",
    "rm": "delete a downloaded model",
    "convert": "make a GGUF file of a Hugging Face checkpoint",
    "quantize": "write a model file with smaller weights",
    "imatrix": "measure which weights count, for quantize",
    "tokenize": "show how a model reads a text",
    "bench": "measure the speed of a model on this machine",
    "perplexity": "measure how well a model predicts a text",
    "doctor": "check this installation and machine",
    "completion": "print a shell completion script",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `phlite ARGUMENTS...` and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _prepare_process()
    try:
        return _dispatch(arguments)
    except SystemExit as stop:  # argparse, after --help or a usage error
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output is gone; keep the interpreter from complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if "--debug" in arguments:
            raise
        if isinstance(error, PhliteError):
            print(f"phlite: {_one_line(str(error))}", file=sys.stderr)
            return 2
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = error.filename or "the output"
            print(f"phlite: cannot write {where}: {error.strerror}; free some, or write elsewhere", file=sys.stderr)
            return 2
        print(
            f"phlite: a bug, please report it: {type(error).__name__}: {_one_line(str(error))} (--debug shows where)",
            file=sys.stderr,
        )
        return 1


def load_command(name: str) -> ModuleType:
    """The module of a subcommand."""
    return importlib.import_module(f"phlite.cli.{name}")


def _prepare_process() -> None:
    # NumPy's BLAS is not used, but starts a thread per core when it is loaded: a quarter of NumPy's import time.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Imports make many objects that all stay; at the usual 700 the collector walks them again and again.
    gc.set_threshold(50_000)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Text in any language must not fail where the system's own encoding lacks it (files and pipes on Windows).
            piped_on_windows = sys.platform == "win32" and not stream.isatty() and "PYTHONIOENCODING" not in os.environ
            stream.reconfigure(encoding="utf-8" if piped_on_windows else None, errors="replace")


def _dispatch(arguments: list[str]) -> int:
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help", "help"):
        if len(arguments) > 1 and arguments[1] in COMMANDS:
            return _dispatch([arguments[1], "--help"])
        print(_overview())
        return 0
    if first in ("-V", "--version", "version"):
        from phlite import __version__

        print(f"phlite {__version__}")
        return 0
    if first not in COMMANDS:
        print(f"phlite: unknown command {first!r}{_suggestion(first)}", file=sys.stderr)
        return 2
    from phlite.cli.parser import Parser

    command = load_command(first)
    parser = Parser(first, COMMANDS[first], epilog=getattr(command, "EPILOG", None))
    command.add_arguments(parser)
    code: int = command.run(parser.parse_intermixed_args(arguments[1:]))
    sys.stdout.flush()
    return code


def _overview() -> str:
    lines = ["usage: phlite COMMAND [...]", "", "Phi models on this computer. Begin with:", ""]
    lines += ['  phlite run haiku "Write a haiku about ice hockey"     a tiny model, inside the program', ""]
    lines += ["commands:", *(f"  {name:<12}{text}" for name, text in COMMANDS.items())]
    return "\n".join([*lines, "", "`phlite COMMAND --help` explains a command; `phlite --version` prints the version."])


def _suggestion(name: str) -> str:
    import difflib

    nearest = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    return f"; did you mean `phlite {nearest[0]}`?" if nearest else f"; commands: {', '.join(COMMANDS)}"


def _one_line(text: str) -> str:
    from phlite.cli.terminal import printable

    return printable(" ".join(text.split()))
