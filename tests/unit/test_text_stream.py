"""Text that comes out token by token: whole characters, the right spaces, nothing of a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phlite.errors import RequestError
from phlite.tokenizer import TextStream


def stream_of(tokens: list[bytes], **options: object) -> TextStream:
    return TextStream(tokens.__getitem__, **options)  # type: ignore[arg-type]


def run(tokens: list[bytes], **options: object) -> tuple[list[str], TextStream]:
    """Push all tokens and flush; return the text of each step and the stream."""
    stream = stream_of(tokens, **options)
    return [*(stream.push(i) for i in range(len(tokens))), stream.flush()], stream


def test_text_comes_out_with_its_token() -> None:
    assert run([b"Hello", b" world", b"!"])[0] == ["Hello", " world", "!", ""]


def test_an_incomplete_character_is_held_back() -> None:
    llama = "🦙".encode()
    assert run([llama[:1], llama[1:3], llama[3:] + b"!"])[0] == ["", "", "🦙!", ""]


def test_an_unfinished_character_ends_as_a_replacement() -> None:
    assert run([b"a", b"\xf0\x9f"])[0] == ["a", "", "\ufffd"]


def test_bytes_that_cannot_go_on_become_replacements_at_once() -> None:
    assert run([b"\xf0\x9f", b"ok"])[0] == ["", "\ufffdok", ""]


def test_one_space_at_the_start_is_dropped() -> None:
    assert run([b" Hello", b" world"], strips_leading_space=True)[0] == ["Hello", " world", ""]


def test_only_one_space_is_dropped() -> None:
    assert "".join(run([b"  Hello"], strips_leading_space=True)[0]) == " Hello"
    assert "".join(run([b" ", b" ", b"Hello"], strips_leading_space=True)[0]) == " Hello"


def test_the_space_is_dropped_behind_unprinted_tokens() -> None:
    assert "".join(run([b"", b"", b" Hello"], strips_leading_space=True)[0]) == "Hello"


def test_a_text_that_goes_on_keeps_its_space() -> None:
    assert run([b" world"])[0] == [" world", ""]


def test_a_possible_stop_string_is_held_back() -> None:
    assert run([b"ab", b"c", b"x"], stop=["bcd"])[0] == ["a", "", "bcx", ""]


def test_what_was_held_back_comes_out_at_the_end() -> None:
    texts, stream = run([b"a", b"bc"], stop=["bcd"])
    assert texts == ["a", "", "bc"]
    assert stream.stopped is None


def test_text_ends_before_the_stop_string() -> None:
    texts, stream = run([b"one", b" two ST", b"OP three", b"four"], stop=["STOP"])
    assert "".join(texts) == "one two "
    assert stream.stopped == "STOP"


def test_a_stop_string_may_span_many_tokens() -> None:
    assert "".join(run([b"x", *(bytes([c]) for c in b"\n\nUser:"), b"y"], stop=["\n\nUser:"])[0]) == "x"


def test_a_stop_string_may_be_split_inside_a_character() -> None:
    stop = "🦙é".encode()
    assert "".join(run([b"a" + stop[:2], stop[2:5], stop[5:] + b"b"], stop=["🦙é"])[0]) == "a"


def test_a_stop_string_that_restarts_inside_itself_is_found() -> None:
    assert "".join(run([b"aa", b"ab"], stop=["aab"])[0]) == "a"


def test_the_stop_string_that_ends_first_counts() -> None:
    texts, stream = run([b"abcd"], stop=["abcd", "bc"])
    assert "".join(texts) == "a"
    assert stream.stopped == "bc"


def test_of_stop_strings_that_end_together_the_longest_counts() -> None:
    texts, stream = run([b"xabc"], stop=["c", "abc", "bc"])
    assert "".join(texts) == "x"
    assert stream.stopped == "abc"


def test_nothing_comes_out_after_a_stop() -> None:
    stream = stream_of([b"STOP", b"more"], stop=["STOP"])
    stream.push(0)
    assert stream.push(1) == ""
    assert stream.flush() == ""


@pytest.mark.parametrize("stop", ["abc", [""], [b"a"], [None]])
def test_stop_strings_that_are_none_are_refused(stop: object) -> None:
    with pytest.raises(RequestError, match="stop"):
        stream_of([], stop=stop)


TOKENS = st.lists(st.one_of(st.binary(max_size=4), st.text("ab é🦙", max_size=3).map(str.encode)), max_size=20)


@settings(max_examples=300, deadline=None)
@given(TOKENS, st.booleans())
def test_the_pieces_join_to_the_whole(tokens: list[bytes], strips: bool) -> None:
    whole = b"".join(tokens).decode("utf-8", "replace")
    assert "".join(run(tokens, strips_leading_space=strips)[0]) == (whole.removeprefix(" ") if strips else whole)


@settings(max_examples=300, deadline=None)
@given(st.text("abé", max_size=30), st.lists(st.text("abé", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_strings_do_not_depend_on_how_tokens_cut_the_text(text: str, stop: list[str], data: st.DataObject) -> None:
    encoded = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(encoded)))))
    tokens = [encoded[a:b] for a, b in zip([0, *cuts], [*cuts, len(encoded)], strict=True)]
    # The definition, letter by letter: the text ends where the first stop string is complete, before the longest.
    expected = text
    for end in range(1, len(text) + 1):
        if found := [s for s in stop if text[:end].endswith(s)]:
            expected = text[: end - max(map(len, found))]
            break
    assert "".join(run(tokens, stop=stop)[0]) == expected
