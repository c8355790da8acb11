"""The interactive chat, on a real terminal: turns, commands, Ctrl-C, Ctrl-D, history."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from e2e.terminal import Terminal

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")

Start = Callable[..., Terminal]
CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"


@pytest.fixture
def chat(terminal: Start, endless_model: Path) -> Terminal:
    """A chat that has greeted, with short answers."""
    started = terminal("run", endless_model, "-n", "8", "--stats")
    started.expect(">>> ")
    return started


def prompt_tokens(shown: str) -> int:
    words = shown.split()
    return int(words[words.index("prompt") + 1])


def test_each_answer_is_followed_by_a_new_prompt(chat: Terminal) -> None:
    for _ in range(2):
        chat.type("hello\n")
        assert "tokens/s" in chat.expect(">>> ")


def test_a_conversation_grows_with_each_turn_and_clear_begins_anew(chat: Terminal) -> None:
    sizes = []
    for text in ("hello", "hello", "/clear", "hello"):
        chat.type(f"{text}\n")
        shown = chat.expect(">>> ")
        if text != "/clear":
            sizes.append(prompt_tokens(shown))
    assert sizes[1] > sizes[0]
    assert sizes[2] == sizes[0]


def test_system_instructions_precede_the_conversation(chat: Terminal) -> None:
    chat.type("hello\n")
    without = prompt_tokens(chat.expect(">>> "))
    chat.type("/system be kind\n")
    chat.expect(">>> ")
    chat.type("hello\n")
    assert prompt_tokens(chat.expect(">>> ")) > without


def test_a_line_that_ends_in_a_backslash_goes_on(chat: Terminal) -> None:
    chat.type("one \\\n")
    chat.expect("... ")
    chat.type("two\n")
    assert "tokens/s" in chat.expect(">>> ")


def test_help_lists_the_commands(chat: Terminal) -> None:
    chat.type("/help\n")
    assert "/clear" in chat.expect(">>> ")


def test_an_unknown_command_says_so_and_is_not_sent_to_the_model(chat: Terminal) -> None:
    chat.type("/hepl\n")
    shown = chat.expect(">>> ")
    assert "no command /hepl" in shown
    assert "tokens/s" not in shown


@pytest.mark.parametrize("keys", ["/exit\n", CTRL_D])
def test_exit_and_ctrl_d_leave(chat: Terminal, keys: str) -> None:
    chat.type(keys)
    assert chat.wait() == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal: Start, endless_model: Path) -> None:
    chat = terminal("run", endless_model)
    chat.expect(">>> ")
    for _ in range(2):
        chat.type("hello\r")
        chat.expect("hello")
        chat.expect("p")  # made-up pieces of this vocabulary begin with it: the answer has begun
        chat.type(CTRL_C)
        chat.expect("(stopped)")
        chat.expect(">>> ")
    chat.type("/exit\n")
    assert chat.wait() == 0


def test_ctrl_c_at_the_prompt_drops_the_line_and_stays(chat: Terminal) -> None:
    chat.type("something I would rather not say")
    chat.expect("rather not say")
    time.sleep(0.2)  # a signal between readline's look at signals and its wait for keys is heard at the next key only
    chat.type(CTRL_C)
    chat.expect("leaves)")
    chat.expect(">>> ")
    chat.type("/exit\n")
    assert chat.wait() == 0


def test_a_conversation_that_outgrows_the_context_says_what_to_do(terminal: Start, endless_model: Path) -> None:
    chat = terminal("run", endless_model, "--ctx", "64", "-n", "60")
    chat.expect(">>> ")
    chat.type("hello\n")
    chat.expect(">>> ")
    chat.type("hello again, with a few words more\n")
    assert "/clear begins anew" in chat.expect(">>> ")
    chat.type("/clear\n")
    chat.expect(">>> ")
    chat.type("hello\n")
    assert "/clear begins anew" not in chat.expect(">>> ")


def test_lines_of_an_earlier_chat_can_be_called_up(terminal: Start, endless_model: Path) -> None:
    pytest.importorskip("readline")
    first = terminal("run", endless_model, "-n", "1")
    first.expect(">>> ")
    first.type("hello there\n")
    first.expect(">>> ")
    first.type("/exit\n")
    assert first.wait() == 0
    second = terminal("run", endless_model, "-n", "1")
    second.expect(">>> ")
    second.type(UP)
    second.expect("/exit")
    second.type(UP)
    second.expect("hello there")


def test_the_history_is_for_the_users_eyes_only(chat: Terminal, tmp_path: Path) -> None:
    chat.type("/exit\n")
    chat.wait()
    assert (tmp_path / "state" / "phlite" / "history").stat().st_mode & 0o777 == 0o600
