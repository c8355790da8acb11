"""Phi-3-small's file of ranks: merges found again, special tokens behind them, broken files refused."""

from __future__ import annotations

import base64
import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models.phi3small import JOINED, write_rank_file

from phlite.convert.vocabulary import metadata_of, vocabulary_fields
from phlite.errors import ModelFileError
from phlite.tokenizer import build_chat_template, build_tokenizer, load_tokenizer
from phlite.tokenizer.byte_spelling import BYTE_CHARACTERS
from phlite.tokenizer.tiktoken_file import PHI3_SMALL_SPECIAL_TOKENS, load_ranks, recover_merges

N_RANKS = 256 + len(JOINED)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_rank_file(tmp_path / "cl100k_base.tiktoken")
    return tmp_path


def test_tokens_are_joined_in_order_of_their_ranks(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    pieces = [tokenizer.token_bytes(i) for i in tokenizer.encode("inging the  there\n\n\n    x")]
    assert pieces == [b"ing", b"ing", b" the", b" ", b" the", b"r", b"e", b"\n\n", b"\n", b"  ", b" ", b" ", b"x"]


def test_special_tokens_have_the_published_ids() -> None:
    ids = {text: 100256 + i for i, text in enumerate(PHI3_SMALL_SPECIAL_TOKENS)}
    assert len(ids) == 96
    published = {
        "<|dummy_id_2|>": 100256,
        "<|endoftext|>": 100257,
        "<|fim_suffix|>": 100260,
        "<|system|>": 100261,
        "<|user|>": 100262,
        "<|assistant|>": 100263,
        "<|dummy_id_0|>": 100264,
        "<|end|>": 100266,
        "<|dummy_id_3|>": 100267,
        "<|dummy_id_11|>": 100275,
        "<|endofprompt|>": 100276,
        "<|dummy_id_12|>": 100277,
        "<|dummy_id_86|>": 100351,
    }
    assert {text: ids[text] for text in published} == published


def test_special_tokens_count_in_trusted_text_only_and_strip_nothing(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    user = N_RANKS + PHI3_SMALL_SPECIAL_TOKENS.index("<|user|>")
    assert tokenizer.encode("<|user|>\n", parse_special=True) == [user, ord("\n")]
    assert user not in tokenizer.encode("<|user|>\n")
    assert not tokenizer.adds_bos


def test_a_conversation_begins_with_end_of_text_and_answers_stop_at_their_end(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    rendered = build_chat_template(tokenizer).render(
        [{"role": "system", "content": "S"}, {"role": "user", "content": "<|end|>U"}]
    )
    ids = tokenizer.encode_prompt(rendered)
    texts = [tokenizer.token_text(i) for i in ids if i in tokenizer.special_tokens.values()]
    assert texts == ["<|endoftext|>", "<|system|>", "<|end|>", "<|user|>", "<|end|>", "<|assistant|>"]
    assert tokenizer.decode(ids, skip_special=False) == (
        "<|endoftext|><|system|>\nS<|end|>\n<|user|>\n<|end|>U<|end|>\n<|assistant|>\n"
    )
    assert {tokenizer.special_tokens["<|endoftext|>"], tokenizer.special_tokens["<|end|>"]} <= tokenizer.stop_ids


def test_a_tokenizer_json_goes_before_the_file_of_ranks(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("[]")
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        load_tokenizer(folder)


def test_names_in_the_tokenizer_config_count(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "chat_template": "{{ 1 }}"}))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.eos_id == tokenizer.special_tokens["<|end|>"]
    assert tokenizer.chat_templates == {"default": "{{ 1 }}"}


def test_gguf_keys_give_the_same_ids(folder: Path) -> None:
    fields = vocabulary_fields(folder, 384)
    assert fields["tokenizer.ggml.pre"][0] == "dbrx"
    ours, theirs = build_tokenizer(metadata_of(fields)), load_tokenizer(folder)
    text = "the <|user|>\n  thinging 12345 it's\n\n\n é🦙<|end|>"
    assert ours.encode(text, parse_special=True) == theirs.encode(text, parse_special=True)
    assert (ours.bos_id, ours.eos_id, ours.stop_ids) == (theirs.bos_id, theirs.eos_id, theirs.stop_ids)
    assert ours.token_text(383) == "[PAD383]"


def test_merges_of_a_published_vocabulary_are_found_again(tmp_path: Path) -> None:
    """GPT-2's ranks are its ids, so a real list of merges tells whether the recovered one is right."""
    path = Path(os.environ.get("PHLITE_TEST_DATA", "PHLITE_TEST_DATA")) / "tokenizers" / "phi-2" / "tokenizer.json"
    if not path.exists():
        pytest.skip(f"{path} is missing; set PHLITE_TEST_DATA to the folder of test data")
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    byte_of = {character: byte for byte, character in BYTE_CHARACTERS.items()}
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)[:50256]  # without <|endoftext|>
    tokens = [bytes(byte_of[character] for character in piece) for piece in pieces]
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)]
    (tmp_path / "ranks").write_bytes(b"".join(lines))
    merges = recover_merges(load_ranks(tmp_path / "ranks"), source="ranks")
    spelt = [" ".join("".join(BYTE_CHARACTERS[b] for b in part) for part in merge) for merge in merges]
    assert spelt == [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]


def line(token: bytes, rank: int) -> bytes:
    return base64.b64encode(token) + b" %d\n" % rank


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (b"!!! 256\n", "line 257: got"),
        (b"YWI=\n", "line 257: got"),
        (b"YWI= 256 1\n", "line 257: got"),
        (b"YWI= -1\n", "ranks from 0 on"),
        (b"YWI= x\n", "line 257: got"),
        (line(b"ab", 257), "ranks from 0 on"),
        (line(b"ab", 255), "line 257: got 2 bytes of rank 255"),
        (line(b"", 256), "line 257: got"),
        (line(b"a" * 257, 256), "line 257: got 257 bytes"),
        (line(b"a", 256), "each token once"),
        (line(b"abc", 256), "cannot be joined"),
        (line(b"abc", 256) + line(b"ab", 257), "cannot be joined"),
    ],
)
def test_a_broken_file_is_refused(folder: Path, more: bytes, message: str) -> None:
    file = write_rank_file(folder / "cl100k_base.tiktoken", [])
    file.write_bytes(file.read_bytes() + more)
    with pytest.raises(ModelFileError, match=message):
        load_tokenizer(folder)


def test_damage_raises_nothing_but_our_own_error(folder: Path) -> None:
    file = folder / "cl100k_base.tiktoken"
    sound = file.read_bytes()

    @settings(max_examples=150, deadline=None)
    @given(st.integers(0, len(sound)), st.integers(0, 12), st.binary(max_size=12))
    def check(position: int, n_cut: int, more: bytes) -> None:
        file.write_bytes(sound[:position] + more + sound[position + n_cut :])
        with suppress(ModelFileError):  # and nothing else
            recover_merges(load_ranks(file), source="file")

    check()


def test_a_missing_byte_is_refused(folder: Path) -> None:
    (folder / "cl100k_base.tiktoken").write_bytes(line(b"a", 0) + line(b"b", 1))
    with pytest.raises(ModelFileError, match="256 bytes"):
        load_tokenizer(folder)


def test_a_file_that_would_take_long_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Runs of one byte, each of them one longer: every cut of every token is possible.
    write_rank_file(folder / "cl100k_base.tiktoken", [b"a" * n for n in range(2, 100)])
    assert load_tokenizer(folder).encode("a" * 99) == [353]
    monkeypatch.setattr("phlite.tokenizer.tiktoken_file._MAX_STEPS", 99**2)
    with pytest.raises(ModelFileError, match="take too long"):
        load_tokenizer(folder)
