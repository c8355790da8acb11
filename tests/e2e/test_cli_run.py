"""`phlite run` with a prompt: what goes to which stream, where prompts come from, how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import random_checkpoint, tiny_config, write_gguf

Phlite = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and pipes as on POSIX systems")


def seed_in(stderr: str) -> str:
    found = re.search(r"seed\s+(\d+)", stderr)
    assert found, stderr
    return found.group(1)


def test_the_answer_is_all_that_is_on_stdout_and_nothing_is_on_stderr(phlite: Phlite, endless_model: Path) -> None:
    result = phlite("run", endless_model, "-n", "10", "hello")
    assert result.returncode == 0
    assert result.stdout.strip()
    assert result.stdout.endswith("\n")
    assert result.stderr == ""


def test_the_printed_seed_gives_the_same_answer_again(phlite: Phlite, endless_model: Path) -> None:
    first = phlite("run", endless_model, "-n", "20", "--verbose-seed", "hello")
    again = phlite("run", endless_model, "-n", "20", "--seed", seed_in(first.stderr), "hello")
    assert again.stdout == first.stdout


def test_other_seeds_give_other_answers(phlite: Phlite, endless_model: Path) -> None:
    answers = {phlite("run", endless_model, "-n", "20", "--seed", seed, "hello").stdout for seed in ("1", "2")}
    assert len(answers) == 2


def test_options_may_stand_between_the_words_of_a_prompt(phlite: Phlite, endless_model: Path) -> None:
    one = phlite("run", endless_model, "--seed", "1", "-n", "10", "a few words")
    other = phlite("run", endless_model, "a", "--seed", "1", "few", "-n", "10", "words")
    assert one.stdout == other.stdout


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_a_prompt_can_be_piped_in(phlite: Phlite, endless_model: Path, arguments: list[str]) -> None:
    piped = phlite("run", endless_model, "--seed", "1", "-n", "10", *arguments, stdin="a few words\n")
    given = phlite("run", endless_model, "--seed", "1", "-n", "10", "a few words")
    assert piped.stdout == given.stdout


def test_piped_text_can_follow_an_instruction(phlite: Phlite, endless_model: Path) -> None:
    piped = phlite("run", endless_model, "--seed", "1", "-n", "10", "Summarise:", "-", stdin="the text")
    given = phlite("run", endless_model, "--seed", "1", "-n", "10", "Summarise:\n\nthe text")
    assert piped.stdout == given.stdout


def test_raw_continues_the_prompt_without_a_template(phlite: Phlite, endless_model: Path) -> None:
    arguments = ("run", endless_model, "--stats", "-n", "1", "hello")
    in_chat, raw = phlite(*arguments), phlite(*arguments, "--raw")
    tokens = [int(re.search(r"prompt\s+(\d+) tokens", result.stderr)[1]) for result in (in_chat, raw)]  # type: ignore[index]
    assert tokens[0] > tokens[1]


def test_stats_name_speeds_times_memory_and_seed(phlite: Phlite, endless_model: Path) -> None:
    result = phlite("run", endless_model, "--stats", "-n", "10", "hello")
    for pattern in (
        r"prompt +\d+ tokens +[\d.]+ tokens/s",
        r"answer +10 tokens +[\d.]+ tokens/s",
        r"first token +\d+ ms",
        r"load +\d+ ms",
        r"peak memory +[\d.]+ MB",
        r"seed +\d+",
        r"sampling +temperature 1.0, repeat penalty 1.2, repeat last n 64\n",
    ):
        assert re.search(pattern, result.stderr), pattern
    assert "tokens/s" not in result.stdout


@pytest.fixture
def recommending_model(tmp_path: Path) -> Path:
    """A model file that recommends sampling."""
    sampling: dict[str, int | float] = {"temp": 0.7, "top_k": 40, "penalty_repeat": 1.0}
    return write_gguf(tmp_path / "recommending.gguf", random_checkpoint(tiny_config(), "Q8_0"), sampling=sampling)


@pytest.mark.parametrize(
    ("arguments", "sampling"),
    [
        ([], "temperature 0.7, top k 40, repeat penalty 1.0, repeat last n 64"),
        (["--temperature", "0.2"], "temperature 0.2, top k 40, repeat penalty 1.0, repeat last n 64"),
        (["--top-k", "none", "--repeat-last-n", "8"], "temperature 0.7, repeat penalty 1.0, repeat last n 8"),
        (
            ["--sampler-order", "llama.cpp", "--top-k", "none", "--mirostat", "2"],
            "temperature 0.7, repeat penalty 1.0, repeat last n 64, mirostat 2, sampler order llama.cpp",
        ),
        (["--num-beams", "3"], "temperature 0.0, repeat penalty 1.0, repeat last n 64, num beams 3"),
    ],
)
def test_options_replace_what_the_file_recommends(
    phlite: Phlite, recommending_model: Path, arguments: list[str], sampling: str
) -> None:
    result = phlite("run", recommending_model, "--stats", "-n", "1", *arguments, "hello")
    assert f"sampling    {sampling}\n" in result.stderr


def test_the_answer_is_the_same_without_prompt_lookup(phlite: Phlite, endless_model: Path) -> None:
    arguments = ("run", endless_model, "--seed", "1", "-n", "60", "one two one two one two")
    assert phlite(*arguments, "--prompt-lookup", "0").stdout == phlite(*arguments).stdout


def test_the_default_limit_is_the_tutorials_hundred_tokens(phlite: Phlite, endless_model: Path) -> None:
    assert re.search(r"answer +100 tokens", phlite("run", endless_model, "--stats", "hello").stderr)


def test_a_limit_of_zero_is_no_limit_but_the_context(phlite: Phlite, endless_model: Path) -> None:
    result = phlite("run", endless_model, "--stats", "-n", "0", "--ctx", "256", "hello")
    prompt, answer = (int(n) for n in re.findall(r"(\d+) tokens ", result.stderr))
    assert prompt + answer == 256


def test_a_stop_string_ends_the_answer_and_is_not_printed(phlite: Phlite, endless_model: Path) -> None:
    whole = phlite("run", endless_model, "--seed", "1", "-n", "30", "hello").stdout.strip()
    stop = whole[len(whole) // 2 :][:4]
    cut = phlite("run", endless_model, "--seed", "1", "-n", "30", "--stop", stop, "hello").stdout
    assert cut.strip() == whole[: whole.index(stop)].strip()


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        (["nonesuch", "x"], "", "Unknown model 'nonesuch'"),
        (["./nonesuch.gguf", "x"], "", "there is no file or folder nonesuch.gguf"),
        (["MODEL"], "", "the prompt is empty"),
        (["MODEL"], b"\xff\xfe", "standard input is not UTF-8: byte 0 is 0xff"),
        (["MODEL", "-", "-"], "x", "can be used once"),
        (["MODEL", "x", "--temperature", "-1"], "", "temperature"),
        (["MODEL", "x", "--temperature", "warm"], "", "expected a number"),
        (["MODEL", "x", "--top-p", "7"], "", "top_p"),
        (["MODEL", "x", "--sampler-order", "gemma"], "", "expected one of candle, transformers, llama.cpp, openai"),
        (["MODEL", "x", "--sampler-order", "top_k,heat"], "", "got 'heat', expected samplers among logit_bias"),
        (["MODEL", "x", "--num-beams", "2", "--temperature", "1"], "", "beams are compared, not drawn"),
        (["MODEL", "x", "--mirostat", "2", "--top-k", "5"], "", "mirostat: got top_k too"),
        (["MODEL", "x", "--seed", "-5"], "", "expected an integer at least 0"),
        (["MODEL", "x", "--ctx", "131073"], "", "n_ctx"),
        (["MODEL", "x", "--device", "cuda"], "", "cpu"),
        (["MODEL", "x", "--sampel-len", "5"], "", "--sampel-len"),
        ([], "", "name"),
        (["phi3:mini-4k", "--offline", "x"], "", "is not in the cache"),
        (["phi3:mini-4k", "x"], "", "cannot reach http://127.0.0.1:9"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    phlite: Phlite, endless_model: Path, arguments: list[str], stdin: str | bytes, said: str
) -> None:
    result = phlite("run", *(str(endless_model) if a == "MODEL" else a for a in arguments), stdin=stdin)
    assert (result.returncode, result.stdout) == (2, "")
    assert said in result.stderr
    assert result.stderr.startswith("phlite")
    assert result.stderr.count("\n") == 1


def test_a_file_that_is_no_model_is_an_error_of_one_line(phlite: Phlite, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + b"\x1b[31m" * 100)
    result = phlite("run", path, "hello")
    assert (result.returncode, result.stderr.count("\n"), "\x1b" in result.stderr) == (2, 1, False)


def test_debug_shows_where_an_error_came_from(phlite: Phlite) -> None:
    result = phlite("run", "nonesuch", "x", "--debug")
    assert "Traceback" in result.stderr
    assert result.returncode != 0


def test_text_is_there_before_the_answer_is_complete(endless_model: Path, program_environment: dict[str, str]) -> None:
    with start(["run", str(endless_model), "-n", "0", "hello"], program_environment) as process:
        assert process.stdout
        assert process.stdout.read(20)
        assert process.poll() is None
        process.kill()


def test_an_interrupt_ends_it_with_130_and_without_a_traceback(
    endless_model: Path, program_environment: dict[str, str]
) -> None:
    with start(["run", str(endless_model), "-n", "0", "hello"], program_environment) as process:
        assert process.stdout
        process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr.decode()) == (130, "interrupted\n")


def test_a_reader_that_goes_away_is_no_error(endless_model: Path, program_environment: dict[str, str]) -> None:
    with start(["run", str(endless_model), "-n", "0", "hello"], program_environment) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.read(20)
        process.stdout.close()
        stderr = process.stderr.read()
        assert process.wait(30) == 141
    assert stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_under_the_output_is_one_line(program_environment: dict[str, str]) -> None:
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [sys.executable, "-m", "phlite", "run", "haiku", "Write a haiku about rain", "--seed", "1"],
            stdout=full,
            stderr=subprocess.PIPE,
            env=program_environment,
            check=False,
        )
    assert (result.returncode, result.stderr.decode()) == (
        2,
        "phlite: cannot write the output: No space left on device; free some, or write elsewhere\n",
    )


def start(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "phlite", *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, bufsize=0
    )


def test_the_embedded_model_writes_a_haiku(phlite: Phlite) -> None:
    result = phlite("run", "haiku", "--seed", "3", "Write a haiku about ice hockey")
    assert result.stderr == ""
    assert len(result.stdout.strip().splitlines()) == 3


def test_the_embedded_model_recommends_its_sampling(phlite: Phlite) -> None:
    result = phlite("run", "haiku", "--stats", "-n", "1", "Write a haiku about ice hockey")
    assert "sampling    temperature 0.7, repeat penalty 1.0, repeat last n 64\n" in result.stderr


def test_the_module_and_the_command_are_the_same_program(phlite: Phlite) -> None:
    assert phlite("--version").stdout == f"phlite {__import__('phlite').__version__}{os.linesep}"
