"""Phi-3-small's vocabulary against the tiktoken library: the same ranks, pattern and special tokens give the same ids.

The published ranks cannot be part of this repository; GPT-2's, which a test folder has, stand in for them.
"""

from __future__ import annotations

import base64
import json
import os
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phlite.convert.vocabulary import metadata_of, vocabulary_fields
from phlite.tokenizer import Tokenizer, build_tokenizer, load_tokenizer
from phlite.tokenizer.byte_spelling import BYTE_CHARACTERS
from phlite.tokenizer.tiktoken_file import PHI3_SMALL_SPECIAL_TOKENS

tiktoken = pytest.importorskip("tiktoken", reason="the oracle needs tiktoken: pip install 'phlite[parity]'")

# openai/tiktoken 0.14, tiktoken_ext/openai_public.py, cl100k_base
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"
    r"\s+(?!\S)|\s"
)
GOLDEN = [
    "",
    "Hello world",
    " Hello, world! It's I'LL we'Ve 3.14159 1234567",
    "def f():\n    return 1\n\n\n\tx = {'a': [1, 2]}  # ok\r\n",
    "  two  spaces\n\nX\n  ",
    "naïve Ünïcödé ΑΒΓ где 東京 한국어 العربية हिन्दी 🦙🏽 e\u0301",
    "<|endoftext|><|user|>\nHi<|end|>\n<|assistant|>\n",
]
TEXTS = st.text(st.sampled_from("aabceht  \n\n\r\t'stTLl.,!=(é東🦙0123456789\u00a0ſ\u0301"), max_size=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = Path(os.environ.get("PHLITE_TEST_DATA", "PHLITE_TEST_DATA")) / "tokenizers" / "phi-2" / "tokenizer.json"
    if not path.exists():
        pytest.skip(f"{path} is missing; set PHLITE_TEST_DATA to the folder of test data")
    vocabulary = json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
    byte_of = {character: byte for byte, character in BYTE_CHARACTERS.items()}
    target = tmp_path_factory.mktemp("ranks")
    with open(target / "cl100k_base.tiktoken", "wb") as file:
        for piece, rank in sorted(vocabulary.items(), key=lambda item: item[1]):
            if rank < 50256:
                file.write(base64.b64encode(bytes(byte_of[character] for character in piece)) + b" %d\n" % rank)
    return target


@pytest.fixture(scope="module")
def library(folder: Path) -> tiktoken.Encoding:
    lines = (folder / "cl100k_base.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    special = {text: len(ranks) + i for i, text in enumerate(PHI3_SMALL_SPECIAL_TOKENS)}
    return tiktoken.Encoding("phi3small", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)


@lru_cache
def from_folder(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


@lru_cache
def from_gguf(folder: Path) -> Tokenizer:
    return build_tokenizer(metadata_of(vocabulary_fields(folder, 50432)))


@pytest.mark.parametrize("ours", [from_folder, from_gguf])
@pytest.mark.parametrize("text", GOLDEN)
def test_golden_texts(folder: Path, library: tiktoken.Encoding, ours, text: str) -> None:
    tokenizer = ours(folder)
    assert tokenizer.encode(text, parse_special=True) == library.encode(text, allowed_special="all")
    ids = tokenizer.encode(text)
    assert ids == library.encode(text, disallowed_special=())
    assert tokenizer.decode(ids, skip_special=False) == library.decode(ids) == text


def test_random_texts(folder: Path, library: tiktoken.Encoding) -> None:
    @settings(max_examples=300, deadline=None)
    @given(TEXTS)
    def check(text: str) -> None:
        assert from_folder(folder).encode(text) == library.encode(text, disallowed_special=())

    check()
