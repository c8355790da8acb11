"""Keywords that cannot be kept are named with their place, wherever a schema can hold them."""

from __future__ import annotations

import pytest

from phlite.constrained.schema import check_schema
from phlite.errors import RequestError


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"not": {}}, "#"),
        ({"properties": {"a/b~c": {"not": {}}}}, "#/properties/a~1b~0c"),
        ({"patternProperties": {"^x": {"not": {}}}}, "#/patternProperties/^x"),
        ({"additionalProperties": {"not": {}}}, "#/additionalProperties"),
        ({"items": {"not": {}}}, "#/items"),
        ({"items": [{}, {"not": {}}]}, "#/items/1"),
        ({"prefixItems": [True, {"not": {}}]}, "#/prefixItems/1"),
        ({"anyOf": [{}, {"allOf": [{"oneOf": [{"not": {}}]}]}]}, "#/anyOf/1/allOf/0/oneOf/0"),
        ({"$ref": "#/$defs/a%20b", "$defs": {"a b": {"items": {"not": {}}}}}, "#/$defs/a%20b/items"),
    ],
)
def test_a_keyword_is_found_wherever_it_stands(schema, place):
    with pytest.raises(RequestError) as caught:
        check_schema(schema)
    assert f"json_schema: {place}: " in str(caught.value)


@pytest.mark.parametrize(
    "keyword",
    [
        "not",
        "if",
        "contains",
        "uniqueItems",
        "propertyNames",
        "dependentRequired",
        "unevaluatedProperties",
        "$dynamicRef",
    ],
)
def test_keywords_of_the_standard_that_cannot_be_kept_are_refused(keyword):
    with pytest.raises(RequestError, match=f"the keyword '.?{keyword.strip('$')}' is not supported; supported are"):
        check_schema({"type": "object", keyword: True})


def test_a_misspelt_keyword_is_refused_with_the_nearest_one():
    with pytest.raises(RequestError, match=r"#/properties/a: unknown keyword 'minLenght'; did you mean 'minLength'\?"):
        check_schema({"properties": {"a": {"minLenght": 3}}})


def test_options_of_the_grammar_library_cannot_be_smuggled_in():
    with pytest.raises(RequestError, match="'x-guidance' is not supported"):
        check_schema({"x-guidance": {"lenient": True}})


def test_notes_and_annotations_are_allowed():
    check_schema({"title": "T", "description": "D", "default": {"not": 1}, "x-order": 1, "uniqueItems": False})
    check_schema({"_order": 1, "readonly": True, "propertyOrder": 3, "markdownDescription": "M"})


def test_values_are_not_taken_for_schemas():
    check_schema({"enum": [{"not": 1}], "const": {"unknown": 2}, "properties": {"not": {"type": "string"}}})


def test_unused_definitions_do_not_count():
    check_schema({"type": "string", "$defs": {"odd": {"not": {}}}, "definitions": {"odd": {"if": {}}}})


def test_recursive_schemas_end():
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "root": {"$ref": "#"}}}
    check_schema({"$ref": "#/$defs/node", "$defs": {"node": node}})


@pytest.mark.parametrize("reference", ["https://example.com/s.json", "other.json#/a", "#anchor", 7])
def test_references_outside_of_the_schema_are_refused(reference):
    with pytest.raises(RequestError, match=r"#/\$ref: got"):
        check_schema({"$ref": reference})


def test_a_reference_to_nothing_is_refused():
    with pytest.raises(RequestError, match=r"'#/\$defs/b' names nothing"):
        check_schema({"$ref": "#/$defs/b", "$defs": {"a": {}}})


@pytest.mark.parametrize("name", ["idn-email", "regex", "iri", "made-up"])
def test_formats_that_cannot_be_kept_are_refused(name):
    with pytest.raises(RequestError, match=f"#/items/format: got '{name}', supported are date, time"):
        check_schema({"items": {"type": "string", "format": name}})


def test_keys_that_may_come_twice_are_not_counted_on():
    check_schema({"type": "object", "minProperties": 1})
    check_schema({"type": "object", "minProperties": 3, "required": ["a", "b"]})
    with pytest.raises(RequestError, match="'minProperties' is supported up to one more than the 1 required"):
        check_schema({"type": "object", "minProperties": 3, "required": ["a"]})


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"const": "bell \x07"}, "#/const"),
        ({"items": {"enum": ["a", ["\x00"]]}}, "#/items/enum"),
        ({"properties": {"\x7f": {}}}, "#/properties"),
        ({"required": ["\x1f"]}, "#/required"),
    ],
)
def test_texts_that_could_not_be_written_are_refused(schema, place):
    with pytest.raises(RequestError, match=f"{place}: the character .* cannot be written"):
        check_schema(schema)


def test_texts_with_short_escapes_and_any_language_are_fine():
    check_schema({"const": 'a\n\t\r\b\f"\\/ é 日本 \\u0007', "description": "\x07", "properties": {"\n": {}}})


@pytest.mark.parametrize("value", [7, 0.01, 2500, 9973, 1e-9, 1_000_000])
def test_divisors_that_cost_little_are_allowed(value):
    check_schema({"multipleOf": value})


@pytest.mark.parametrize("values", [[99_991], [123_456.789], [97, 89, 83]])
def test_divisors_that_cost_minutes_are_refused(values):
    with pytest.raises(RequestError, match=r"multipleOf: got .*, too costly"):
        check_schema({"allOf": [{"multipleOf": value} for value in values]})


@pytest.mark.parametrize("value", [0, -1, True, "2"])
def test_divisors_are_numbers_above_zero(value):
    with pytest.raises(RequestError, match=r"multipleOf: got .*, expected a number above 0"):
        check_schema({"multipleOf": value})


def test_a_name_below_the_top_is_refused_where_references_could_mean_it():
    check_schema({"$id": "https://a.example/s", "items": {"$ref": "#"}})
    check_schema({"items": {"$id": "item"}})
    with pytest.raises(RequestError, match=r"#/items: '\$id' below the top"):
        check_schema({"items": {"$id": "item"}, "additionalProperties": {"$ref": "#"}})


def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


def test_size_and_depth_are_bounded():
    check_schema(nested(60))
    with pytest.raises(RequestError, match="nested deeper than 64"):
        check_schema(nested(64))
    with pytest.raises(RequestError, match="nested deeper than 64"):
        check_schema(nested(100_000))
    with pytest.raises(RequestError, match="more than 20000 parts"):
        check_schema({"enum": list(range(20_001))})
    with pytest.raises(RequestError, match="#/const: got 70000 characters"):
        check_schema({"const": "x" * 70_000})


def test_values_that_json_does_not_have_are_refused():
    with pytest.raises(RequestError, match="got set in it"):
        check_schema({"enum": [{1, 2}]})
    with pytest.raises(RequestError, match="got the number nan in it"):
        check_schema({"const": float("nan")})
    with pytest.raises(RequestError, match="got the key 1"):
        check_schema({"properties": {1: {}}})
