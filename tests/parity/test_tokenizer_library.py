"""Random texts against the tokenizers library with the real tokenizer.json files: ids, decoding, guarded text."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from phlite.gguf import load_gguf
from phlite.tokenizer import Tokenizer, build_tokenizer, load_tokenizer

FOLDERS = ["phi-3-mini", "phi-3-mini-april-2024", "phi-3-vision", "phi-2"]


def data(name: str) -> Path:
    path = Path(os.environ.get("PHLITE_TEST_DATA", "PHLITE_TEST_DATA")) / "tokenizers" / name
    if not path.exists():
        pytest.skip(f"{path} is missing; set PHLITE_TEST_DATA to the folder of test data")
    return path


@lru_cache
def ours(name: str) -> Tokenizer:
    return load_tokenizer(data(name))


@lru_cache
def library(name: str) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(data(name) / "tokenizer.json"))


@lru_cache
def from_gguf(strip: bool) -> Tokenizer:
    return build_tokenizer(load_gguf(data("ggml-vocab-phi-3.gguf")).metadata, special_tokens_strip=strip)


@lru_cache
def phi2_as_gguf() -> Tokenizer:
    """Return Phi-2's vocabulary by way of the metadata that a converter would write."""
    file = json.loads((data("phi-2") / "tokenizer.json").read_text(encoding="utf-8"))
    rows: dict[int, tuple[str, int]] = {i: (piece, 1) for piece, i in file["model"]["vocab"].items()}
    rows |= {token["id"]: (token["content"], 3 if token["special"] else 4) for token in file["added_tokens"]}
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "phi-2",
        "tokenizer.ggml.tokens": [rows[i][0] for i in range(len(rows))],
        "tokenizer.ggml.token_type": [rows[i][1] for i in range(len(rows))],
        "tokenizer.ggml.merges": file["model"]["merges"],
        "tokenizer.ggml.eos_token_id": 50256,
    }
    return build_tokenizer(metadata)


WORDS = [
    "the",
    "Hello",
    " world",
    "ing",
    "don't",
    "  ",
    "\n",
    "\t",
    "3",
    "12",
    "é",
    "日本",
    "🦙",
    "▁",
    "<0x0A>",
    "\u00a0",
]
MARKERS = ["<|user|>", "<|end|>", "<|assistant|>", "<|endoftext|>", "<s>", "</s>", "<unk>", "<|", "|>"]
ANY = st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0\ufdd1")
TEXTS = st.lists(st.one_of(st.sampled_from(WORDS), st.text(ANY, max_size=4)), max_size=15).map("".join)
MARKED = st.lists(st.one_of(st.sampled_from(WORDS + MARKERS), st.text(ANY, max_size=4)), max_size=15).map("".join)
FUZZ = settings(max_examples=120, deadline=None)


@pytest.mark.parametrize("name", FOLDERS)
@FUZZ
@given(text=MARKED)
def test_trusted_text_has_the_librarys_ids(name: str, text: str) -> None:
    assert ours(name).encode(text, parse_special=True) == library(name).encode(text).ids


@FUZZ
@given(text=MARKED)
def test_scores_of_a_gguf_merge_like_the_librarys_merge_list(text: str) -> None:
    for strip, name in ((True, "phi-3-mini"), (False, "phi-3-mini-april-2024")):
        ids = from_gguf(strip).encode(text, parse_special=True, add_bos=False)
        assert ids == library(name).encode(text, add_special_tokens=False).ids


@FUZZ
@given(text=MARKED)
def test_phi2_from_gguf_has_the_librarys_ids(text: str) -> None:
    assert phi2_as_gguf().encode(text, parse_special=True) == library("phi-2").encode(text).ids


@pytest.mark.parametrize("name", FOLDERS)
@FUZZ
@given(text=MARKED)
def test_untrusted_text_is_text(name: str, text: str) -> None:
    tokenizer = ours(name)
    ids = tokenizer.encode(text, add_bos=False)
    assert not any(tokenizer.is_special(token_id) for token_id in ids)
    assert tokenizer.decode(ids) == (text if name == "phi-2" else text.replace("▁", " "))


@pytest.mark.parametrize("name", FOLDERS)
@FUZZ
@given(text=TEXTS)
def test_text_without_markers_has_the_same_ids_trusted_or_not(name: str, text: str) -> None:
    assert ours(name).encode(text) == ours(name).encode(text, parse_special=True)


@pytest.mark.parametrize("name", FOLDERS)
@FUZZ
@given(text=MARKED)
def test_decoding_equals_the_librarys(name: str, text: str) -> None:
    ids = library(name).encode(text, add_special_tokens=False).ids
    assert ours(name).decode(ids, skip_special=False) == library(name).decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("name", FOLDERS)
@FUZZ
@given(random=st.randoms(use_true_random=False), n=st.integers(0, 30), continues=st.booleans())
def test_streaming_joins_to_decoding(name: str, random: Any, n: int, continues: bool) -> None:
    tokenizer = ours(name)
    ids = [random.randrange(tokenizer.vocab_size + 20) for _ in range(n)]
    stream = tokenizer.stream(continues_text=continues)
    text = "".join([*map(stream.push, ids), stream.flush()])
    whole = tokenizer.decode(ids)
    if not continues:
        assert text == whole
    elif name != "phi-2":
        assert text.removeprefix(" ") == whole


def test_a_continued_text_keeps_the_space_of_its_first_word() -> None:
    tokenizer = ours("phi-3-mini")
    stream = tokenizer.stream(continues_text=True)
    assert stream.push(3186) == " world"
    assert tokenizer.stream().push(3186) == "world"
