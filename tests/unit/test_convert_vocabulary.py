"""Byte-level and SentencePiece vocabularies of folders as GGUF keys: what is recognised, kept and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models.hf_folder import write_tokenizer

from phlite.convert.vocabulary import metadata_of, vocabulary_fields
from phlite.errors import ModelFileError, UnsupportedModelError
from phlite.tokenizer import build_tokenizer, load_tokenizer
from phlite.tokenizer.byte_spelling import BYTE_CHARACTERS

# The patterns as the published tokenizer.json files spell them, which differ from how other programs spell them.
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ONE_DIGIT = CL100K.replace("{1,3}", "")


def added(token_id: int, text: str, **flags: bool) -> dict[str, Any]:
    base = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": text, **base, **flags}


def write_byte_level(folder: Path, pattern: str | None, **changes: Any) -> Path:
    """A byte-level vocabulary of the bytes and two merges, with three markers."""
    folder.mkdir()
    pieces = [*BYTE_CHARACTERS.values(), "he", "hel"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": pattern is None}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    definition = {
        "version": "1.0",
        "added_tokens": [
            added(258, "<|endoftext|>"),
            added(259, "<|im_sep|>", lstrip=True, rstrip=True),
            added(260, "<|tool|>", rstrip=True, special=False),
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level
        if pattern is None
        else {"type": "Sequence", "pretokenizers": [split, {**byte_level, "use_regex": False}]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": [["h", "e"], ["he", "l"]],
        },
        **changes,
    }
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return folder


@pytest.mark.parametrize(("pattern", "name"), [(None, "phi-2"), (CL100K, "dbrx"), (O200K, "gpt-4o")])
def test_a_word_pattern_is_recognised_by_what_it_does(tmp_path: Path, pattern: str | None, name: str) -> None:
    fields = metadata_of(vocabulary_fields(write_byte_level(tmp_path / "t", pattern), 300))
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", name)
    assert fields["tokenizer.ggml.merges"] == ["h e", "he l"]
    assert fields["tokenizer.ggml.token_type"][257:262] == [1, 3, 3, 3, 5]  # type: ignore[index]
    assert fields["phlite.tokenizer.lstrip_token_ids"] == [259]
    assert fields["phlite.tokenizer.rstrip_token_ids"] == [259, 260]


def test_white_space_beside_markers_goes_as_in_the_folder(tmp_path: Path) -> None:
    folder = write_byte_level(tmp_path / "t", CL100K)
    ours, theirs = build_tokenizer(metadata_of(vocabulary_fields(folder, 261))), load_tokenizer(folder)
    for text in ("a <|im_sep|> b", "a <|tool|> b", "hello\n<|im_sep|>\n\n", "a <|endoftext|> b"):
        assert ours.encode(text, parse_special=True) == theirs.encode(text, parse_special=True)
    assert 259 in ours.encode("<|im_sep|>", parse_special=True)


def test_an_unknown_word_pattern_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="no name in GGUF"):
        vocabulary_fields(write_byte_level(tmp_path / "t", ONE_DIGIT), 300)


def test_a_normalizer_of_a_byte_level_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = write_byte_level(tmp_path / "t", CL100K, normalizer={"type": "NFC"})
    with pytest.raises(UnsupportedModelError, match="no name in GGUF"):
        vocabulary_fields(folder, 300)


def test_more_tokens_than_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="261 tokens for an embedding of 260 rows"):
        vocabulary_fields(write_byte_level(tmp_path / "t", None), 260)


def test_scores_follow_the_merges_and_not_the_ids(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 400, strips=False)
    fields = metadata_of(vocabulary_fields(tmp_path, 400))
    tokens, scores = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.scores"]
    assert isinstance(tokens, list)
    assert isinstance(scores, list)
    score = dict(zip(tokens, scores, strict=True))
    assert score["▁t"] > score["he"] > score["▁the"] > score["in"] > score["ing"] > score["z"]
    assert (score["<0x0A>"], score["<|user|>"], score["[PAD399]"]) == (0.0, -1000.0, -10000.0)


def test_merges_that_alternate_between_pieces_are_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 400, strips=False)
    file = tmp_path / "tokenizer.json"
    definition = json.loads(file.read_text())
    vocabulary = definition["model"]["vocab"]
    vocabulary |= {"▁th": 400, "the": 401}
    definition["model"]["merges"] = ["▁ t", "h e", "▁t h", "▁t he", "t he", "▁th e", "▁ the"]
    file.write_text(json.dumps(definition))
    with pytest.raises(UnsupportedModelError, match="merges of '▁the' are not together"):
        vocabulary_fields(tmp_path, 402)


def test_a_prefix_only_at_the_start_of_a_text_is_noticed_by_the_probes(tmp_path: Path) -> None:
    # As newer LlamaTokenizer files have it: GGUF puts a space before every fragment, this before the first one only.
    write_tokenizer(tmp_path, 400, strips=False)
    file = tmp_path / "tokenizer.json"
    definition = json.loads(file.read_text())
    definition["normalizer"] = None
    definition["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "first",
        "split": False,
    }
    file.write_text(json.dumps(definition))
    with pytest.raises(UnsupportedModelError, match="cannot describe this tokenizer"):
        vocabulary_fields(tmp_path, 400)
