"""The filters, tests and methods that a chat template may use, each paid for from the render's budget.

Jinja's own ones stay where their cost is known from their arguments. Those that can multiply a string or a list
check their arguments first; those that no chat template needs are not there.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sized
from string import Formatter
from typing import Any, Final

from jinja2 import filters, pass_eval_context, tests
from jinja2.nodes import EvalContext

from phlite.tokenizer.template_budget import PLAIN_CONTAINERS, TemplateBudget, TemplateLimitError

__all__ = ["METHODS", "check_format_fields", "check_percent_format", "limited_filters", "limited_tests", "pay_method"]

_FILTERS: Final[Mapping[str, Any]] = filters.FILTERS
_TESTS: Final[Mapping[str, Any]] = tests.TESTS

# Look at one element or hand elements on.
_SHALLOW_FILTERS = ("abs", "attr", "count", "d", "default", "first", "items", "last", "length", "safe")
# Visit the elements of their first argument, a string's characters too.
_ITERATING_FILTERS = ("list", "map", "reject", "rejectattr", "reverse", "select", "selectattr")
# Print, compare or hash what they are given.
_DEEP_FILTERS = (
    *("capitalize", "dictsort", "e", "escape", "float", "groupby", "lower", "max", "min"),
    *("sort", "string", "title", "trim", "truncate", "unique", "upper"),
)
_SHALLOW_TESTS = (
    *("boolean", "callable", "defined", "divisibleby", "escaped", "even", "false", "filter", "float", "integer"),
    *("iterable", "mapping", "none", "number", "odd", "sameas", "sequence", "string", "test", "true", "undefined"),
)
_DEEP_TESTS = (
    *("!=", "<", "<=", "==", ">", ">=", "eq", "equalto", "ge", "greaterthan", "gt", "in", "le", "lessthan", "lower"),
    *("lt", "ne", "upper"),
)
_STRING_METHODS = (
    *("capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal"),
    *("isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower", "lstrip", "partition"),
    *("removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split"),
    *("splitlines", "startswith", "strip", "swapcase", "title", "upper"),
)
METHODS: Final[Mapping[type, frozenset[str]]] = {
    str: frozenset(_STRING_METHODS),
    dict: frozenset(["copy", "get", "items", "keys", "values"]),
    list: frozenset(["copy", "count", "index"]),
    tuple: frozenset(["count", "index"]),
}
_MAX_INDENT = 256
_MAX_JSON_INDENT = 16
_MAX_PRECISION = 15
_MAX_NUMBER_CHARS = 400
_WIDE_PERCENT = re.compile(r"%(?:\([^)]*\))?[^%a-zA-Z]*(?:\*|\d{4})")
_NOT_ASCII = re.compile("[^\x00-\x7f\ufdd0\ufdd1]")


def limited_filters(budget: TemplateBudget) -> dict[str, Callable[..., Any]]:
    """Return the filters by name, paying from budget."""
    table: dict[str, Callable[..., Any]] = {
        "indent": functools.partial(_indent, budget),
        "int": functools.partial(_to_int, budget),
        "join": pass_eval_context(functools.partial(_join, budget)),
        "replace": functools.partial(_replace, budget),
        "format": functools.partial(_format, budget),
        "round": _round,
        "tojson": functools.partial(_to_json, budget),
    }
    for names, pay in ((_SHALLOW_FILTERS, _pay_one), (_ITERATING_FILTERS, _pay_elements), (_DEEP_FILTERS, _pay_whole)):
        for name in names:
            table[name] = _paid(_FILTERS[name], pay, budget)
    return table


def limited_tests(budget: TemplateBudget) -> dict[str, Callable[..., Any]]:
    """Return the tests by name, paying from budget."""
    table = {name: _paid(_TESTS[name], _pay_one, budget) for name in _SHALLOW_TESTS}
    table.update({name: _paid(_TESTS[name], _pay_whole, budget) for name in _DEEP_TESTS})
    return table


def pay_method(budget: TemplateBudget, receiver: object, name: str, args: tuple[Any, ...], kwargs: object) -> None:
    """Pay for a call of one of METHODS before it happens."""
    steps = budget.spend_whole((args, kwargs))
    if isinstance(receiver, str):
        budget.spend_chars(len(receiver))
        if name == "replace" and len(args) >= 2:
            _pay_replace(budget, receiver, args[0], args[1])
        elif name == "join" and args:
            budget.spend_chars(len(receiver) * steps)
        elif name in ("split", "rsplit", "splitlines"):
            budget.spend(len(receiver) >> 3)
    elif isinstance(receiver, (list, tuple)):
        budget.spend_whole(receiver)


def check_percent_format(budget: TemplateBudget, text: str, args: object) -> None:
    """Pay for `text % args`; raises TemplateLimitError for a width or precision of four digits or from an argument."""
    if _WIDE_PERCENT.search(text):
        raise TemplateLimitError("it formats to a width above 999")
    budget.spend(budget.spend_whole(args) * text.count("%") + (len(text) >> 3))


def check_format_fields(budget: TemplateBudget, text: str, args: object) -> None:
    """Pay for text.format(args); raises TemplateLimitError for a width of four digits or from an argument."""
    n_fields = 0
    for _, field, spec, _ in Formatter().parse(text):
        n_fields += field is not None
        if spec and ("{" in spec or re.search(r"\d{4}", spec)):
            raise TemplateLimitError("it formats to a width above 999")
    budget.spend((budget.spend_whole(args) + 16) * n_fields)


def _paid(
    function: Callable[..., Any], pay: Callable[[TemplateBudget, tuple[Any, ...], object], None], budget: TemplateBudget
) -> Callable[..., Any]:
    """Return function with its arguments paid before and its result after; it keeps the marks that Jinja looks for."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        pay(budget, args, kwargs)
        result = function(*args, **kwargs)
        if isinstance(result, Iterator):
            return _to_list(budget, result)
        if isinstance(result, str):
            budget.spend_chars(len(result))
        elif isinstance(result, Sized):
            budget.spend(1 + len(result))
        return result

    return call


def _pay_one(budget: TemplateBudget, args: tuple[Any, ...], kwargs: object) -> None:
    budget.spend()


def _pay_elements(budget: TemplateBudget, args: tuple[Any, ...], kwargs: object) -> None:
    budget.spend(1 + max((len(arg) for arg in args if isinstance(arg, (str, *PLAIN_CONTAINERS))), default=0))


def _pay_whole(budget: TemplateBudget, args: tuple[Any, ...], kwargs: object) -> None:
    _pay_elements(budget, args, kwargs)
    budget.spend_whole((args, kwargs))


def _to_list(budget: TemplateBudget, items: Iterator[Any]) -> list[Any]:
    result = []
    for item in items:
        budget.spend()
        result.append(item)
    return result


def _pay_replace(budget: TemplateBudget, text: str, old: object, new: object) -> None:
    budget.spend_chars(text.count(str(old)) * len(str(new)))


def _replace(budget: TemplateBudget, s: object, old: object, new: object, count: int | None = None) -> str:
    budget.spend_whole((s, old, new))
    _pay_replace(budget, str(s), old, new)
    return str(s).replace(str(old), str(new), -1 if count is None else count)


def _join(
    budget: TemplateBudget, eval_ctx: EvalContext, value: Any, d: object = "", attribute: str | int | None = None
) -> str:
    if isinstance(value, Sized):
        budget.spend(len(value))
    items = _to_list(budget, iter(value))
    budget.spend_whole((items, d))
    budget.spend_chars(len(str(d)) * len(items))
    return filters.sync_do_join(eval_ctx, items, str(d), attribute)


def _indent(budget: TemplateBudget, s: object, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    n_chars = len(width) if isinstance(width, str) else width
    if n_chars > _MAX_INDENT:
        raise TemplateLimitError(f"it indents by {n_chars} characters")
    budget.spend_whole(s)
    text = str(s)
    budget.spend_chars(len(text) + (len(text.splitlines()) + 1) * n_chars)
    return filters.do_indent(text, width, first, blank)


def _format(budget: TemplateBudget, value: object, *args: Any, **kwargs: Any) -> str:
    budget.spend_whole(value)
    check_percent_format(budget, str(value), kwargs or args)
    return filters.do_format(str(value), *args, **kwargs)


def _round(value: float, precision: int = 0, method: Any = "common") -> float:
    if not isinstance(precision, int) or abs(precision) > _MAX_PRECISION:
        raise TemplateLimitError(f"it rounds to {precision} digits")
    return filters.do_round(value, precision, method)


def _to_int(budget: TemplateBudget, value: Any, default: int = 0, base: int = 10) -> int:
    if isinstance(value, str) and len(value) > _MAX_NUMBER_CHARS:
        raise TemplateLimitError(f"it reads a number of {len(value)} digits")
    result = filters.do_int(value, default, base)
    budget.check_int(result)
    return result


def _to_json(
    budget: TemplateBudget,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON without the HTML escapes of Jinja's own filter.

    source: transformers 5.x, utils/chat_template_utils.py
    """
    steps = budget.spend_whole((value, separators))
    if indent is not None:
        if not isinstance(indent, int) or indent > _MAX_JSON_INDENT:
            raise TemplateLimitError(f"it indents JSON by {indent}")
        budget.spend_chars(steps * _depth(value) * max(indent, 0))
    if separators is not None and sum(map(len, separators)) > _MAX_JSON_INDENT:
        raise TemplateLimitError("it separates JSON by long strings")
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    budget.spend_chars(len(text) * (6 if ensure_ascii else 1))
    # Guard characters stay as they are, or the tokenizer could not take them out.
    return _NOT_ASCII.sub(lambda match: json.dumps(match.group())[1:-1], text) if ensure_ascii else text


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        below: list[object] = []
        for item in level:
            if isinstance(item, Mapping):
                below.extend(item.values())
            elif isinstance(item, (list, tuple)):
                below.extend(item)
        level = below
    return depth
