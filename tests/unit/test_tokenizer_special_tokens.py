"""Cutting special tokens out of a text, with the white space that they swallow."""

from __future__ import annotations

import pytest

from phlite.tokenizer.special_tokens import SpecialToken, SpecialTokenCutter, is_marker, stop_ids_by_text


def cut(text: str, *tokens: SpecialToken) -> list[str | int]:
    return [part if isinstance(part, str) else part.token_id for part in SpecialTokenCutter(tokens).cut(text)]


def test_text_between_tokens_is_kept() -> None:
    assert cut("a<x> b <x>", SpecialToken(1, "<x>")) == ["a", 1, " b ", 1]


def test_without_tokens_the_text_is_one_fragment() -> None:
    assert cut("a<x>b") == ["a<x>b"]
    assert cut("") == []


def test_the_longest_of_tokens_that_begin_together_counts() -> None:
    assert cut("<x><x>y", SpecialToken(1, "<x>"), SpecialToken(2, "<x><x>")) == [2, "y"]


def test_a_token_may_swallow_white_space_behind_it() -> None:
    assert cut(" <x> \n\u3000y", SpecialToken(1, "<x>", rstrip=True)) == [" ", 1, "y"]


def test_a_token_may_swallow_white_space_before_it() -> None:
    assert cut("y\u00a0\t<x> ", SpecialToken(1, "<x>", lstrip=True)) == ["y", 1, " "]


def test_control_characters_are_no_white_space() -> None:
    assert cut("<x>\x1c\x1fy", SpecialToken(1, "<x>", rstrip=True)) == [1, "\x1c\x1fy"]


def test_a_token_of_white_space_that_was_swallowed_is_gone() -> None:
    tokens = (SpecialToken(1, "<x>", rstrip=True), SpecialToken(2, "\n"))
    assert cut("\n<x>\n\ny", *tokens) == [2, 1, "y"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("<|tool|>", True), ("</s>", True), ("<s>", True), ("<x y>", False), ("<>", False), ("x", False), ("  ", False)],
)
def test_what_reads_as_mark_up(text: str, expected: bool) -> None:
    assert is_marker(text) is expected


def test_end_tokens_and_heads_of_turns_stop() -> None:
    tokens = {"<|end|>": 1, "<|endoftext|>": 2, "<|im_end|>": 3, "</s>": 4, "<|assistant|>": 5, "<|user|>": 6, "<s>": 7}
    assert stop_ids_by_text(tokens) == {1, 2, 3, 4, 5, 6}
