"""tokenize, bench, doctor, completion, help: the commands around a model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from phlite.cli import COMMANDS

Phlite = Callable[..., "subprocess.CompletedProcess[str]"]


def test_tokenize_prints_ids_and_pieces(phlite: Phlite, endless_model: Path) -> None:
    result = phlite("tokenize", endless_model, "é")
    assert result.stdout.splitlines()[-2:] == ['    203  "<0xC3>"', '    177  "<0xA9>"']
    assert result.stderr.endswith("tokens, 1 characters\n")


def test_tokenize_ids_are_json_and_can_be_piped(phlite: Phlite, endless_model: Path) -> None:
    given = phlite("tokenize", endless_model, "--ids", "a b")
    piped = phlite("tokenize", endless_model, "--ids", stdin="a b\n")
    assert json.loads(given.stdout) == json.loads(piped.stdout)


def test_special_tokens_in_a_text_are_text_unless_asked_for(phlite: Phlite, endless_model: Path) -> None:
    plain = json.loads(phlite("tokenize", endless_model, "--ids", "<|user|>").stdout)
    special = json.loads(phlite("tokenize", endless_model, "--ids", "--special", "<|user|>").stdout)
    assert 6 not in plain
    assert special == [6]


def test_bench_prints_a_table(phlite: Phlite, endless_model: Path) -> None:
    result = phlite("bench", endless_model, "-p", "8,16", "-n", "4", "-d", "0,24", "-r", "2")
    assert result.returncode == 0
    for test in ("pp8 ", "pp16 ", "tg4 ", "pp8@d24 ", "tg4@d24 "):
        assert test in result.stdout


def test_bench_as_json_has_what_a_comparison_needs(phlite: Phlite, endless_model: Path) -> None:
    result = phlite("bench", endless_model, "-p", "8", "-n", "4", "-d", "16", "-r", "3", "-t", "1,2", "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["test"], row["n_threads"]) for row in rows] == [
        ("pp8@d16", 1),
        ("tg4@d16", 1),
        ("pp8@d16", 2),
        ("tg4@d16", 2),
    ]
    for row in rows:
        assert len(row["samples_tokens_per_s"]) == 3
        assert min(row["samples_tokens_per_s"]) > 0
        assert row["model_bytes"] == endless_model.stat().st_size
        assert {"isa", "kv_type", "load_s", "peak_rss_bytes", "model", "phlite_version", "date"} <= row.keys()


def test_bench_refuses_a_depth_beyond_the_models_context(phlite: Phlite, endless_model: Path) -> None:
    result = phlite("bench", endless_model, "-d", "131072", "-n", "1")
    assert (result.returncode, "n_ctx" in result.stderr) == (2, True)


def test_doctor_reports_the_machine_and_is_content(phlite: Phlite, tmp_path: Path) -> None:
    result = phlite("doctor", env={"HF_TOKEN": "hf_secret"})
    assert result.returncode == 0, result.stdout
    for text in ("instructions", "physical", "available", str(tmp_path), "numpy", "All is well", "HF_TOKEN=(set)"):
        assert text in result.stdout
    assert "hf_secret" not in result.stdout


def test_doctor_finds_a_cache_that_cannot_be_used(phlite: Phlite, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    result = phlite("doctor", env={"HF_HUB_CACHE": str(blocked)})
    assert result.returncode == 2
    assert f"! {'':16}{blocked} cannot be written to" in result.stdout


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"]])
def test_help_lists_every_command(phlite: Phlite, arguments: list[str]) -> None:
    result = phlite(*arguments)
    assert result.returncode == 0
    assert all(f"\n  {name} " in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(phlite: Phlite, name: str) -> None:
    result = phlite(name, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: phlite {name}")


def test_a_misspelt_command_suggests_the_right_one(phlite: Phlite) -> None:
    result = phlite("rnu")
    assert (result.returncode, result.stderr) == (2, "phlite: unknown command 'rnu'; did you mean `phlite run`?\n")


def test_version_and_completion_do_not_load_what_they_do_not_need() -> None:
    code = (
        "import sys; from phlite.cli import main; main(['--version']); main(['completion', 'words', 'run', '2']);"
        "print(sorted({'numpy', 'rich', 'huggingface_hub', 'jinja2', 'tokenizers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_a_cached_model_runs_without_the_download_library(endless_model: Path) -> None:
    code = (
        "import sys; from phlite.cli import main; main(['run', sys.argv[1], '-n', '1', 'hello']);"
        "print(sorted({'rich', 'huggingface_hub', 'tqdm'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code, endless_model], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_valid(phlite: Phlite, shell: str) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    script = phlite("completion", shell).stdout
    subprocess.run([program, "-n"], input=script, text=True, check=True, timeout=30)


def test_bash_completes_commands_options_and_model_names(phlite: Phlite, program_environment: dict[str, str]) -> None:
    program = shutil.which("bash")
    if program is None:
        pytest.skip("bash is not installed")
    script = phlite("completion", "bash").stdout

    def complete(*words: str) -> list[str]:
        typed = " ".join(f"'{word}'" for word in words)
        code = (
            f'phlite() {{ {sys.executable} -m phlite "$@"; }}\n{script}\n'
            f"COMP_WORDS=(phlite {typed}); COMP_CWORD={len(words)}; _phlite; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        )
        done = subprocess.run(
            [program, "-c", code], capture_output=True, text=True, env=program_environment, check=True
        )
        return done.stdout.split()

    assert complete("to") == ["tokenize"]
    assert complete("run", "phi3.") == ["phi3.5:mini", "phi3.5:moe"]
    assert complete("run", "phi3", "--repeat") == ["--repeat-penalty", "--repeat-last-n"]
