"""Random JSON schemas of everything that constrained output supports; each has short instances."""

from __future__ import annotations

import random

TEXTS = ["a", "Zoë", "日本語", 'quote " and \\', "line\nend", "🦆 duck", "\t\r", "true", "<|end|>", "▁x"]
PATTERNS = ["^[a-z]{1,4}$", "^\\d{3}-\\d{2}$", "^(red|green)( [A-F]+)?$", "[aeiou]", "^.{2}$", "^é+\\.$"]
FORMATS = ["date", "time", "date-time", "ipv4", "uuid", "hostname", "email", "duration"]


def random_schema(rng: random.Random, depth: int = 3) -> dict:
    """A schema of at most `depth` levels of arrays and objects."""
    kinds = [integer, number, string, boolean_or_null, enumeration]
    if depth > 0:
        kinds += [array, array, record, record, record, union, both, dictionary]
    return rng.choice(kinds)(rng, depth)


def random_root(rng: random.Random) -> dict:
    """A schema whose instances have more than a few characters, sometimes with a recursive definition."""
    if rng.random() < 0.2:
        node = {
            "type": "object",
            "properties": {
                "value": random_schema(rng, 0),
                "next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
            "additionalProperties": False,
        }
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$ref": "#/$defs/n", "$defs": {"n": node}}
    return rng.choice([record, record, array, union])(rng, 3)


def integer(rng: random.Random, depth: int) -> dict:
    schema: dict = {"type": "integer"}
    low = rng.randint(-200, 200)
    if rng.random() < 0.6:
        schema[rng.choice(["minimum", "exclusiveMinimum"])] = low
    if rng.random() < 0.6:
        schema[rng.choice(["maximum", "exclusiveMaximum"])] = low + rng.randint(12, 300)
    if rng.random() < 0.2:
        schema["multipleOf"] = rng.choice([2, 3, 5])
    return schema


def number(rng: random.Random, depth: int) -> dict:
    if rng.random() < 0.4:
        return {"type": "number"}
    low = rng.randint(-99, 99) / 4
    return {"type": "number", "minimum": low, rng.choice(["maximum", "exclusiveMaximum"]): low + rng.randint(1, 40) / 8}


def string(rng: random.Random, depth: int) -> dict:
    kind = rng.randrange(4)
    if kind == 0:
        low = rng.randint(0, 4)
        return {"type": "string", "minLength": low, "maxLength": low + rng.randint(0, 6)}
    if kind == 1:
        return {"type": "string", "pattern": rng.choice(PATTERNS)}
    if kind == 2:
        return {"type": "string", "format": rng.choice(FORMATS)}
    return {"type": "string", "maxLength": 12}


def boolean_or_null(rng: random.Random, depth: int) -> dict:
    return {"type": rng.choice(["boolean", "null", ["boolean", "null"]])}


def enumeration(rng: random.Random, depth: int) -> dict:
    values = [*rng.sample(TEXTS, 3), 7, -0.5, None, [1, "x"], {"k": "v"}]
    return {"const": rng.choice(values)} if rng.random() < 0.3 else {"enum": rng.sample(values, rng.randint(1, 4))}


def array(rng: random.Random, depth: int) -> dict:
    if rng.random() < 0.3:
        parts = [random_schema(rng, depth - 1) for _ in range(rng.randint(1, 3))]
        return {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}
    low = rng.randint(0, 2)
    return {
        "type": "array",
        "items": random_schema(rng, depth - 1),
        "minItems": low,
        "maxItems": low + rng.randint(0, 2),
    }


def record(rng: random.Random, depth: int) -> dict:
    names = rng.sample(["name", "größe", "a b", "x", "id", 'q"', "漢字", "tags"], rng.randint(1, 4))
    schema: dict = {"type": "object", "properties": {name: random_schema(rng, depth - 1) for name in names}}
    schema["required"] = rng.sample(names, rng.randint(len(names) // 2, len(names)))
    schema["additionalProperties"] = False
    return schema


def dictionary(rng: random.Random, depth: int) -> dict:
    if rng.random() < 0.5:
        patterns = {"^n_[a-z]{1,3}$": random_schema(rng, depth - 1)}
        return {"type": "object", "patternProperties": patterns, "additionalProperties": False, "maxProperties": 2}
    return {"type": "object", "additionalProperties": random_schema(rng, 0), "minProperties": 1, "maxProperties": 3}


def union(rng: random.Random, depth: int) -> dict:
    if rng.random() < 0.3:
        return {"oneOf": [{"type": "string", "maxLength": 5}, integer(rng, depth), {"type": "null"}]}
    return {"anyOf": [random_schema(rng, depth - 1) for _ in range(rng.randint(2, 3))]}


def both(rng: random.Random, depth: int) -> dict:
    first = {"type": "object", "properties": {"a": random_schema(rng, depth - 1)}, "required": ["a"]}
    second = {
        "type": "object",
        "properties": {"b": random_schema(rng, depth - 1)},
        "required": ["b"],
        "maxProperties": 3,
    }
    return {"allOf": [first, second], "properties": {"a": True, "b": True}}
