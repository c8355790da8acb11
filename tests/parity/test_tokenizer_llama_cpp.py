"""Random texts against llama.cpp on the same GGUF vocabularies: SentencePiece, and every byte-level pre-tokenizer."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phlite.convert.vocabulary import vocabulary_fields
from phlite.gguf import GGUFWriter, ValueType, load_gguf
from phlite.tokenizer import build_tokenizer, load_tokenizer

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

WORDS = [
    *(
        "the",
        "Hello",
        "ing",
        "don't",
        "WE'LL",
        "'S",
        "x.y",
        "!!!",
        "..//",
        "1",
        "12345",
        " ",
        "  ",
        "   ",
        "\n",
        "\r\n",
    ),
    *("\t", "\t\t\t", "\u0301", "é", "ß", "Ǆ", "日本", "🦙", "▁", "<0x0A>", "</", "|>", "_", "\u200d"),
]
MARKERS = ["<|end|>", "<|user|>", "<|endoftext|>", "<s>"]


def data(name: str) -> Path:
    path = Path(os.environ.get("PHLITE_TEST_DATA", "PHLITE_TEST_DATA")) / "tokenizers" / name
    if not path.exists():
        pytest.skip(f"{path} is missing; set PHLITE_TEST_DATA to the folder of test data")
    return path


def llama_cpp_encode(path: Path) -> Callable[[str], list[int]]:
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    return lambda text: model.tokenize(text.encode(), add_bos=False, special=True)


def random_texts(rng: random.Random, n: int) -> list[str]:
    """Return texts of words, markers and single characters.

    White space outside ASCII is left out: behind a marker llama.cpp, which looks at bytes, does not strip it, while the
    tokenizers library and we do.
    """
    letters = [c for i in range(1, 0xD800) if not (c := chr(i)).isspace() or i < 128]
    return [
        "".join(rng.choice(rng.choice([WORDS, WORDS, MARKERS, letters])) for _ in range(rng.randrange(1, 20)))
        for _ in range(n)
    ]


def test_sentencepiece_ids_equal_llama_cpps() -> None:
    path = data("ggml-vocab-phi-3.gguf")
    oracle, tokenizer = llama_cpp_encode(path), build_tokenizer(load_gguf(path).metadata)
    for text in random_texts(random.Random(1), 1500):
        assert tokenizer.encode(text, parse_special=True, add_bos=False) == oracle(text), text


@pytest.mark.parametrize("pre", ["phi-2", "gpt-2", "dbrx", "gpt-4o"])
def test_byte_level_ids_equal_llama_cpps(pre: str, tmp_path: Path) -> None:
    file: dict[str, Any] = json.loads((data("phi-2") / "tokenizer.json").read_text(encoding="utf-8"))
    rows = {i: (piece, 1) for piece, i in file["model"]["vocab"].items()}
    rows |= {token["id"]: (token["content"], 3 if token["special"] else 4) for token in file["added_tokens"]}
    path = tmp_path / "vocabulary.gguf"
    sizes = ("context_length", "embedding_length", "block_count", "attention.head_count", "feed_forward_length")
    with GGUFWriter(path) as writer:
        writer.add("general.architecture", "phi2")
        for key in sizes:
            writer.add(f"phi2.{key}", 1, ValueType.UINT32)
        writer.add("phi2.attention.layer_norm_epsilon", 1e-5, ValueType.FLOAT32)
        writer.add("tokenizer.ggml.model", "gpt2")
        writer.add("tokenizer.ggml.pre", pre)
        writer.add("tokenizer.ggml.tokens", [rows[i][0] for i in range(len(rows))])
        writer.add("tokenizer.ggml.token_type", [rows[i][1] for i in range(len(rows))], ValueType.INT32)
        writer.add("tokenizer.ggml.merges", file["model"]["merges"])
        writer.add("tokenizer.ggml.eos_token_id", 50256, ValueType.UINT32)
    oracle, tokenizer = llama_cpp_encode(path), build_tokenizer(load_gguf(path).metadata)
    for text in random_texts(random.Random(2), 1000):
        assert tokenizer.encode(text, parse_special=True, add_bos=False) == oracle(text), text


@pytest.mark.parametrize(
    ("name", "n_rows"), [("phi-3-mini", 32064), ("phi-3-mini-april-2024", 32064), ("phi-2", 51200)]
)
def test_llama_cpp_reads_a_converted_vocabulary_as_the_folders_own_tokenizer(
    name: str, n_rows: int, tmp_path: Path
) -> None:
    path = tmp_path / "vocab.gguf"
    with GGUFWriter(path) as writer:
        # llama.cpp decides by the name whether markers strip; the key that says it is ours alone.
        writer.add("general.name", "Phi-3 mini" if name == "phi-3-mini" else "Phi")
        writer.add("general.architecture", "phi2" if name == "phi-2" else "phi3")
        for key, (value, value_type) in vocabulary_fields(data(name), n_rows).items():
            writer.add(key, value, value_type)
    theirs, ours = llama_cpp_encode(path), load_tokenizer(data(name))
    for text in random_texts(random.Random(7), 300):
        assert theirs(text) == ours.encode(text, parse_special=True, add_bos=False), text
