"""The interactive chat of `phlite run NAME`: history, commands, and Ctrl-C that stops the answer only."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from phlite.cli.run import RunOptions, print_pieces, report
from phlite.errors import ContextLengthError, RequestError

if TYPE_CHECKING:
    from phlite.engine.params import SamplingParams
    from phlite.llm import LLM

PROMPT = ">>> "
MORE = "... "
HISTORY_LINES = 1000

HELP = """\
/clear          begin anew
/system TEXT    set the instructions that precede the conversation, and begin anew
/help           this help
/exit           leave; Ctrl-D does too
A line that ends in \\ continues on the next. Ctrl-C stops an answer, and empties a line being typed."""


@dataclass
class Conversation:
    """The messages so far, oldest first, in the form that chat templates take."""

    system: str | None
    turns: list[dict[str, str]] = field(default_factory=list)

    def messages(self) -> list[dict[str, str]]:
        """Everything that is sent with the next request."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]


def chat(llm: LLM, params: SamplingParams, options: RunOptions) -> int:
    """Talk until /exit or the end of input; returns the exit code."""
    if options.raw:
        raise RequestError("--raw needs a prompt: there is no chat without a chat template.")
    print(f"Chat with {options.name}. /help lists the commands, Ctrl-D leaves.", file=sys.stderr)
    conversation = Conversation(options.system)
    with line_history():
        while (text := read_message()) is not None:
            if text.startswith("/"):
                if not obey(text, conversation):
                    break
            elif text.strip():
                answer(llm, text, conversation, params, options)
    return 0


def read_message() -> str | None:
    """The next message, perhaps of several lines; None at the end of input."""
    lines: list[str] = []
    while True:
        try:
            line = input(MORE if lines else PROMPT)
        except EOFError:
            print(file=sys.stderr)
            return None
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /exit leaves)", file=sys.stderr)
            lines = []
            continue
        if not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line[:-1])


def obey(command: str, conversation: Conversation) -> bool:
    """Carry out a command; False ends the chat."""
    word, _, rest = command.partition(" ")
    if word in ("/exit", "/quit", "/bye"):
        return False
    if word == "/clear":
        conversation.turns.clear()
        print("(cleared)", file=sys.stderr)
    elif word == "/system":
        conversation.system = rest.strip() or None
        conversation.turns.clear()
        print("(set, the conversation begins anew)" if rest.strip() else "(no instructions now)", file=sys.stderr)
    else:
        if word != "/help":
            print(f"there is no command {word}", file=sys.stderr)
        print(HELP, file=sys.stderr)
    return True


def answer(llm: LLM, text: str, conversation: Conversation, params: SamplingParams, options: RunOptions) -> None:
    """Add one exchange to the conversation; an answer that is stopped stays in it as far as it came."""
    conversation.turns.append({"role": "user", "content": text})
    try:
        stream = llm.chat_stream(conversation.messages(), params)
    except ContextLengthError as error:
        conversation.turns.pop()
        print(f"{error}\n(/clear begins anew)", file=sys.stderr)
        return
    with stream:
        try:
            print_pieces(stream)
        except KeyboardInterrupt:
            print("(stopped)", file=sys.stderr)
    if stream.completion:
        conversation.turns.append({"role": "assistant", "content": stream.completion.text})
    report(stream, params, options)
    print(file=sys.stderr)


@contextlib.contextmanager
def line_history() -> Iterator[None]:
    """Line editing, with a history that is kept between chats where the system has readline."""
    try:
        import readline
    except ImportError:  # Windows, where the console edits lines itself
        yield
        return
    path = history_path()
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            readline.write_history_file(path)
            path.chmod(0o600)


def history_path() -> Path:
    """File of the chat history: $XDG_STATE_HOME/phlite/history, by default under ~/.local/state."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "phlite" / "history"
