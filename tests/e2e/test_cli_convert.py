"""phlite convert through the real program: what it writes, what it refuses, and what an interruption leaves."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import random_checkpoint, tiny_config, write_hf_folder

Phlite = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = tiny_config(max_position_embeddings=512, original_max_position_embeddings=512)
    return write_hf_folder(tmp_path / "Tiny-instruct", random_checkpoint(config, "BF16"))


def test_convert_writes_a_file_that_answers_like_the_folder(phlite: Phlite, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny-q4_k_m.gguf"
    converted = phlite("convert", folder, out, "--type", "q4_k_m")
    assert (converted.returncode, converted.stdout) == (0, "")
    assert "Writing tiny-q4_k_m.gguf" in converted.stderr
    question = ("-n", "8", "--temperature", "0", "the thing")
    assert phlite("run", out, *question).stdout == phlite("run", folder, "--quant", "Q4_K_M", *question).stdout
    shown = phlite("show", out).stdout
    assert "Q4_K_M" in shown
    assert "Tiny-instruct" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("FOLDER", "out.bin"), "expected a name that ends in .gguf"),
        (("FOLDER", "there.gguf"), "is there already"),
        (("FOLDER", "out.gguf", "--type", "Q4"), "type 'Q4' cannot be written; possible: F16"),
        (("FOLDER", "no/out.gguf"), "is no folder"),
        (("there.gguf", "out.gguf"), "expected one with config.json"),
        (("nowhere/at-all/x", "out.gguf"), "nowhere"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    phlite: Phlite, folder: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "there.gguf").write_text("precious")
    places = [folder if a == "FOLDER" else tmp_path / a if ".gguf" in a or ".bin" in a else a for a in arguments]
    result = phlite("convert", *places)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert (tmp_path / "there.gguf").read_text() == "precious"
    assert not list(tmp_path.glob("out*"))


def test_force_replaces_what_is_there(phlite: Phlite, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "there.gguf"
    out.write_text("old")
    assert phlite("convert", folder, out, "--force").returncode == 0
    assert out.read_bytes()[:4] == b"GGUF"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_an_interrupted_conversion_leaves_no_file(tmp_path: Path, program_environment: dict[str, str]) -> None:
    config = tiny_config(hidden_size=1024, num_attention_heads=8, num_key_value_heads=8, intermediate_size=4096)
    folder = write_hf_folder(tmp_path / "model", random_checkpoint({**config, "num_hidden_layers": 6}, "BF16"))
    command = [sys.executable, "-m", "phlite", "convert", str(folder), str(tmp_path / "out.gguf"), "--type", "Q2_K"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=program_environment) as process:
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob("*.part")) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_show_and_tokenize_know_a_folder(phlite: Phlite, folder: Path) -> None:
    shown = phlite("show", "-v", folder).stdout
    for text in (
        "checkpoint",
        "phi3",
        "BF16",
        "max_position_embeddings",
        "model.layers.1.mlp.down_proj.weight",
        "<|end|>",
    ):
        assert text in shown
    assert phlite("tokenize", folder, "--ids", "the").stdout == "[293]\n"
