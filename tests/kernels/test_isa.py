"""The choice of the instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from phlite import _native, ops
from phlite.errors import BackendUnavailableError


@pytest.fixture(autouse=True)
def _best_isa_again() -> Iterator[None]:
    yield
    ops.select_isa(ops.supported_isas()[0])


def run_python(code: str, isa: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PHLITE_ISA": isa}, capture_output=True, text=True, check=False
    )


def test_the_best_set_is_in_use_and_scalar_is_the_last_resort() -> None:
    assert ops.isa_name() == ops.supported_isas()[0]
    assert ops.supported_isas()[-1] == "scalar"


@pytest.mark.parametrize("isa", ops.supported_isas())
def test_every_supported_set_can_be_forced(isa: str) -> None:
    result = run_python("from phlite import ops; print(ops.isa_name())", isa)
    assert (result.stdout.strip(), result.stderr) == (isa, "")


def test_an_unknown_forced_set_names_the_possible_ones() -> None:
    result = run_python("from phlite import ops", "sse9")
    assert result.returncode != 0
    assert "PHLITE_ISA: instruction set 'sse9' is unknown" in result.stderr
    assert all(isa in result.stderr for isa in ops.supported_isas())


def test_a_set_of_another_machine_is_refused() -> None:
    missing = {"scalar", "avx2", "avxvnni", "avx512vnni"} - set(ops.supported_isas())
    for isa in [*missing, "neon"]:
        with pytest.raises(BackendUnavailableError, match="possible: "):
            ops.select_isa(isa)


def test_an_unknown_kind_of_processor_names_the_possible_ones() -> None:
    with pytest.raises(ValueError, match=f"'zen0' is unknown; possible: {', '.join(_native.tuning_names())}"):
        _native.select_tuning("zen0")
    assert _native.tuning_name() in _native.tuning_names()


@pytest.mark.parametrize("isa", ops.supported_isas())
def test_the_limits_are_measured_with_the_set_in_use(isa: str) -> None:
    ops.select_isa(isa)
    pool = ops.ThreadPool(1)
    assert ops.measure_read_bandwidth(pool) > 1e8
    assert (ops.measure_int8_peak(pool) > 1e9) == (isa != "scalar")
