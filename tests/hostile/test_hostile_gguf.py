"""Broken and hostile files end in a ModelFileError that says where, or load, within bounds of time and memory."""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hostile.make_corpus import Case, cases, valid_file, write_case

from phlite.errors import ModelFileError, UnsupportedModelError
from phlite.gguf import GGUFFile, load_gguf
from phlite.ops.dequantize import dequantize

CASES = list(cases())

MAX_SECONDS = 5.0  # hundreds of times what the slowest takes on an idle machine
MAX_COPIES = 6  # Python's memory may be this many times the bytes of the file that are not a hole
FREE_BYTES = 4 << 20


def read_everything(path: Path) -> GGUFFile:
    """Load and look at all of the metadata, as `show` does; tensors stay views."""
    file = load_gguf(path)
    for key in file.metadata:
        file.metadata[key]
    return file


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Case, Path]]:
    if request.param.sparse_bytes and os.name == "nt":
        pytest.skip("the file is sparse, which NTFS does not do unasked")
    path = write_case(request.param, tmp_path)
    yield request.param, path
    with suppress(PermissionError):  # Windows keeps what a caught exception still maps
        path.unlink()


def test_hostile_files_are_refused_with_a_reason_in_time_and_sound_ones_load(case: tuple[Case, Path]) -> None:
    expected, path = case
    start, message = time.perf_counter(), None
    try:
        read_everything(path).close()
    except (ModelFileError, UnsupportedModelError) as error:
        message = str(error)
    assert time.perf_counter() - start < MAX_SECONDS
    if expected.refused is None:
        assert message is None
    else:
        assert message is not None
        assert message.startswith(f"{path}: ")
        assert expected.refused in message
        assert len(message) < 1000


def test_hostile_files_take_memory_in_proportion_to_their_size(case: tuple[Case, Path]) -> None:
    expected, path = case
    tracemalloc.start()
    try:
        read_everything(path).close()
    except (ModelFileError, UnsupportedModelError):
        pass
    finally:
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak_bytes < FREE_BYTES + MAX_COPIES * len(expected.data)


def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    whole = valid_file()
    path = tmp_path / "cut.gguf"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match=r"cut\.gguf: byte \d+: got .*, expected"):
            read_everything(path)


def test_case_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("scale", [name for name in (case.name for case in CASES) if name.startswith("scale-")])
def test_infinite_and_nan_scales_give_infinite_and_nan_weights(scale: str, tmp_path: Path) -> None:
    path = write_case(next(case for case in CASES if case.name == scale), tmp_path)
    with load_gguf(path) as file:
        tensor = file.tensors["w"]
        values = dequantize(tensor.data, tensor.type, tensor.shape)
    assert not np.isfinite(values).any()
