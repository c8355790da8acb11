"""--lora on the command line, with an adapter of the model that never ends."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import random_checkpoint, tiny_config
from tiny_models.lora import random_lora, write_gguf_lora, write_peft

Phlite = Callable[..., "subprocess.CompletedProcess[str]"]
ASK = ("--temperature", "0", "--repeat-penalty", "1", "-n", "16", "--raw", "hello")


@pytest.fixture(scope="module")
def pairs():
    config = tiny_config(vocab_size=4096, hidden_size=128, intermediate_size=256, num_attention_heads=2)
    return random_lora(random_checkpoint(config | {"num_key_value_heads": 2}), ["qkv_proj", "down_proj"])


def test_an_adapter_changes_the_answer_and_a_scale_of_0_does_not(
    phlite: Phlite, endless_model: Path, tmp_path: Path, pairs
) -> None:
    folder = write_peft(tmp_path / "style", pairs)
    bare, styled, off = (
        phlite("run", endless_model, *lora, *ASK) for lora in ((), ("--lora", folder), ("--lora", f"{folder}=0"))
    )
    assert (styled.returncode, styled.stderr) == (0, "")
    assert styled.stdout != bare.stdout == off.stdout


def test_adapters_of_both_forms_add_up(phlite: Phlite, endless_model: Path, tmp_path: Path, pairs) -> None:
    one, two = write_peft(tmp_path / "a=b", pairs), write_gguf_lora(tmp_path / "two.gguf", pairs)
    both = phlite("run", endless_model, "--lora", f"{one}=1", "--lora", f"{two}=-1", *ASK)
    assert (both.returncode, both.stdout) == (0, phlite("run", endless_model, *ASK).stdout)


def test_perplexity_takes_adapters(phlite: Phlite, endless_model: Path, tmp_path: Path, pairs) -> None:
    (tmp_path / "text").write_text("one two three " * 60)
    adapter = write_gguf_lora(tmp_path / "style.gguf", pairs)
    ask = ("perplexity", endless_model, tmp_path / "text", "-c", "64", "--json")
    bare, styled = (json.loads(phlite(*ask, *lora).stdout) for lora in ((), ("--lora", f"{adapter}=0.5")))
    assert bare["perplexity"] != styled["perplexity"]
    assert (bare["lora"], styled["lora"]) == ({}, {str(adapter): 0.5})


def test_bench_measures_with_adapters(phlite: Phlite, endless_model: Path, tmp_path: Path, pairs) -> None:
    adapter = write_gguf_lora(tmp_path / "style.gguf", pairs)
    result = phlite("bench", endless_model, "-p", "4", "-n", "2", "-r", "1", "--json", "--lora", adapter)
    assert [json.loads(line)["lora"] for line in result.stdout.splitlines()] == [{str(adapter): 1.0}] * 2


@pytest.mark.parametrize("form", ["peft", "gguf"])
def test_show_describes_an_adapter(phlite: Phlite, tmp_path: Path, pairs, form: str) -> None:
    path = write_peft(tmp_path / "style", pairs) if form == "peft" else write_gguf_lora(tmp_path / "style.gguf", pairs)
    result = phlite("show", path, "-v")
    parts = ["self_attn.qkv_proj", "mlp.down_proj"] if form == "peft" else ["attn_qkv", "ffn_down"]
    for text in ("LoRA", "rank          4\n", "factor        2 at scale 1", *(f"{part} (2 layers)" for part in parts)):
        assert text in result.stdout
    assert result.stdout.count("F32   rank 4") == 4


@pytest.mark.parametrize("form", ["peft", "gguf"])
def test_an_adapter_is_not_run_as_a_model(phlite: Phlite, tmp_path: Path, pairs, form: str) -> None:
    path = write_peft(tmp_path / "style", pairs) if form == "peft" else write_gguf_lora(tmp_path / "style.gguf", pairs)
    result = phlite("run", path, "hello")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "holds a LoRA adapter" in result.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [("nothing-here", "nothing-here: no such file or folder"), ("x=big", "got 'big', expected a number")],
)
def test_a_wrong_adapter_is_one_line(phlite: Phlite, endless_model: Path, given: str, message: str) -> None:
    result = phlite("run", endless_model, "--lora", given, *ASK)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr
