"""Broken and unknown vocabularies in GGUF metadata are refused with the key, what it holds and what it should."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phlite.errors import ModelFileError, UnsupportedModelError
from phlite.tokenizer import build_tokenizer

TOKENS = ["<unk>", "<s>", "a", "b", "ab"]


def valid() -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": list(TOKENS),
        "tokenizer.ggml.token_type": np.array([2, 3, 1, 1, 1], dtype=np.int32),
        "tokenizer.ggml.scores": np.array([0, 0, -1, -2, -3], dtype=np.float32),
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.add_space_prefix": False,
    }


def test_arrays_may_be_numpy_or_lists() -> None:
    assert build_tokenizer(valid()).encode("ab", add_bos=False) == [4]
    as_lists = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in valid().items()}
    assert build_tokenizer(as_lists).encode("ab", add_bos=False) == [4]


@pytest.mark.parametrize("key", ["model", "tokens", "token_type", "scores"])
def test_a_missing_key_is_named(key: str) -> None:
    metadata = valid()
    del metadata[f"tokenizer.ggml.{key}"]
    with pytest.raises(ModelFileError, match=f"tokenizer.ggml.{key}: got no such key"):
        build_tokenizer(metadata)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", 3),
        ("tokens", "abc"),
        ("tokens", [1, 2, 3, 4, 5]),
        ("tokens", []),
        ("tokens", ["a", "a", "b", "c", "a"]),
        ("token_type", [1.0] * 5),
        ("token_type", np.array([1, 2], dtype=np.int32)),
        ("token_type", [1, 1, 1, 1, 99]),
        ("token_type", [1, 1, 1, 1, True]),
        ("scores", ["x"] * 5),
        ("scores", [0.0] * 4),
        ("scores", [float("nan")] * 5),
        ("scores", np.array([np.inf] * 5, dtype=np.float32)),
        ("bos_token_id", 5),
        ("bos_token_id", -1),
        ("bos_token_id", "1"),
        ("bos_token_id", True),
        ("eos_token_id", 2**31),
        ("unknown_token_id", 1.5),
        ("eot_token_id", [1]),
        ("add_bos_token", 1),
        ("add_space_prefix", "yes"),
        ("pre", 1),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(key: str, value: object) -> None:
    with pytest.raises(ModelFileError, match=rf"tokenizer\.ggml\.{key}: got"):
        build_tokenizer({**valid(), f"tokenizer.ggml.{key}": value})


def test_bos_cannot_be_added_without_an_id() -> None:
    metadata = {**valid(), "tokenizer.ggml.add_bos_token": True}
    del metadata["tokenizer.ggml.bos_token_id"]
    with pytest.raises(ModelFileError, match="add_bos_token: got true without a bos_token_id"):
        build_tokenizer(metadata)


@pytest.mark.parametrize("key", ["general.name", "general.architecture", "tokenizer.chat_template"])
def test_a_name_or_template_that_is_no_text_is_refused(key: str) -> None:
    with pytest.raises(ModelFileError, match=key):
        build_tokenizer({**valid(), key: 7})


@pytest.mark.parametrize("model", ["bert", "t5", "rwkv", "plamo2", ""])
def test_another_kind_of_vocabulary_is_unsupported(model: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.ggml\.model"):
        build_tokenizer({**valid(), "tokenizer.ggml.model": model})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("normalizer", "nfkc"),
        ("remove_extra_whitespaces", True),
        ("add_eos_token", True),
        ("precompiled_charsmap", [1]),
    ],
)
def test_a_key_that_would_change_ids_is_not_ignored(key: str, value: object) -> None:
    with pytest.raises(UnsupportedModelError, match=f"tokenizer.ggml.{key}"):
        build_tokenizer({**valid(), f"tokenizer.ggml.{key}": value})


def test_the_message_names_the_file() -> None:
    with pytest.raises(ModelFileError, match=r"^/models/broken\.gguf: "):
        build_tokenizer({}, source="/models/broken.gguf")


def test_a_message_does_not_repeat_a_huge_value() -> None:
    with pytest.raises(ModelFileError) as caught:
        build_tokenizer({**valid(), "tokenizer.ggml.scores": "x" * 10**6})
    assert len(str(caught.value)) < 300


def test_templates_are_found_by_name() -> None:
    metadata = {**valid(), "tokenizer.chat_template": "a", "tokenizer.chat_template.tool_use": "b"}
    assert build_tokenizer(metadata).chat_templates == {"default": "a", "tool_use": "b"}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda v: st.lists(v, max_size=6)
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(valid())), VALUES)
def test_any_value_in_any_key_is_refused_or_works(key: str, value: object) -> None:
    try:
        tokenizer = build_tokenizer({**valid(), key: value})
    except (ModelFileError, UnsupportedModelError):
        return
    tokenizer.decode(tokenizer.encode("ab ba"))
