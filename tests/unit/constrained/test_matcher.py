"""From constraint to masks, over a vocabulary of single bytes and some longer pieces."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from phlite.constrained import Constraint
from phlite.constrained.compiler import MOST_GRAMMARS, ConstraintCompiler
from phlite.errors import BackendUnavailableError, RequestError

# Ids 0..255 are bytes, then pieces, an unused row and a control token.
PIECES = [b"ab", b"true", b'{"', b'": ', "é".encode(), "日本".encode(), "日".encode()[:2]]
TOKEN_BYTES = [bytes([i]) for i in range(256)] + PIECES + [b"", b""]


def spell(text):
    """Ids of a text, the longest piece first."""
    data, ids = text.encode(), []
    while data:
        best = max((piece for piece in PIECES if data.startswith(piece)), key=len, default=data[:1])
        ids.append(TOKEN_BYTES.index(best))
        data = data[len(best) :]
    return ids


@pytest.fixture
def compiler():
    return ConstraintCompiler(lambda: TOKEN_BYTES, spell)


def allowed(matcher):
    bits = np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")
    assert not bits[len(TOKEN_BYTES) :].any()
    return [TOKEN_BYTES[i] for i in np.flatnonzero(bits[: len(TOKEN_BYTES)])]


def accepts(matcher, text):
    """Whether the text, byte by byte, is allowed and complete."""
    for byte in text.encode():
        try:
            matcher.accept(byte)
        except RequestError:
            return False
    return matcher.is_complete


def test_the_mask_holds_all_spellings_of_what_may_follow(compiler):
    matcher = compiler.build_matcher(Constraint.regex("(abc|日本|x).*"))
    assert set(allowed(matcher)) == {b"a", b"ab", b"x", b"\xe6", b"\xe6\x97", "日本".encode()}


def test_a_character_may_come_in_several_tokens(compiler):
    matcher = compiler.build_matcher(Constraint.regex("日|é!"))
    matcher.accept(TOKEN_BYTES.index(b"\xe6\x97"))
    assert allowed(matcher) == [b"\xa5"]
    assert not matcher.is_complete


def test_bytes_that_are_no_utf8_are_never_allowed(compiler):
    matcher = compiler.build_matcher(Constraint.regex("(?s:.*)"))
    first = {data[0] for data in allowed(matcher)}
    assert first == {*range(0x80), *range(0xC2, 0xF5)}
    matcher.accept(0xE6)
    assert all(0x80 <= data[0] < 0xC0 for data in allowed(matcher))


def test_the_end_is_known_and_nothing_follows_it(compiler):
    matcher = compiler.build_matcher(Constraint.regex("ab?"))
    assert not matcher.is_complete
    matcher.accept(ord("a"))
    assert matcher.is_complete
    assert allowed(matcher) == [b"b"]
    matcher.accept(ord("b"))
    assert (matcher.is_complete, allowed(matcher)) == (True, [])


def test_a_token_that_is_not_allowed_is_an_error(compiler):
    matcher = compiler.build_matcher(Constraint.choice(["yes", "no"]))
    with pytest.raises(RequestError, match="constraint: "):
        matcher.accept(ord("x"))


def test_rollback_and_clone_give_the_state_before(compiler):
    matcher = compiler.build_matcher(Constraint.regex("[ab]{3}x"))
    matcher.accept(ord("a"))
    before = allowed(matcher)
    other = matcher.clone()
    for byte in b"bbx":
        matcher.accept(byte)
    assert matcher.is_complete
    assert allowed(other) == before
    matcher.rollback(3)
    assert (matcher.is_complete, allowed(matcher)) == (False, before)
    matcher.rollback(0)
    matcher.rollback(1)
    with pytest.raises(RequestError, match="cannot take 5 tokens back"):
        matcher.rollback(5)


def test_forced_text_has_the_tokenizers_spelling(compiler):
    schema = {
        "type": "object",
        "properties": {"日本": {"type": "boolean"}},
        "required": ["日本"],
        "additionalProperties": False,
    }
    matcher = compiler.build_matcher(Constraint.json_schema(schema))
    ids = []
    while len(allowed(matcher)) == 1:
        (data,) = allowed(matcher)
        ids.append(TOKEN_BYTES.index(data))
        matcher.accept(ids[-1])
    assert ids == spell('{"日本": ')


def test_a_space_may_be_put_before_the_text(compiler):
    assert allowed(compiler.build_matcher(Constraint.choice(["yes"]), leading_space=True)) == [b" "]
    assert accepts(compiler.build_matcher(Constraint.regex(" ?a"), leading_space=True), "  a")
    assert not accepts(compiler.build_matcher(Constraint.regex(" ?a"), leading_space=True), "a")


@pytest.mark.parametrize(
    ("constraint", "good", "bad"),
    [
        (Constraint.json_object(), ["{}", '{"a": [1, null, "é\\n"]}'], ["[]", "{}  ", "{'a': 1}", '{"a":1}']),
        (
            Constraint.json_schema({"format": "date"}),
            ['"2024-02-29"', '"2000-02-29"', "1"],
            ['"2023-02-29"', '"1900-02-29"'],
        ),
        (Constraint.json_schema({"format": "date"}), ['"0001-12-31"'], ['"0000-01-01"', '"2023-04-31"', '"2023-1-1"']),
        (
            Constraint.json_schema({"format": "time"}),
            ['"23:59:59.5-01:30"', '"00:00:00Z"'],
            ['"22:59:60Z"', '"1:00:00Z"'],
        ),
        (
            Constraint.json_schema({"format": "date-time", "minLength": 21}),
            ['"2024-02-29T00:00:00.0Z"'],
            ['"2024-02-29T00:00:00Z"'],
        ),
        (Constraint.json_schema({"format": "hostname"}), ['"a-b.c"'], ['"xn--x"', '"a..b"', '"-a"', f'"{"a" * 64}"']),
        (Constraint.json_schema(True), ["1e5", '"x"', "[[], {}]"], ["01", "nul", ".5", '"\n"']),
        (Constraint.json_schema({"type": "integer", "minimum": -3}), ["-3", "0", "40"], ["-4", "1.5", "+1", "-"]),
        (Constraint.regex(r"\d{2}/x\n?"), ["12/x", "12/x\n"], ["1/x", "12/x\n\n"]),
        (Constraint.regex("^a|b$"), ["a", "b"], ["ab", "aa"]),
        (Constraint.regex("(?i)hé"), ["HÉ", "hé"], ["he"]),
        (Constraint.choice(["a", "ab", 'q"\\', "日本", "\x00\n"]), ["a", "ab", 'q"\\', "日本", "\x00\n"], ["b", "q"]),
        (Constraint.grammar('start: e\ne: "(" e ")" | /[0-9]+/'), ["7", "((10))"], ["((1)", "()"]),
        (Constraint.grammar('root ::= "x" ("," root)?'), ["x", "x,x,x"], ["x,", ",x"]),
        (Constraint.grammar('start: "f" %json {"type": "array", "maxItems": 0}'), ["f[]"], ["f[1]", "f"]),
    ],
)
def test_texts_are_told_apart(compiler, constraint, good, bad):
    assert [text for text in good if not accepts(compiler.build_matcher(constraint), text)] == []
    assert [text for text in bad if accepts(compiler.build_matcher(constraint), text)] == []


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Constraint.regex("(?=a)b"), "regex: .*look-around"),
        (Constraint.regex(r"(a)\1"), "regex: .*backreferences"),
        (Constraint.regex("["), "regex: .*unclosed character class"),
        (Constraint.regex("a[^\\s\\S]"), "regex: "),
        (Constraint.grammar("start: nothing"), "grammar: .*nothing"),
        (Constraint.grammar("root ::= nothing"), "grammar: the GBNF text is not understood.*nothing"),
        (Constraint.grammar("begin: /a/"), "grammar: "),
        (Constraint.grammar("start: <|end|>"), "grammar: .*special token"),
        (Constraint.grammar(f"start: <[{len(TOKEN_BYTES) - 1}]>"), "grammar: no text of this vocabulary"),
        (Constraint.json_schema(False), "json_schema: "),
        (Constraint.json_schema({"type": "integer", "minimum": 3, "maximum": 1}), "json_schema: "),
        (
            Constraint.json_schema({"items": {"oneOf": [{}, {"minLength": 1}]}}),
            "json_schema: #/items: the keyword 'oneOf' cannot be kept",
        ),
        (
            Constraint.json_schema({"type": "string", "pattern": "(?=a)"}),
            "json_schema: #: the keyword 'pattern' .*look-around",
        ),
        (
            Constraint.json_schema({"patternProperties": {"a": {}, "b": {}}}),
            "json_schema: #: the keyword 'patternProperties' .*not disjoint",
        ),
        (Constraint.json_schema({"type": "text"}), "json_schema: .*text"),
    ],
)
def test_what_cannot_be_compiled_is_refused(compiler, constraint, message):
    with pytest.raises(RequestError, match=f"^{message}"):
        compiler.build_matcher(constraint)


def test_compiled_grammars_are_kept_within_a_bound(compiler):
    built = []
    compiler.build_token_bytes = lambda: built.append(1) or TOKEN_BYTES
    for i in range(MOST_GRAMMARS + 5):
        compiler.build_matcher(Constraint.choice([f"c{i}"]))
        compiler.build_matcher(Constraint.choice(["c0"]))
    assert len(compiler.grammars) == MOST_GRAMMARS
    assert (Constraint.choice(["c0"]), False) in compiler.grammars
    assert (Constraint.choice(["c1"]), False) not in compiler.grammars
    assert built == [1]


LISTED = {
    "properties": {
        "a": {"type": "integer"},
        "é": {"type": "integer"},
        "\n": {"type": "integer"},
        "/": {"type": "integer"},
    }
}


@pytest.mark.parametrize(
    "spelling", ["a", "\\u0061", "é", "\\u00e9", "\\u00E9", "\\n", "\\u000a", "/", "\\/", "\\u002f"]
)
@pytest.mark.parametrize(
    "others", [{"additionalProperties": {"type": "string"}}, {"patternProperties": {"^[^x]$": {"type": "string"}}}]
)
def test_a_listed_key_cannot_come_in_another_spelling(compiler, spelling, others):
    constraint = Constraint.json_schema({"type": "object", **LISTED, **others})
    assert accepts(compiler.build_matcher(constraint), '{"b": "x"}')
    assert not accepts(compiler.build_matcher(constraint), f'{{"{spelling}": "x"}}')


@pytest.mark.parametrize("length", [100, 5000])
def test_long_forced_text_comes_whole(compiler, length):
    text = "".join(chr(0x20 + i % 90) for i in range(length))
    matcher = compiler.build_matcher(Constraint.choice([text]))
    data = b""
    while pieces := allowed(matcher):
        data += pieces[-1]
        matcher.accept(TOKEN_BYTES.index(pieces[-1]))
    assert data.decode() == text
    assert matcher.is_complete


def test_text_that_the_tokenizer_would_change_is_forced_all_the_same():
    compiler = ConstraintCompiler(lambda: TOKEN_BYTES, lambda text: spell(text.replace("▁", " ")))
    assert accepts(compiler.build_matcher(Constraint.choice(["▁x ▁"])), "▁x ▁")


def test_without_the_library_one_error_says_how_to_get_it(compiler, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(BackendUnavailableError, match=r'pip install "phlite\[constrained\]"'):
        compiler.build_matcher(Constraint.choice(["a"]))
