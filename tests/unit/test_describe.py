"""What `phlite show` says of a model, GGUF file or folder."""

from __future__ import annotations

import pytest

from phlite.cli.describe import CLASSES, describe_architecture, describe_chat_template, describe_parameters
from phlite.models.registry import ARCHITECTURES, MODEL_TYPES
from phlite.tokenizer.turn_formats import TURN_FORMATS


def test_every_architecture_that_runs_is_named_after_its_members() -> None:
    assert set(CLASSES) == {*ARCHITECTURES, *MODEL_TYPES}


def test_an_architecture_that_does_not_run_is_followed_by_those_that_do() -> None:
    assert describe_architecture("gpt2", ["phi2", "phi3"]) == "gpt2, which phlite does not run; it runs phi2, phi3"


@pytest.mark.parametrize("name", ["phi3", "phi4-mini", "phi4-mini-reasoning"])
def test_a_published_template_is_known_by_its_text(name: str) -> None:
    source = TURN_FORMATS[name].source
    assert describe_chat_template(source, (), "") == f"{len(source)} characters, the form {name} (-v shows it)"
    assert describe_chat_template(source + " ", (), "") == f"{len(source) + 1} characters (-v shows it)"


def test_without_a_template_the_special_tokens_tell_the_form() -> None:
    mini = ["<|end|>", "<|assistant|>", "<|tool_call|>"]
    assert "the form phi4-mini, by its special tokens" in describe_chat_template("", mini, "Phi 4 Mini Instruct")
    assert "the form phi4-mini-reasoning," in describe_chat_template("", mini, "Phi 4 Mini Reasoning")
    assert describe_chat_template("", ["<|endoftext|>"], "Phi 2") == "none: not trained for chat"


def test_phi35_moes_weights_and_those_of_a_token() -> None:
    """The published shapes: 32 layers of 16 experts with three matrices of 4096 x 6400."""
    n_in_experts = 32 * 16 * 3 * 4096 * 6400
    counts = describe_parameters(41_873_153_344, n_in_experts=n_in_experts, n_experts=16, n_used=2)
    assert counts == "41.87 billion, 6.64 billion of them for each token"
    assert describe_parameters(3_821_079_552, n_in_experts=0, n_experts=0, n_used=0) == "3.82 billion"
