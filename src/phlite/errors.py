"""The exception tree. A message says what, where, got, expected and what to do.

The library raises these, the command line prints one line and exits 2, a server maps them to a status and a code.
"""

from __future__ import annotations

__all__ = [
    "BackendUnavailableError",
    "ContextLengthError",
    "DownloadError",
    "ModelFileError",
    "PhliteError",
    "RequestError",
    "ShapeError",
    "UnsupportedModelError",
]


class PhliteError(Exception):
    """Everything that phlite raises on purpose."""


class ModelFileError(PhliteError):
    """A model, tokenizer or template file is broken, truncated, inconsistent or hostile."""


class UnsupportedModelError(PhliteError):
    """The file is sound, but its architecture, an option of it or a tensor of it is not implemented."""


class ContextLengthError(PhliteError):
    """The prompt, or the prompt and the tokens asked for, do not fit the context."""


class ShapeError(PhliteError):
    """An array has a wrong shape, dtype or layout for the operation."""


class BackendUnavailableError(PhliteError):
    """A requested engine, instruction set or optional dependency is not present on this machine."""


class RequestError(PhliteError):
    """An option or argument of the caller is unknown, out of range or contradictory."""


class DownloadError(PhliteError):
    """A name does not resolve, or its files cannot be fetched, verified or stored."""
