"""Which instruction set the native operations use."""

from __future__ import annotations

import os

from phlite import _native
from phlite.errors import BackendUnavailableError

__all__ = ["select_forced_isa", "select_isa"]


def select_isa(name: str) -> None:
    """Use another instruction set from now on, in the whole process; results stay the same bits.

    raises: BackendUnavailableError naming the possible ones when `name` is unknown or this machine lacks it
    """
    try:
        _native.select_isa(name)
    except ValueError as error:
        raise BackendUnavailableError(str(error)) from None


def select_forced_isa() -> None:
    """Use the instruction set that the environment variable PHLITE_ISA names, if it names one.

    raises: BackendUnavailableError, see `select_isa`
    """
    if name := os.environ.get("PHLITE_ISA"):
        try:
            select_isa(name)
        except BackendUnavailableError as error:
            raise BackendUnavailableError(f"PHLITE_ISA: {error}") from None
