"""Which JSON schemas can be kept exactly: every keyword is known and supported, or refused with its name and place.

The grammar library refuses what it does not implement too, but skips keywords that it has never heard of, obeys options
hidden in the schema (`x-guidance`), and does not say where a keyword stands. So the schema is walked here first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from urllib.parse import unquote

from phlite.constrained.formats import FORMATS, PATTERN_OF_FORMAT
from phlite.constrained.pattern import MAX_EXPANDED, expanded_size
from phlite.errors import RequestError

__all__ = ["check_schema", "places_of", "with_exact_formats"]

MAX_DEPTH = 64
MAX_NODES = 20_000
# A divisor costs an automaton of as many states: 10,000 take a quarter of a second to compile, 100,000 three.
MAX_DIVISOR = 10_000
MAX_TEXT_CHARS = 1 << 16

_CONTROL_CHARACTER = re.compile("[\x00-\x07\x0b\x0e-\x1f\x7f]")

# Keyword -> what its value holds: schemas to walk, or nothing.
_ONE = ("items", "additionalItems", "additionalProperties")
_LIST = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAP = ("properties", "patternProperties")
_PLAIN = (
    *("$ref", "const", "enum", "type", "minItems", "maxItems", "required", "minProperties", "maxProperties"),
    *("minLength", "maxLength", "pattern", "format"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
)
_DEFINITIONS = ("$defs", "definitions")
_ANNOTATIONS = (
    *("$schema", "$id", "id", "$comment", "$vocabulary", "title", "description", "default", "examples", "example"),
    *("deprecated", "readOnly", "writeOnly", "contentMediaType", "contentEncoding", "discriminator"),
)
_LOWER_ANNOTATIONS = frozenset(map(str.lower, _ANNOTATIONS))
_SUPPORTED = (*_ONE, *_LIST, *_MAP, *_PLAIN)
_KNOWN = frozenset((*_SUPPORTED, *_DEFINITIONS, *_ANNOTATIONS))
# Of the drafts, and not implemented by the library.
_UNSUPPORTED = frozenset(
    [
        *("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "propertyNames"),
        *("dependentRequired", "dependentSchemas", "dependencies", "unevaluatedItems", "unevaluatedProperties"),
        *("$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor"),
        *("contentSchema", "divisibleBy", "disallow", "extends"),
    ]
)


def check_schema(schema: object) -> None:
    """Return nothing, or raise RequestError where a schema cannot be kept exactly.

    Definitions are looked at where a `$ref` reaches them. The message names the keyword and its place, a JSON pointer.
    """
    _check_size(schema)
    renamed, refers, divisor = "", False, 1
    for place, node in _walk(schema):
        for keyword in node:
            _check_keyword(keyword, node[keyword], place)
        _check_texts(node, place)
        _check_min_properties(node, place)
        divisor *= _divisor(node)
        if divisor > MAX_DIVISOR:
            raise RequestError(
                f"json_schema: {place}/multipleOf: got {node['multipleOf']}, too costly: all multipleOf together,"
                f" without decimal point and zeros at the end, may multiply to {MAX_DIVISOR}"
            )
        renamed = renamed or (place if place != "#" and {"id", "$id"} & node.keys() else "")
        refers = refers or "$ref" in node
    if renamed and refers:
        raise RequestError(f"json_schema: {renamed}: '$id' below the top is not supported beside $ref: it renames them")


def places_of(schema: object, keyword: str) -> list[str]:
    """Return where a keyword stands in a checked schema, as JSON pointers."""
    return [place for place, node in _walk(schema) if keyword in node]


def with_exact_formats(schema: object) -> dict[str, object]:
    """Return a checked schema with PATTERN_OF_FORMAT in the place of formats; changes what it is given."""
    if isinstance(schema, bool):
        return {} if schema else {"enum": []}
    assert isinstance(schema, dict)
    for _, node in list(_walk(schema)):
        rules = PATTERN_OF_FORMAT.get(str(node.get("format")))
        if rules is not None and isinstance(node, dict):
            del node["format"]
            node["allOf"] = [*node.get("allOf", []), rules]
    return schema


def _walk(schema: object) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield place and value of every schema that counts, in order: the whole, those inside, those that $ref names."""
    pending: list[tuple[str, object]] = [("#", schema)]
    seen: set[str] = set()
    while pending:
        place, node = pending.pop()
        if place in seen or isinstance(node, bool):
            continue
        seen.add(place)
        if not isinstance(node, Mapping):
            raise RequestError(f"json_schema: {place}: got {type(node).__name__}, expected an object or a boolean")
        yield place, node
        pending += reversed(_subschemas(schema, node, place))


def _check_size(schema: object) -> None:
    """Raise unless the value is JSON of at most MAX_NODES parts and MAX_DEPTH levels."""
    pending, n_nodes = [(schema, 1)], 0
    while pending:
        node, depth = pending.pop()
        n_nodes += 1
        if n_nodes > MAX_NODES:
            raise RequestError(f"json_schema: more than {MAX_NODES} parts; split the schema or make it smaller")
        if depth > MAX_DEPTH:
            raise RequestError(f"json_schema: nested deeper than {MAX_DEPTH} levels; use $ref for recursive types")
        if isinstance(node, Mapping):
            for key in node:
                if not isinstance(key, str):
                    raise RequestError(f"json_schema: got the key {key!r}, expected strings as in JSON")
            pending += [(value, depth + 1) for value in node.values()]
        elif isinstance(node, (list, tuple)):
            pending += [(value, depth + 1) for value in node]
        elif isinstance(node, float) and not math.isfinite(node):
            raise RequestError(f"json_schema: got the number {node} in it, expected finite numbers as in JSON")
        elif node is not None and not isinstance(node, (str, int, float, bool)):
            raise RequestError(f"json_schema: got {type(node).__name__} in it, expected values of JSON")


def _check_keyword(keyword: str, value: object, place: str) -> None:
    if keyword in _KNOWN:
        if keyword == "pattern":
            _check_pattern(value, f"{place}/pattern")
        if keyword == "patternProperties" and isinstance(value, Mapping):
            for pattern in value:
                _check_pattern(pattern, f"{place}/patternProperties")
        if keyword == "format" and value not in FORMATS:
            raise RequestError(
                f"json_schema: {place}/format: got {value!r}, supported are {', '.join(FORMATS)}; leave it out, or"
                " say it with pattern"
            )
        return
    if keyword == "uniqueItems" and value is False:
        return
    if keyword in _UNSUPPORTED or keyword == "x-guidance":
        raise RequestError(
            f"json_schema: {place}: the keyword {keyword!r} is not supported; supported are {', '.join(_SUPPORTED)}"
        )
    if keyword.startswith(("x-", "_")) or keyword.lower() in _LOWER_ANNOTATIONS:
        return
    import difflib  # few schemas need it

    # The standard ignores keywords it does not know; one that is nearly a known one is a mistake.
    near = difflib.get_close_matches(keyword, [*_SUPPORTED, *_UNSUPPORTED, *_DEFINITIONS], n=1, cutoff=0.8)
    if near:
        raise RequestError(
            f"json_schema: {place}: unknown keyword {keyword!r}; did you mean {near[0]!r}? (your own begin with x-)"
        )


def _check_texts(node: Mapping[str, object], place: str) -> None:
    r"""Raise for texts that must come out as they stand and need a \u escape, which answers do not use."""
    for keyword in ("const", "enum", "properties", "required"):
        value = node.get(keyword)
        pending: list[object] = [[*value]] if keyword == "properties" and isinstance(value, Mapping) else [value]
        while pending:
            value = pending.pop()
            if isinstance(value, Mapping):
                pending += [*value, *value.values()]
            elif isinstance(value, (list, tuple)):
                pending += value
            elif isinstance(value, str) and len(value) > MAX_TEXT_CHARS:
                raise RequestError(
                    f"json_schema: {place}/{keyword}: got {len(value)} characters, expected at most {MAX_TEXT_CHARS}"
                )
            elif isinstance(value, str) and (found := _CONTROL_CHARACTER.search(value)):
                raise RequestError(f"json_schema: {place}/{keyword}: the character {found[0]!r} cannot be written")


def _divisor(node: Mapping[str, object]) -> int:
    """Return multipleOf as an integer without zeros at the end, 1 where there is none."""
    value = node.get("multipleOf", 1)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise RequestError(f"json_schema: multipleOf: got {value!r}, expected a number above 0")
    return int("".join(map(str, Decimal(str(value)).normalize().as_tuple().digits)))


def _check_pattern(pattern: object, place: str) -> None:
    if isinstance(pattern, str) and expanded_size(pattern) > MAX_EXPANDED:
        raise RequestError(
            f"json_schema: {place}: the pattern repeats more than {MAX_EXPANDED} things; use smaller counts"
        )


def _check_min_properties(node: Mapping[str, object], place: str) -> None:
    """Raise where keys that the schema does not name would have to be counted: they may come out twice."""
    minimum, required = node.get("minProperties", 0), node.get("required", ())
    n_required = len(set(map(str, required))) if isinstance(required, (list, tuple)) else 0
    if isinstance(minimum, (int, float)) and minimum > n_required + 1:
        raise RequestError(
            f"json_schema: {place}: the keyword 'minProperties' is supported up to one more than the {n_required}"
            f" required properties, got {minimum}; name more of them in required"
        )


def _subschemas(root: object, node: Mapping[str, object], place: str) -> list[tuple[str, object]]:
    """Return place and value of the schemas inside a schema, in order, and of the one that $ref names."""
    found: list[tuple[str, object]] = []
    for keyword, value in node.items():
        here = f"{place}/{keyword}"
        if keyword in _MAP and isinstance(value, Mapping):
            found += [(f"{here}/{_escape(key)}", child) for key, child in value.items()]
        elif isinstance(value, (list, tuple)) and (keyword in _LIST or keyword == "items"):
            found += [(f"{here}/{i}", child) for i, child in enumerate(value)]
        elif keyword in _ONE:
            found.append((here, value))
        elif keyword == "$ref":
            found += _referenced(root, value, here)
    return found


def _referenced(root: object, reference: object, place: str) -> list[tuple[str, object]]:
    if not isinstance(reference, str):
        raise RequestError(f"json_schema: {place}: got {reference!r}, expected a string such as '#/$defs/name'")
    if reference != "#" and not reference.startswith("#/"):
        raise RequestError(
            f"json_schema: {place}: got {reference!r}, expected a reference inside the schema such as '#/$defs/name';"
            " nothing is fetched"
        )
    node = root
    for part in reference.split("/")[1:]:
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(node, Mapping) and key in node:
            node = node[key]
        elif isinstance(node, (list, tuple)) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        else:
            raise RequestError(f"json_schema: {place}: {reference!r} names nothing in the schema")
    return [(reference, node)]


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
