"""Constraints written to hurt: they are refused or compiled within a second or so, and never end the process."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from phlite.constrained import Constraint
from phlite.constrained.compiler import ConstraintCompiler
from phlite.errors import RequestError

TOKEN_BYTES = [bytes([i]) for i in range(256)] + [b"ab", b"    ", b"}}}}", b'", "', b""]
COMPILE_S = 20  # a bound for slow machines under load; about one second elsewhere


def chain(n, link):
    """A schema that reaches its end through n references."""
    definitions = {f"d{i}": link({"$ref": f"#/$defs/d{i + 1}"}) for i in range(n)}
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{n}": {"type": "integer"}}}


def doubling(n, keyword):
    definitions = {f"d{i}": {keyword: [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(n)}
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{n}": {"type": "integer"}}}


SCHEMAS = {
    "long chain": chain(4000, lambda next: next),
    "long chain of arrays": chain(3500, lambda next: {"type": "array", "items": next}),
    "long chain of both": chain(3000, lambda next: {"allOf": [next, {"minimum": 1}]}),
    "long chain of either": chain(3000, lambda next: {"anyOf": [next, {"type": "null"}]}),
    "endless reference": {"$ref": "#"},
    "two endless references": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "itself and itself": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]},
    "array without end": {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    "object without end": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "doubling either": doubling(30, "anyOf"),
    "doubling both": doubling(30, "allOf"),
    "product of choices": {
        "allOf": [{"anyOf": [{"properties": {f"{a}{i}": {"type": "null"}}} for a in "ab"]} for i in range(20)]
    },
    "a billion items": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
    "a billion characters": {"type": "string", "minLength": 10**9, "maxLength": 10**9},
    "many properties": {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(3000)}},
    "a large number": {"type": "integer", "minimum": 10**300},
    "patterns that meet": {"type": "string", "allOf": [{"pattern": f".*a.{{{i}}}b"} for i in range(8)]},
}
PATTERNS = [
    "(x+x+)+y",
    "(a|b)*a(a|b){18}",
    "(.*a){30}",
    ".{8000}",
    "[a-z]{99999}",
    "a?" * 1300 + "a" * 1300,
    "(" * 4000,
]
GRAMMARS = {
    "ambiguous": 'start: e\ne: e e | e e e | "a" |',
    "only itself": "start: start",
    "deep": "start: " + "(" * 5000 + '"a"' + ")" * 5000,
    "deep gbnf": "root ::= " + "(" * 900 + '"a"' + ")" * 900,
    "cubes": 'root ::= a{1,100}\na ::= b{1,100}\nb ::= c{1,100}\nc ::= "x"{1,100}',
    "no text": 'start: "\x00" /[\\xff]/',
    "chain": "start: r0" + "".join(f'\nr{i}: "a" r{i + 1} | "b"' for i in range(400)) + '\nr400: "c"',
}
CASES = [
    *(pytest.param(lambda s=s: Constraint.json_schema(s), id=name) for name, s in SCHEMAS.items()),
    *(pytest.param(lambda p=p: Constraint.regex(p), id=p[:20]) for p in PATTERNS),
    *(pytest.param(lambda g=g: Constraint.grammar(g), id=name) for name, g in GRAMMARS.items()),
]


@pytest.fixture(scope="module")
def compiler():
    return ConstraintCompiler(lambda: TOKEN_BYTES, lambda text: list(text.encode()))


@pytest.mark.parametrize("make", CASES)
def test_a_hostile_constraint_is_refused_or_kept_in_bounded_time(compiler, make):
    random = np.random.default_rng(1)
    started_s = time.perf_counter()
    try:
        matcher = compiler.build_matcher(make())
        assert time.perf_counter() - started_s < COMPILE_S
        for _ in range(40):
            allowed = np.flatnonzero(np.unpackbits(matcher.mask().view(np.uint8), bitorder="little"))
            if not allowed.size:
                break
            matcher.accept(int(random.choice(allowed)))
    except RequestError:
        pass
    assert time.perf_counter() - started_s < COMPILE_S


def test_a_deep_schema_compiles_from_a_thread_with_a_small_stack(compiler):
    schema = chain(2000, lambda next: {"type": "array", "items": next})
    results = []
    size_before = threading.stack_size(512 << 10)
    try:
        thread = threading.Thread(target=lambda: results.append(compiler.build_matcher(Constraint.json_schema(schema))))
        thread.start()
    finally:
        threading.stack_size(size_before)
    thread.join()
    assert results[0].mask().any()
    assert threading.stack_size() == size_before
