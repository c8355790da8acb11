"""How much work and memory a chat template may use: a count of steps, checked against the processor time of a render.

A template comes with a model file from anywhere, so it may loop for ever or ask for a string of a terabyte. Everything
that it does is paid for from a budget before or as it happens: a step for each node that runs, more for long strings
and large containers. Steps make the limit the same on every machine; the time is the backstop for the few operations
whose cost is not known in advance.
"""

from __future__ import annotations

from collections.abc import ItemsView, KeysView, Mapping, ValuesView
from time import thread_time
from typing import Final

from jinja2.utils import Namespace

__all__ = ["PLAIN_CONTAINERS", "TemplateBudget", "TemplateLimitError", "input_steps"]

# Half a second of work in all. Real templates use 10 to 100 steps for a message.
_BASE_STEPS: Final = 500_000
_STEPS_PER_INPUT_STEP: Final = 256
_BASE_SECONDS: Final = 0.75
_SECONDS_PER_INPUT_STEP: Final = 20e-6
# Characters for a step: all strings of a render together are bounded by 32 million characters plus the input's share.
_CHARS_LOG2: Final = 6
_STEPS_BETWEEN_TIME_CHECKS: Final = 128
_MAX_INT_BITS: Final = 128
_SEQUENCES: Final = (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)
PLAIN_CONTAINERS: Final = (*_SEQUENCES, dict, range)


class TemplateLimitError(Exception):
    """A template asks for more work or memory than any real one needs."""


class TemplateBudget:
    """Steps that one render may still take; every method raises TemplateLimitError when there are none left."""

    def __init__(self, input_size: int) -> None:
        """Open a budget for a conversation of input_size steps, see input_steps()."""
        self._left = _BASE_STEPS + _STEPS_PER_INPUT_STEP * input_size
        self._deadline = thread_time() + _BASE_SECONDS + _SECONDS_PER_INPUT_STEP * input_size
        self._next_time_check = self._left

    def spend(self, steps: int = 1) -> None:
        """Pay for a number of steps."""
        self._left -= steps
        if self._left < self._next_time_check:
            self._next_time_check = self._left - _STEPS_BETWEEN_TIME_CHECKS
            if self._left < 0:
                raise TemplateLimitError("it takes too many steps, or builds strings that are too long")
            if thread_time() > self._deadline:
                raise TemplateLimitError("it takes too long")

    def spend_chars(self, n_chars: int) -> None:
        """Pay for making or reading a string."""
        self.spend(1 + (n_chars >> _CHARS_LOG2))

    def spend_whole(self, value: object) -> int:
        """Pay for a value with everything in it, each as often as it would be printed; return the steps paid.

        Containers that hold one another many times over are how a short template asks for exponential work.
        """
        before = self._left
        waiting = [value]
        while waiting:
            item = waiting.pop()
            if isinstance(item, str):
                self.spend_chars(len(item))
            elif isinstance(item, _SEQUENCES):
                self.spend(1 + len(item))
                waiting.extend(item)
            elif isinstance(item, dict):
                self.spend(1 + len(item))
                waiting.extend(item.keys())
                waiting.extend(item.values())
            elif isinstance(item, Namespace):
                waiting.append(object.__getattribute__(item, "_Namespace__attrs"))
                self.spend()
            elif isinstance(item, range):
                self.spend(1 + len(item))
            else:
                self.spend()
        return before - self._left

    def check_int(self, value: object) -> None:
        """Raise for an integer that only a number bomb needs."""
        if isinstance(value, int) and value.bit_length() > _MAX_INT_BITS:
            raise TemplateLimitError(f"it makes an integer of {value.bit_length()} bits")


def input_steps(value: object) -> int:
    """Return how many steps it takes to read plain data once: the size that a budget grows with."""
    if isinstance(value, str):
        return 1 + (len(value) >> _CHARS_LOG2)
    if isinstance(value, Mapping):
        return 1 + sum(input_steps(key) + input_steps(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return 1 + sum(map(input_steps, value))
    return 1
