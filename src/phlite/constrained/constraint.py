"""What the text of an answer must be. Plain values, checked when they are made; compiled when they are first used."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from phlite.constrained.pattern import MAX_EXPANDED, expanded_size
from phlite.constrained.schema import check_schema
from phlite.errors import RequestError

__all__ = ["MAX_SOURCE_BYTES", "Constraint", "JSONModel"]

Kind = Literal["json_schema", "regex", "choice", "grammar"]

MAX_SOURCE_BYTES = 1 << 20
MAX_REGEX_BYTES = 1 << 13
MAX_CHOICES = 1000
MAX_RULES = 500

# Options of a rule that change what the text means (a hidden end) or promise what a grammar cannot keep.
_RULE_OPTIONS = re.compile(r"^\s*[\w-]+\s*\[[^\]\n]*\b(temperature|stop|stop_capture)\b", re.MULTILINE)
_RULE = re.compile(r":[^:=]|::=")
_EMBEDDED_SCHEMA = re.compile(r"%json\s*")


class JSONModel(Protocol):
    """A class that knows its JSON schema, such as a pydantic model; pydantic itself is not needed."""

    def model_json_schema(self) -> dict[str, object]:
        """Return the JSON schema of the class."""

    def model_validate_json(self, json_data: str) -> object:
        """Return an instance made from JSON text."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the whole text of an answer must be; made by one of the class methods, hashable, safe to share.

    kind:   "json_schema", "regex", "choice" or "grammar"
    source: the schema or the list of choices as JSON, the pattern, or the grammar
    """

    kind: Kind
    source: str

    @classmethod
    def json_schema(cls, schema: Mapping[str, object] | str | JSONModel | bool) -> Constraint:
        """Return the constraint "JSON that this schema (draft 2020-12) describes".

        The JSON comes on one line with `, ` and `: ` between its parts, properties in the order of the schema. A string
        `format` counts as much as every other keyword.

        schema: an object, its JSON text, or a class with `model_json_schema()`, such as a pydantic model
        raises: RequestError that names an unsupported or unknown keyword and its place, or a schema that is too large,
                too deep or no schema
        """
        value = _schema_value(schema)
        check_schema(value)
        # Key order is meaning here (properties come in it), so the text is the schema's identity.
        return cls("json_schema", _checked_source("json_schema", json.dumps(value, ensure_ascii=False)))

    @classmethod
    def json_object(cls) -> Constraint:
        """Return the constraint "a JSON object, whatever it holds"."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        r"""Return the constraint "the pattern matches the whole text".

        pattern: a regular expression in the syntax of Rust's regex crate, which is that of Python without look-around
                 and back-references; `\d \w \s` are Unicode's
        raises:  RequestError for a pattern that is too long; one that is not understood is refused when it is compiled
        """
        _checked_source("regex", pattern, limit=MAX_REGEX_BYTES)
        if expanded_size(pattern) > MAX_EXPANDED:
            raise RequestError(f"regex: it repeats more than {MAX_EXPANDED} things; use smaller counts")
        return cls("regex", pattern)

    @classmethod
    def choice(cls, choices: Iterable[str]) -> Constraint:
        """Return the constraint "one of these texts".

        raises: RequestError for no choices, more than 1,000, or one that is empty or no string
        """
        texts = [choices] if isinstance(choices, str) else list(choices)
        if not 1 <= len(texts) <= MAX_CHOICES:
            raise RequestError(f"choice: got {len(texts)} choices, expected 1 to {MAX_CHOICES}")
        for text in texts:
            if not isinstance(text, str) or not text:
                raise RequestError(f"choice: got {text!r}, expected non-empty strings")
        return cls("choice", _checked_source("choice", json.dumps(texts, ensure_ascii=False)))

    @classmethod
    def grammar(cls, text: str) -> Constraint:
        """Return the constraint "what the rule `start` of this grammar derives".

        text:   a context-free grammar in Lark's syntax, or in llama.cpp's GBNF (its rule is `root`)
        raises: RequestError for rule options that the engine cannot keep (`temperature`, `stop`); what is not
                understood is refused when it is compiled
        """
        option = _RULE_OPTIONS.search(text) if isinstance(text, str) else None
        if option is not None:
            raise RequestError(
                f"grammar: rule option {option[1]!r}: not supported, the engine could not keep it; leave it out"
                " (`lazy`, `suffix` and `max_tokens` are possible)"
            )
        _checked_source("grammar", text)
        n_rules = len(_RULE.findall(text))
        if n_rules > MAX_RULES:
            raise RequestError(f"grammar: got {n_rules} rules, expected at most {MAX_RULES}")
        if expanded_size(text) > MAX_EXPANDED:
            raise RequestError(f"grammar: it repeats more than {MAX_EXPANDED} things; use smaller counts")
        for embedded in _EMBEDDED_SCHEMA.finditer(text):
            try:
                schema, _ = json.JSONDecoder().raw_decode(text, embedded.end())
            except (ValueError, RecursionError) as error:
                raise RequestError(f"grammar: no JSON schema follows %json: {error}") from None
            check_schema(schema)
        return cls("grammar", text)


def _schema_value(schema: object) -> object:
    if isinstance(schema, str):
        if len(schema) > MAX_SOURCE_BYTES:
            raise RequestError(f"json_schema: got {len(schema)} characters, expected at most {MAX_SOURCE_BYTES}")
        try:
            return json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"json_schema: the text is not JSON: {error}") from None
    if isinstance(schema, (Mapping, bool)):
        return schema
    to_schema = getattr(schema, "model_json_schema", None)
    if callable(to_schema):
        return to_schema()
    raise RequestError(
        f"json_schema: got {type(schema).__name__}, expected a schema object, its JSON text, or a class with "
        "model_json_schema()"
    )


def _checked_source(name: str, source: str, *, limit: int = MAX_SOURCE_BYTES) -> str:
    if not isinstance(source, str):
        raise RequestError(f"{name}: got {type(source).__name__}, expected a string")
    try:
        n_bytes = len(source.encode())
    except UnicodeEncodeError:
        raise RequestError(f"{name}: the text holds a lone surrogate, which no answer can contain") from None
    if n_bytes > limit:
        raise RequestError(f"{name}: got {n_bytes} bytes, expected at most {limit}")
    return source
