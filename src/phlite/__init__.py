"""Phi models, light and fast, anywhere.

    import phlite

    llm = phlite.load("haiku")
    print(llm.chat("Write a haiku about ice hockey").text)

The names below are the public interface; each is imported when it is first used, so that `import phlite` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phlite import errors
    from phlite.completion import AsyncCompletionStream, Completion, CompletionStream
    from phlite.constrained import Constraint
    from phlite.engine import Engine, SamplingParams, Sequence, StepOutput, TokenLogprob
    from phlite.errors import PhliteError
    from phlite.llm import LLM, Message, load

__all__ = [
    "LLM",
    "AsyncCompletionStream",
    "Completion",
    "CompletionStream",
    "Constraint",
    "Engine",
    "Message",
    "PhliteError",
    "SamplingParams",
    "Sequence",
    "StepOutput",
    "TokenLogprob",
    "__version__",
    "errors",
    "load",
]

MODULE_OF = {
    "LLM": "phlite.llm",
    "AsyncCompletionStream": "phlite.completion",
    "Completion": "phlite.completion",
    "CompletionStream": "phlite.completion",
    "Constraint": "phlite.constrained",
    "Engine": "phlite.engine",
    "Message": "phlite.llm",
    "PhliteError": "phlite.errors",
    "SamplingParams": "phlite.engine",
    "Sequence": "phlite.engine",
    "StepOutput": "phlite.engine",
    "TokenLogprob": "phlite.engine",
    "load": "phlite.llm",
}

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import a public name at its first use (PEP 562)."""
    if name == "errors":
        return import_module("phlite.errors")
    module = MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'phlite' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, also those not imported yet."""
    return sorted({*globals(), *__all__})
