"""`phlite perplexity`: the figure, its progress on a terminal, and what it refuses."""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from e2e.terminal import Terminal

Phlite = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    draw = random.Random(5)
    path.write_text("".join(draw.choice("abcdefgh .\n") for _ in range(2000)) + "é\n", encoding="utf-8")
    return path


def test_the_figure_goes_to_stdout_and_nothing_to_stderr(phlite: Phlite, endless_model: Path, text_file: Path) -> None:
    result = phlite("perplexity", endless_model, text_file, "-c", "128", "--windows", "3")
    assert re.fullmatch(r"perplexity [\d.]+ \+/- [\d.]+ \(189 tokens of 3 windows of 128\)\n", result.stdout)
    assert (result.returncode, result.stderr) == (0, "")


def test_json_has_the_same_figure_from_standard_input(phlite: Phlite, endless_model: Path, text_file: Path) -> None:
    line = phlite("perplexity", endless_model, text_file, "-c", "128").stdout
    result = phlite("perplexity", endless_model, "-", "-c", "128", "--json", stdin=text_file.read_bytes())
    values = json.loads(result.stdout)
    assert line.startswith(f"perplexity {values['perplexity']:.4f} +/- {values['standard_error']:.5f} ")
    assert (values["n_ctx"], values["stride"], values["kv_type"]) == (128, None, "f16")


def test_a_terminal_shows_a_bar_with_the_running_figure(
    terminal: Callable[..., Terminal], endless_model: Path, text_file: Path
) -> None:
    shown = terminal("perplexity", endless_model, text_file, "-c", "64")
    shown.expect("perplexity ")
    assert shown.wait() == 0
    figure = re.findall(r"perplexity ([\d.]+) \+/-", shown.shown)[-1]
    assert re.search(rf"windows .*perplexity {figure}", shown.shown.replace("\x1b", ""))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe text", "is not UTF-8: byte 0 is 0xff"),
        (b"text\0more", "is not a text: byte 4 is 0"),
        (b"short", "expected at least 1024, two windows of n_ctx = 512"),
        (b"", "the text has 0 tokens"),
    ],
)
def test_a_file_that_cannot_be_measured_is_one_line(
    phlite: Phlite, endless_model: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "file").write_bytes(content)
    result = phlite("perplexity", endless_model, tmp_path / "file")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert message in result.stderr


def test_a_missing_file_is_noticed_before_a_model_is_loaded(phlite: Phlite, tmp_path: Path) -> None:
    result = phlite("perplexity", "no-such-model", tmp_path / "none.txt")
    assert (result.returncode, "none.txt cannot be read" in result.stderr) == (2, True)
