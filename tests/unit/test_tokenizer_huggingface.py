"""tokenizer.json and its neighbours: what is read, what is merged, what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from phlite.errors import ModelFileError, UnsupportedModelError
from phlite.tokenizer import Tokenizer, load_tokenizer

PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "h", "i", "hi", "▁hi"]


def special(token_id: int, content: str, **flags: bool) -> dict[str, Any]:
    defaults = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": content, **defaults, **flags}


def tokenizer_json() -> dict[str, Any]:
    """Return a tokenizer.json with the parts of Phi-3's."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            special(0, "<unk>"),
            special(1, "<s>"),
            special(2, "</s>", special=False),
            special(264, "<|user|>"),
            special(265, "<|end|>"),
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {piece: i for i, piece in enumerate(PIECES)},
            "merges": ["h i", "▁ hi"],
        },
    }


def load(folder: Path, data: object = None, **files: object) -> Tokenizer:
    """Write tokenizer.json and other files, `name__json=...`, and load the folder."""
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json() if data is None else data), encoding="utf-8")
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(json.dumps(content), encoding="utf-8")
    return load_tokenizer(folder)


def test_a_folder_and_its_file_load_alike(tmp_path: Path) -> None:
    tokenizer = load(tmp_path)
    assert tokenizer.encode("hi") == load_tokenizer(tmp_path / "tokenizer.json").encode("hi") == [263]


def test_text_comes_back(tmp_path: Path) -> None:
    tokenizer = load(tmp_path)
    for text in ("hi", " hi", "hi hi", "é🦙", "<|end|>", "</s>", "\ufdd0", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_spellings_count_only_in_trusted_text(tmp_path: Path) -> None:
    tokenizer = load(tmp_path)
    assert tokenizer.encode("<|end|></s>", parse_special=True) == [265, 2]
    assert not any(tokenizer.is_special(i) for i in tokenizer.encode("<|end|></s>"))


def test_control_tokens_of_a_tokenizer_without_normalizer_are_safe_whatever_their_flag(tmp_path: Path) -> None:
    data = tokenizer_json()
    data["normalizer"] = None
    data["added_tokens"][4]["normalized"] = True
    tokenizer = load(tmp_path, data)
    assert tokenizer.encode("<|end|>", parse_special=True) == [265]
    assert 265 not in tokenizer.encode("<|end|>")


def test_tokens_that_only_look_like_markup_are_control_tokens(tmp_path: Path) -> None:
    assert load(tmp_path).is_special(2)


def test_strip_flags_are_read_from_the_file(tmp_path: Path) -> None:
    data = tokenizer_json()
    data["added_tokens"][3]["rstrip"] = True
    assert load(tmp_path, data).encode("<|user|>\nhi", parse_special=True) == [264, 263]


def test_flags_of_tokenizer_config_go_before_those_of_tokenizer_json(tmp_path: Path) -> None:
    entry = {key: value for key, value in special(264, "<|user|>", rstrip=True).items() if key != "id"}
    tokenizer = load(tmp_path, tokenizer_config__json={"added_tokens_decoder": {"264": entry}})
    assert tokenizer.encode("<|user|>\nhi", parse_special=True) == [264, 263]


def test_bos_and_eos_come_from_tokenizer_config(tmp_path: Path) -> None:
    config = {"bos_token": {"content": "<s>"}, "eos_token": "<|end|>"}
    tokenizer = load(tmp_path, tokenizer_config__json=config)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos) == (1, 265, False)


def test_a_post_processor_that_adds_bos_is_followed(tmp_path: Path) -> None:
    data = tokenizer_json()
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    tokenizer = load(tmp_path, data)
    assert tokenizer.encode("hi") == [1, 263]
    assert tokenizer.encode("hi", add_bos=False) == [263]
    assert tokenizer.encode_prompt("<s>hi") == [1, 263]


def test_stop_ids_of_generation_config_are_added(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, generation_config__json={"eos_token_id": [1, 265]})
    assert tokenizer.stop_ids == {1, 2, 264, 265}


def test_templates_come_from_tokenizer_config(tmp_path: Path) -> None:
    templates = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    assert load(tmp_path, tokenizer_config__json={"chat_template": "a"}).chat_templates == {"default": "a"}
    assert load(tmp_path, tokenizer_config__json={"chat_template": templates}).chat_templates == {
        "default": "a",
        "tool_use": "b",
    }


def test_a_template_file_goes_before_tokenizer_config(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("file", encoding="utf-8")
    assert load(tmp_path, tokenizer_config__json={"chat_template": "a"}).chat_templates == {"default": "file"}


def test_stored_truncation_and_padding_are_not_applied(tmp_path: Path) -> None:
    data = tokenizer_json()
    data["truncation"] = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    assert len(load(tmp_path, data).encode("hi hi hi")) == 3


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"tokenizer\.json: no such file"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"a": "\\ud800"', pytest.param("[" * 100_000, id="deep"), "\xff\xfe"]
)
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def changed(path: str, value: object) -> dict[str, Any]:
    """Return a tokenizer.json in which the value at a dotted path is another."""
    data: Any = copy.deepcopy(tokenizer_json())
    *parents, last = path.split(".")
    node = data
    for key in parents:
        node = node[int(key) if isinstance(node, list) else key]
    node[int(last) if isinstance(node, list) else last] = value
    return data  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model", None),
        ("model.vocab", None),
        ("model.vocab", {}),
        ("model.vocab", {"a": "b"}),
        ("model.vocab", {"a": -1}),
        ("model.vocab", {"a": 2**40}),
        ("model.vocab", {"a": 1, "b": 1}),
        ("model.vocab", {"a": 1.5}),
        ("model.merges", None),
        ("model.merges", ["x y"]),
        ("model.merges", [1]),
        ("model.merges", ["h"]),
        ("added_tokens", 3),
        ("added_tokens.0", {"id": "x", "content": "y"}),
        ("added_tokens.0.id", -3),
        ("added_tokens.0.content", 3),
        ("normalizer", "x"),
        ("normalizer", {"type": 3}),
        ("normalizer.normalizers", 3),
        ("normalizer.normalizers.0", {"type": "Prepend"}),
        ("decoder.decoders.3", {"type": "Strip"}),
        ("post_processor", {"type": "TemplateProcessing"}),
    ],
)
def test_a_broken_part_is_refused(tmp_path: Path, path: str, value: object) -> None:
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        load(tmp_path, changed(path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.type", "Unigram"),
        ("model.dropout", 0.1),
        ("model.end_of_word_suffix", "</w>"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        ("pre_tokenizer", {"type": "Whitespace"}),
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated", "invert": False}),
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "a" * 3000}, "behavior": "Isolated", "invert": False}),
        ("post_processor", {"type": "BertProcessing", "sep": ["[SEP]", 1], "cls": ["[CLS]", 0]}),
        ("decoder", {"type": "WordPiece", "prefix": "##", "cleanup": True}),
        ("decoder", None),
        ("added_tokens.3.normalized", True),
    ],
)
def test_a_part_that_no_phi_tokenizer_has_is_refused(tmp_path: Path, path: str, value: object) -> None:
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.json"):
        load(tmp_path, changed(path, value))


@pytest.mark.parametrize(
    "config",
    [
        {"bos_token": "<nope>"},
        {"eos_token": 3},
        {"added_tokens_decoder": []},
        {"added_tokens_decoder": {"x": {}}},
        {"added_tokens_decoder": {"264": {}}},
        {"chat_template": {"a": "b"}},
        {"chat_template": [{"name": "a"}]},
    ],
)
def test_a_broken_tokenizer_config_is_refused(tmp_path: Path, config: object) -> None:
    with pytest.raises(ModelFileError, match="tokenizer"):
        load(tmp_path, tokenizer_config__json=config)


@pytest.mark.parametrize("value", ["x", [1.5], [-1], {}])
def test_broken_stop_ids_are_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(ModelFileError, match=r"generation_config\.json: eos_token_id"):
        load(tmp_path, generation_config__json={"eos_token_id": value})
