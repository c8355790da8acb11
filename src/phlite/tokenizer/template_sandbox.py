"""Runs an untrusted Jinja chat template: no way out of its data, bounded work, bounded memory.

Jinja's sandbox keeps a template from Python's internals. It does not keep it from `'a' * 10**9` or from loops in
loops, so the code that Jinja generates is changed to pay for what it does: a step for each node of a block that runs,
and calls into this environment where an operator, a slice, a comparison or a print could be expensive.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from types import BuiltinMethodType, MethodType
from typing import Any, Final

from jinja2 import Undefined, nodes, pass_context
from jinja2.environment import Template
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import loopcontrols
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace
from markupsafe import Markup

from phlite.tokenizer.template_budget import TemplateBudget, TemplateLimitError, input_steps
from phlite.tokenizer.template_code import GenerationBlock, LimitedCodeGenerator
from phlite.tokenizer.template_filters import (
    METHODS,
    check_format_fields,
    check_percent_format,
    limited_filters,
    limited_tests,
    pay_method,
)

__all__ = ["TemplateProgram", "TemplateRefusalError"]

# Twice the longest chat template known for any model; Phi's have up to 3,000.
_MAX_SOURCE_CHARS: Final = 1 << 15
_MAX_MESSAGE_CHARS = 500
_REFUSED_NODES = (nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport, nodes.ScopedEvalContextModifier)


class TemplateRefusalError(TemplateError):
    """The template itself called raise_exception: it does not accept the conversation."""


class TemplateProgram:
    """A compiled template. Each render runs in an environment of its own, so renders may run in several threads."""

    def __init__(self, source: str) -> None:
        """Compile; raises jinja2 TemplateError, TemplateLimitError or whatever the Python compiler raises."""
        if len(source) > _MAX_SOURCE_CHARS:
            raise TemplateLimitError(f"it has {len(source)} characters, expected at most {_MAX_SOURCE_CHARS}")
        environment = _Environment(TemplateBudget(0))
        tree = environment.parse(source)
        for node in tree.find_all(_REFUSED_NODES):
            raise SecurityError(f"line {node.lineno}: {type(node).__name__} is not allowed")
        for loop in tree.find_all(nodes.For):
            if loop.test is not None:
                # Items that the loop's own condition drops never reach the body, where the steps are paid.
                step = nodes.Call(nodes.EnvironmentAttribute("step"), [], [], None, None)
                loop.test = nodes.And(step, loop.test)
        self._code = environment.compile(tree)

    def render(self, variables: Mapping[str, object]) -> str:
        """Return the text.

        raises: TemplateRefusalError, TemplateLimitError, jinja2's TemplateError, or what Python's operators raise
        """
        environment = _Environment(TemplateBudget(input_steps(variables)))
        template = Template.from_code(environment, self._code, dict(environment.globals))
        chunks = []
        for chunk in template.root_render_func(template.new_context(dict(variables))):
            environment.budget.spend_chars(len(chunk))
            chunks.append(chunk)
        return "".join(chunks)


class _SafeNamespace(Namespace):
    """`namespace()` whose attributes cannot pose as Python's own."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _check_attribute(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: object) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"a namespace has no attribute {name!r}")


class _Format:
    """A string's format method, limited."""

    def __init__(self, budget: TemplateBudget, text: str, function: Any) -> None:
        self._budget, self._text, self._function = budget, text, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        check_format_fields(self._budget, self._text, (args, kwargs))
        return self._function(*args, **kwargs)


class _Environment(ImmutableSandboxedEnvironment):
    """The environment of one render; the generated code calls it for everything that costs."""

    code_generator_class = LimitedCodeGenerator
    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "**", "%"])

    def __init__(self, budget: TemplateBudget) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=self._printed,
            extensions=[loopcontrols, GenerationBlock],
            cache_size=0,
        )
        self.budget = budget
        self.concat = self._concatenated  # type: ignore[method-assign]
        self.filters: dict[str, Any] = limited_filters(budget)
        self.tests: dict[str, Any] = limited_tests(budget)
        self.globals = {
            "range": safe_range,
            "dict": _to_dict,
            "namespace": _SafeNamespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        self._functions = {*self.globals.values(), self.step}

    def step(self) -> bool:
        """Pay one step; true, so that a condition can begin with it."""
        self.budget.spend()
        return True

    # Called by the code that LimitedCodeGenerator writes.

    def joined(self, *values: Any) -> str:
        self.budget.spend_whole(values)
        return "".join(map(str, values))

    def listed(self, *values: Any) -> list[Any]:
        return list(values)

    def tupled(self, *values: Any) -> tuple[Any, ...]:
        return values

    def paired(self, *keys_and_values: Any) -> dict[Any, Any]:
        keys = keys_and_values[::2]
        self.budget.spend_whole(keys)  # a key is hashed with all that is in it
        return dict(zip(keys, keys_and_values[1::2], strict=True))

    def sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        part = value[start:stop:step]
        self.budget.spend_chars(len(part)) if isinstance(part, str) else self.budget.spend(1 + len(part))
        return part

    def compared(self, value: Any) -> Any:
        self.budget.spend_whole(value)
        return value

    def searched(self, value: Any) -> Any:
        if not isinstance(value, dict):
            self.budget.spend_whole(value)
        return value

    # Called by Jinja.

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, tuple):
            self.budget.spend_whole(argument)
        return super().getitem(obj, argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = self.budget
        if isinstance(left, str) and operator == "%":
            check_percent_format(budget, left, right)
        elif isinstance(left, (int, float)) and isinstance(right, (int, float)):
            _check_numbers(operator, left, right)
        elif operator == "*":
            _pay_repeat(budget, left, right)
        elif operator == "+":
            for operand in (left, right):
                budget.spend_chars(len(operand)) if isinstance(operand, str) else _pay_length(budget, operand)
        result = super().call_binop(context, operator, left, right)
        budget.check_int(result)
        if isinstance(result, str):
            budget.spend_chars(len(result))
        return result

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        __self.budget.spend()
        if not __self.is_safe_callable(__obj):
            raise SecurityError(f"{getattr(__obj, '__name__', type(__obj).__name__)} cannot be called")
        receiver = getattr(__obj, "__self__", None)
        if isinstance(receiver, (str, list, tuple, dict)):
            pay_method(__self.budget, receiver, __obj.__name__, args, kwargs)
        elif not isinstance(__obj, (Macro, LoopContext)):
            __self.budget.spend_whole((args, kwargs))
        result = super().call(__context, __obj, *args, **kwargs)
        if isinstance(result, str):
            __self.budget.spend_chars(len(result))
        return result

    def is_safe_callable(self, obj: Any) -> bool:
        if isinstance(obj, (Macro, BlockReference, LoopContext, Undefined, _Format)):
            return True
        if isinstance(obj, (BuiltinMethodType, MethodType)):
            receiver = obj.__self__
            if isinstance(receiver, LoopContext):
                return obj.__name__ in ("changed", "cycle")
            kind = str if isinstance(receiver, Markup) else type(receiver)
            if kind in METHODS:
                return obj.__name__ in METHODS[kind]
        return isinstance(obj, (type, *map(type, self._functions))) and obj in self._functions

    def wrap_str_format(self, value: Any) -> Any:
        function = super().wrap_str_format(value)
        return None if function is None else _Format(self.budget, value.__self__, function)

    @pass_context
    def _printed(self, context: Context, value: Any) -> Any:
        # Asking for the context also keeps Jinja from printing constants while it compiles.
        self.budget.spend_whole(value)
        return value

    def _concatenated(self, parts: Iterable[str]) -> str:
        texts = list(parts)
        self.budget.spend_chars(sum(map(len, texts)))
        return "".join(texts)


def _check_numbers(operator: str, left: float, right: float) -> None:
    if operator == "**" and isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > 128:
        raise TemplateLimitError("it raises a number to a huge power")


def _pay_repeat(budget: TemplateBudget, left: Any, right: Any) -> None:
    value, times = (left, right) if isinstance(right, int) else (right, left)
    if isinstance(times, int) and times > 0:
        if isinstance(value, str):
            budget.spend_chars(len(value) * times)
        elif isinstance(value, (list, tuple)):
            budget.spend(1 + len(value) * times)


def _pay_length(budget: TemplateBudget, value: Any) -> None:
    budget.spend(1 + len(value) if isinstance(value, (list, tuple)) else 1)


def _to_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _raise_exception(message: object) -> None:
    raise TemplateRefusalError(str(message)[:_MAX_MESSAGE_CHARS])


def _strftime_now(pattern: str) -> str:
    if len(pattern) > _MAX_MESSAGE_CHARS or any(character.isdigit() for character in pattern):
        raise TemplateLimitError("it asks for a date in a long form")
    return datetime.now().strftime(pattern)
