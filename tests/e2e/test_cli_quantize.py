"""`phlite quantize` as a user runs it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_models import random_checkpoint, tiny_config, write_gguf

from phlite.convert.importance import Importance, ImportanceMatrix, load_importance, save_importance
from phlite.gguf import FileType, load_gguf

Phlite = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("model") / "model.gguf", random_checkpoint(tiny_config()))


def test_a_model_is_written_with_a_type_and_says_its_size(phlite: Phlite, model: Path, tmp_path: Path) -> None:
    result = phlite("quantize", model, tmp_path / "small.gguf", "q4_k_m", "--threads", "2")
    assert (result.returncode, result.stdout) == (0, "")
    assert re.search(r"small\.gguf: [\d.]+ MB, \d\d% of [\d.]+ MB, in [\d.]+ s\n$", result.stderr)
    with load_gguf(tmp_path / "small.gguf") as file:
        assert file.metadata["general.file_type"] == FileType.Q4_K_M


def test_an_importance_matrix_is_used_and_says_what_it_lacks(phlite: Phlite, model: Path, tmp_path: Path) -> None:
    entry = Importance(np.arange(1, 257, dtype=np.float32)[None], np.ones(1, np.float32))
    names = [f"blk.{i}.{part}.weight" for i in range(2) for part in ("attn_qkv", "attn_output", "ffn_up")]
    save_importance(tmp_path / "i.gguf", ImportanceMatrix(dict.fromkeys(names, entry), source=""))
    result = phlite("quantize", model, tmp_path / "out.gguf", "Q4_0", "--imatrix", tmp_path / "i.gguf")
    assert result.returncode == 0
    assert "lacks output.weight, token_embd.weight, blk.0.ffn_down.weight and 1 more" in result.stderr
    with load_gguf(tmp_path / "out.gguf") as file:
        assert file.metadata["quantize.imatrix.file"] == "i.gguf"


def test_quantising_twice_needs_to_be_asked_for(phlite: Phlite, model: Path, tmp_path: Path) -> None:
    phlite("quantize", model, tmp_path / "q8.gguf", "Q8_0")
    refused = phlite("quantize", tmp_path / "q8.gguf", tmp_path / "q4.gguf", "Q4_0")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "--allow-requantize" in refused.stderr
    assert not (tmp_path / "q4.gguf").exists()
    assert phlite("quantize", tmp_path / "q8.gguf", tmp_path / "q4.gguf", "Q4_0", "--allow-requantize").returncode == 0
    again = phlite("quantize", tmp_path / "q8.gguf", tmp_path / "q4.gguf", "Q4_0", "--allow-requantize")
    assert (again.returncode, "is there already" in again.stderr) == (2, True)
    forced = phlite("quantize", tmp_path / "q8.gguf", tmp_path / "q4.gguf", "Q4_0", "--allow-requantize", "--force")
    assert forced.returncode == 0


def test_an_unknown_type_names_the_possible_ones(phlite: Phlite, model: Path, tmp_path: Path) -> None:
    result = phlite("quantize", model, tmp_path / "out.gguf", "Q4")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "possible: F16, BF16, Q8_0, Q6_K" in result.stderr


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("The puck slides over the ice, and the crowd is silent. " * 40, encoding="utf-8")
    return path


def test_an_importance_matrix_is_measured_over_a_text_and_used(
    phlite: Phlite, model: Path, text_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "i.gguf"
    result = phlite("imatrix", model, text_file, "-o", out, "-c", "64", "--windows", "3")
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == f"{out}: 9 tensors, 3 windows of 64 tokens\n"
    matrix = load_importance(out)
    assert (matrix.datasets, matrix.n_chunks, matrix.chunk_size) == (("text.txt",), 3, 64)
    assert {entry.counts.tolist()[0] for entry in matrix.entries.values()} == {192.0}
    refused = phlite("imatrix", model, text_file, "-o", out)
    assert (refused.returncode, "is there already" in refused.stderr) == (2, True)
    result = phlite("quantize", model, tmp_path / "small.gguf", "Q3_K_M", "--imatrix", out)
    assert result.returncode == 0
    assert "lacks token_embd.weight: there all columns count alike" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["-c", "100000"], "two windows"), (["-c", "8192"], "two windows"), (["--windows", "0"], "at least 1")],
)
def test_wrong_windows_are_refused(
    phlite: Phlite, model: Path, text_file: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = phlite("imatrix", model, text_file, "-o", tmp_path / "i.gguf", *arguments)
    assert (result.returncode, message in result.stderr) == (2, True)
    assert not (tmp_path / "i.gguf").exists()
