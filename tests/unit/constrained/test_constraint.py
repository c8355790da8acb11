"""What can be asked for, and what is refused before anything is compiled."""

from __future__ import annotations

import json
from collections import OrderedDict

import pytest

from phlite.constrained import Constraint
from phlite.constrained.pattern import expanded_size
from phlite.errors import RequestError


def test_a_constraint_is_a_value():
    assert Constraint.regex("a+") == Constraint.regex("a+")
    assert len({Constraint.choice(["a"]), Constraint.choice(["a"]), Constraint.choice(["b"])}) == 2


def test_a_schema_may_be_an_object_its_text_or_a_class_that_knows_it():
    schema = {"type": "object", "properties": {"größe": {"type": "integer"}}}

    class Model:
        @classmethod
        def model_json_schema(cls):
            return schema

    expected = Constraint.json_schema(schema)
    assert Constraint.json_schema(json.dumps(schema)) == expected
    assert Constraint.json_schema(Model) == expected
    assert Constraint.json_schema(OrderedDict(schema)) == expected


def test_the_order_of_properties_is_part_of_a_schema():
    one, other = {"a": {}, "b": {}}, {"b": {}, "a": {}}
    assert Constraint.json_schema({"properties": one}) != Constraint.json_schema({"properties": other})


@pytest.mark.parametrize("schema", [None, 7, [{"type": "object"}], object()])
def test_what_is_no_schema_is_refused(schema):
    with pytest.raises(RequestError, match="json_schema: got"):
        Constraint.json_schema(schema)


@pytest.mark.parametrize("text", ["{", "nothing", '{"type": "object"', "[" * 100_000])
def test_schema_text_that_is_no_json_is_refused(text):
    with pytest.raises(RequestError, match="json_schema: the text is not JSON"):
        Constraint.json_schema(text)


@pytest.mark.parametrize("choices", [[], [""], ["a", ""], [1], ["a"] * 1001])
def test_choices_are_a_few_texts(choices):
    with pytest.raises(RequestError, match="choice: got"):
        Constraint.choice(choices)


@pytest.mark.parametrize("make", [Constraint.regex, Constraint.grammar])
@pytest.mark.parametrize("text", ["x" * ((1 << 20) + 1), "\ud800"])
def test_sources_are_bounded_and_utf8(make, text):
    with pytest.raises(RequestError):
        make(text)


@pytest.mark.parametrize("option", ["temperature=0.5", 'stop="b"', 'capture, stop=""'])
def test_rule_options_that_could_not_be_kept_are_refused(option):
    with pytest.raises(RequestError, match=r"grammar: rule option '(temperature|stop)': not supported"):
        Constraint.grammar(f"start: x\nx[{option}]: /a*/")


@pytest.mark.parametrize("pattern", ["a{1000000}", "(a{1000}){1000}", "((.{100,200}){20,}){0,99}", "[^]{]{0,200000}"])
def test_patterns_that_repeat_without_end_are_refused(pattern):
    with pytest.raises(RequestError, match="repeats more than 100000 things"):
        Constraint.regex(pattern)
    with pytest.raises(RequestError, match="#/items/pattern: the pattern repeats more than 100000"):
        Constraint.json_schema({"items": {"pattern": pattern}})
    with pytest.raises(RequestError, match="repeats more than 100000 things"):
        Constraint.grammar(f"start: /{pattern}/")


@pytest.mark.parametrize(
    ("pattern", "size"),
    [
        ("", 0),
        ("abc", 3),
        (r"\d{4}-\d{2}", 7),
        ("(ab|c){3}d", 10),
        ("[a-z\\]{]{5}", 5),
        ("x{2,}y*|z?", 5),
        ("x{0}y", 1),
    ],
)
def test_the_size_of_a_pattern_counts_its_repetitions(pattern, size):
    assert expanded_size(pattern) == size


def test_grammars_have_a_bounded_number_of_rules():
    rules = "".join(f'\nr{i}: "a" r{i + 1}' for i in range(600))
    with pytest.raises(RequestError, match="grammar: got 601 rules, expected at most 500"):
        Constraint.grammar(f"start: r0{rules}")


def test_rule_options_in_quotes_are_text():
    Constraint.grammar('start: x\nx: "[stop=1]"')


def test_a_schema_inside_a_grammar_is_checked_too():
    Constraint.grammar('start: "call " %json {"type": "object"}')
    with pytest.raises(RequestError, match="#: the keyword 'not' is not supported"):
        Constraint.grammar('start: "call " %json {"not": {}}')
    with pytest.raises(RequestError, match="'x-guidance' is not supported"):
        Constraint.grammar('start: %json {"x-guidance": {"lenient": true}, "not": {}}')
