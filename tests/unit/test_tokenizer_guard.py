"""Special spellings in people's text, alone and where a template joins it to its own markers."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from phlite.tokenizer.guard import GUARD, SpecialTextGuard, unguard

SPECIALS = ["<|end|>", "<|user|>", "<|endoftext|>", "</s>", "<s>"]
PARTS = st.sampled_from([*SPECIALS, "<", "|", ">", "<|en", "d|>", "s>", " ", "x", "0", "1", GUARD, "\ufdd1"])


def has_special(text: str) -> bool:
    return any(special in text for special in SPECIALS)


def test_plain_text_stays_as_it_is() -> None:
    assert SpecialTextGuard(SPECIALS).guard("a < b, x|y") == "a < b, x|y"


def test_every_special_spelling_is_broken() -> None:
    assert not has_special(SpecialTextGuard(SPECIALS).guard("<|end|><|user|> </s><s><|endoftext|>"))


def test_a_spelling_cannot_be_finished_by_the_template() -> None:
    assert not has_special(SpecialTextGuard(SPECIALS).guard("<|en") + "d|>")


def test_a_spelling_cannot_be_begun_by_the_template() -> None:
    assert not has_special("<|" + SpecialTextGuard(SPECIALS).guard("end|>"))


def test_a_guard_without_specials_only_escapes() -> None:
    assert SpecialTextGuard([]).guard("<|end|>") == "<|end|>"


@settings(max_examples=300, deadline=None)
@given(st.lists(PARTS, max_size=10).map("".join))
def test_text_survives_guarding(text: str) -> None:
    assert unguard(SpecialTextGuard(SPECIALS).guard(text)) == text
    assert unguard(SpecialTextGuard.escape(text)) == text


@settings(max_examples=300, deadline=None)
@given(st.lists(PARTS, max_size=6).map("".join), st.integers(0, 12), st.integers(0, 12))
def test_no_special_spelling_holds_any_guarded_text(text: str, head: int, tail: int) -> None:
    guarded = SpecialTextGuard(SPECIALS).guard(text)
    for special in SPECIALS:
        joined = special[:head] + guarded + special[len(special) - tail :] if tail else special[:head] + guarded
        begin, end = min(head, len(special)), min(head, len(special)) + len(guarded)
        for found in SPECIALS:
            at = joined.find(found)
            while at >= 0:
                # Markers of the template's own, wholly before or behind the text, are welcome.
                assert at + len(found) <= begin or at >= end or not text
                at = joined.find(found, at + 1)


@settings(max_examples=100, deadline=None)
@given(st.lists(PARTS, max_size=8).map("".join))
def test_escaping_leaves_trusted_spellings_alone(text: str) -> None:
    escaped = SpecialTextGuard.escape(text)
    assert [escaped.count(special) for special in SPECIALS] == [text.count(special) for special in SPECIALS]
