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


def test_a_spelling_cannot_be_completed_in_the_middle() -> None:
    assert not has_special("<" + SpecialTextGuard(SPECIALS).guard("|") + "end|>")


@settings(max_examples=300, deadline=None)
@given(st.lists(PARTS, max_size=6).map("".join), st.sampled_from(SPECIALS), st.data())
def test_no_special_spelling_holds_any_guarded_text(text: str, special: str, data: st.DataObject) -> None:
    if not text or text.isalnum():
        return  # a template that completes a plain word means it
    before, behind = special[: data.draw(st.integers(0, 12))], special[data.draw(st.integers(0, 12)) :]
    guarded = SpecialTextGuard(SPECIALS).guard(text)
    joined = before + guarded + behind
    for found in SPECIALS:
        for at in range(len(joined)):
            # Markers of the template's own, wholly before or behind the text, are welcome.
            outside = at + len(found) <= len(before) or at >= len(before + guarded)
            assert outside or not joined.startswith(found, at)


@settings(max_examples=100, deadline=None)
@given(st.lists(PARTS, max_size=8).map("".join))
def test_escaping_leaves_trusted_spellings_alone(text: str) -> None:
    escaped = SpecialTextGuard.escape(text)
    assert [escaped.count(special) for special in SPECIALS] == [text.count(special) for special in SPECIALS]
