"""Ids that others have published for Phi's vocabularies: llama.cpp's test file, and vectors of the real tokenizers."""

from __future__ import annotations

import os
import random
import time
from functools import lru_cache
from pathlib import Path

import pytest

from phlite.convert.vocabulary import metadata_of, vocabulary_fields
from phlite.gguf import load_gguf
from phlite.tokenizer import Tokenizer, build_tokenizer, load_tokenizer


def data(name: str) -> Path:
    path = Path(os.environ.get("PHLITE_TEST_DATA", "PHLITE_TEST_DATA")) / "tokenizers" / name
    if not path.exists():
        pytest.skip(f"{path} is missing; set PHLITE_TEST_DATA to the folder of test data")
    return path


@lru_cache
def from_gguf() -> Tokenizer:
    return build_tokenizer(load_gguf(data("ggml-vocab-phi-3.gguf")).metadata)


@lru_cache
def from_folder(name: str) -> Tokenizer:
    return load_tokenizer(data(name))


@lru_cache
def from_converted(name: str) -> Tokenizer:
    """The tokenizer of the keys that the converter writes for a folder."""
    return build_tokenizer(metadata_of(vocabulary_fields(data(name), 51200 if name == "phi-2" else 32064)))


def test_llama_cpps_test_file_gives_the_same_ids() -> None:
    texts = data("ggml-vocab-phi-3.gguf.inp").read_bytes().decode("utf-8").split("\n__ggml_vocab_test__\n")
    lines = data("ggml-vocab-phi-3.gguf.out").read_text(encoding="utf-8").splitlines()
    tokenizer = from_gguf()
    for text, line in zip(texts, lines, strict=False):
        assert tokenizer.encode(text, add_bos=False) == [int(token_id) for token_id in line.split()], text
        assert tokenizer.decode(tokenizer.encode(text, add_bos=False)) == text
    assert len(lines) > 40


# Computed with the real tokenizer.json files by the tokenizers library, special tokens parsed.
SAME_IN_ALL = [
    ("Hello world", [15043, 3186]),
    (" Hello", [29871, 15043]),
    ("\n", [29871, 13]),
    ("<|user|>Hello<|end|><|assistant|>", [32010, 15043, 32007, 32001]),
    ("<s>a", [1, 263]),
    ("🦙", [29871, 243, 162, 169, 156]),
    ("🦙 Ω naïve", [29871, 243, 162, 169, 156, 29871, 30357, 1055, 30085, 345]),
    ("def f():\n    return 1", [822, 285, 7295, 13, 1678, 736, 29871, 29896]),
    ("1234567 tokens", [29871, 29896, 29906, 29941, 29946, 29945, 29953, 29955, 18897]),
    ("  two  spaces\n\nX", [259, 1023, 29871, 8162, 13, 13, 29990]),
]
CURRENT = [
    ("<|user|>\nHello<|end|>\n<|assistant|>\n", [32010, 15043, 32007, 32001]),
    ("<|user|>\nHi<|end|>\n<|assistant|>\n", [32010, 6324, 32007, 32001]),
    (
        "<|system|>\nYou are a helpful assistant<|end|>\n<|user|>\n Hi there<|end|>\n<|assistant|>\n",
        [32006, 887, 526, 263, 8444, 20255, 32007, 32010, 6324, 727, 32007, 32001],
    ),
    ("a </s> b", [263, 29871, 2, 289]),
]
APRIL = [
    ("<|user|>\nHello<|end|>\n<|assistant|>\n", [32010, 29871, 13, 10994, 32007, 29871, 13, 32001, 29871, 13]),
    ("<|user|>\nHi<|end|>\n<|assistant|>\n", [32010, 29871, 13, 18567, 32007, 29871, 13, 32001, 29871, 13]),
    ("a </s> b", [263, 29871, 2, 29871, 289]),
]
VISION = [
    ("<|user|>\nHello<|end|>\n<|assistant|>\n", [32010, 29871, 13, 10994, 32007, 29871, 13, 32001]),
    ("<|user|>\nHi<|end|>\n<|assistant|>\n", [32010, 29871, 13, 18567, 32007, 29871, 13, 32001]),
]
PHI_2 = [
    ("Hello world", [15496, 995]),
    ("def f():\n    return 1", [4299, 277, 33529, 198, 50284, 7783, 352]),
    ("1234567 tokens", [10163, 2231, 3134, 16326]),
    ("🦙 Ω naïve", [8582, 99, 247, 7377, 102, 41492]),
    ("  two  spaces\n\nX", [50286, 11545, 50286, 2777, 2114, 198, 198, 55]),
]


@pytest.mark.parametrize(("text", "ids"), SAME_IN_ALL + CURRENT)
def test_vectors_of_the_current_phi3(text: str, ids: list[int]) -> None:
    assert from_folder("phi-3-mini").encode(text, parse_special=True) == ids


@pytest.mark.parametrize(("text", "ids"), SAME_IN_ALL + APRIL)
def test_vectors_of_the_first_phi3(text: str, ids: list[int]) -> None:
    assert from_folder("phi-3-mini-april-2024").encode(text, parse_special=True) == ids


@pytest.mark.parametrize(("text", "ids"), SAME_IN_ALL + VISION)
def test_vectors_of_phi3_vision_which_adds_bos(text: str, ids: list[int]) -> None:
    assert from_folder("phi-3-vision").encode(text, parse_special=True) == [1, *ids]


@pytest.mark.parametrize(("text", "ids"), SAME_IN_ALL + CURRENT)
def test_vectors_from_a_gguf_named_phi3(text: str, ids: list[int]) -> None:
    assert from_gguf().encode(text, parse_special=True, add_bos=False) == ids


@pytest.mark.parametrize(("text", "ids"), SAME_IN_ALL + APRIL)
def test_vectors_from_a_gguf_whose_markers_do_not_strip(text: str, ids: list[int]) -> None:
    metadata = load_gguf(data("ggml-vocab-phi-3.gguf")).metadata
    tokenizer = build_tokenizer(metadata, special_tokens_strip=False)
    assert tokenizer.encode(text, parse_special=True, add_bos=False) == ids


@pytest.mark.parametrize(("text", "ids"), PHI_2)
def test_vectors_of_phi2(text: str, ids: list[int]) -> None:
    assert from_folder("phi-2").encode(text, parse_special=True) == ids


@pytest.mark.parametrize(
    ("name", "vectors"),
    [
        ("phi-3-mini", SAME_IN_ALL + CURRENT),
        ("phi-3-mini-april-2024", SAME_IN_ALL + APRIL),
        ("phi-3-vision", [(text, [1, *ids]) for text, ids in SAME_IN_ALL + VISION]),
        ("phi-2", PHI_2),
    ],
)
def test_vectors_survive_the_conversion_to_gguf(name: str, vectors: list[tuple[str, list[int]]]) -> None:
    for text, ids in vectors:
        assert from_converted(name).encode(text, parse_special=True) == ids


@pytest.mark.parametrize("name", ["phi-3-mini", "phi-3-mini-april-2024", "phi-3-vision", "phi-2"])
def test_long_texts_of_every_script_survive_the_conversion_to_gguf(name: str) -> None:
    rng = random.Random(5)
    alphabets = ["abcdefgh ijklmnop", "АБВ где жзи", "東京 語漢字", " \n\t  ", "0123456789.,", "<|end|>🦙é’\u200d"]
    for _ in range(40):
        text = "".join(rng.choice(rng.choice(alphabets)) for _ in range(400))
        assert from_converted(name).encode(text) == from_folder(name).encode(text)


def test_the_converted_vocabulary_is_llama_cpps_own_but_for_padding() -> None:
    fields = metadata_of(vocabulary_fields(data("phi-3-mini"), 32064))
    shipped = load_gguf(data("ggml-vocab-phi-3.gguf")).metadata
    assert fields["tokenizer.ggml.tokens"] == shipped["tokenizer.ggml.tokens"]
    types, shipped_types = fields["tokenizer.ggml.token_type"], shipped["tokenizer.ggml.token_type"].tolist()
    assert types[:32011] == shipped_types[:32011]
    assert set(types[32011:]) == {5}  # the old converter wrote 2


@pytest.mark.parametrize("name", ["phi-3-mini", "phi-3-mini-april-2024", "phi-3-vision"])
def test_the_end_of_a_turn_stops_and_is_not_printed(name: str) -> None:
    tokenizer = from_folder(name)
    assert {2, 32000, 32001, 32006, 32007, 32010} <= tokenizer.stop_ids
    assert tokenizer.decode([15043, 32007, 32000, 2]) == "Hello"


def test_a_gguf_says_what_ends_an_answer() -> None:
    assert {2, 32000, 32001, 32006, 32007, 32010} <= from_gguf().stop_ids
    assert from_gguf().encode("x")[0] == 1  # its add_bos_token is true


def test_padding_rows_print_nothing() -> None:
    assert from_gguf().decode([32011, 32063, 32064, 10**6]) == ""


def test_a_vocabulary_of_32_thousand_pieces_loads_in_a_moment() -> None:
    metadata = load_gguf(data("ggml-vocab-phi-3.gguf")).metadata
    build_tokenizer(metadata)
    started = time.thread_time()
    build_tokenizer(metadata)
    assert time.thread_time() - started < 0.1


def test_a_long_text_is_encoded_in_well_under_a_second() -> None:
    text = "".join(chr(0x4E00 + 7 * i % 20_000) for i in range(33_000)) + "x" * 30_000  # no spaces: one long word
    started = time.thread_time()
    ids = from_gguf().encode(text)
    assert time.thread_time() - started < 1
    assert from_gguf().decode(ids) == text
