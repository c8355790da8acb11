"""Broken and hostile checkpoint folders end in an error that says where, or load, within bounds of time and memory."""

from __future__ import annotations

import os
import time
import tracemalloc
from pathlib import Path

import pytest
from hostile.make_safetensors import CONFIG, SOUND, Folder, cases

from phlite.checkpoint import load_checkpoint
from phlite.errors import ModelFileError, UnsupportedModelError

CASES = list(cases())
MAX_SECONDS = 5.0
MAX_COPIES = 60  # a value of JSON takes that many times its text
FREE_BYTES = 4 << 20


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Folder, Path]:
    if request.param.sparse_bytes and os.name == "nt":
        pytest.skip("the file is sparse, which NTFS does not do unasked")
    return request.param, request.param.write(tmp_path / "model")


def test_hostile_folders_are_refused_with_a_reason_in_time_and_sound_ones_load(case: tuple[Folder, Path]) -> None:
    expected, folder = case
    start, message = time.perf_counter(), None
    try:
        load_checkpoint(folder).close()
    except (ModelFileError, UnsupportedModelError) as error:
        message = str(error)
    assert time.perf_counter() - start < MAX_SECONDS
    if expected.refused is None:
        assert message is None
    else:
        assert message is not None
        assert message.startswith(str(folder))
        assert expected.refused in message
        assert len(message) < 1000


def test_hostile_folders_take_memory_in_proportion_to_their_size(case: tuple[Folder, Path]) -> None:
    expected, folder = case
    tracemalloc.start()
    try:
        load_checkpoint(folder).close()
    except (ModelFileError, UnsupportedModelError):
        pass
    finally:
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak_bytes < FREE_BYTES + MAX_COPIES * sum(map(len, expected.files.values()))


def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(CONFIG)
    for length in range(len(SOUND)):
        (tmp_path / "model.safetensors").write_bytes(SOUND[:length])
        with pytest.raises(ModelFileError, match=r"model\.safetensors"):
            load_checkpoint(tmp_path)


def test_any_changed_byte_of_the_header_is_refused_or_gives_tensors_inside_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(CONFIG)
    header_end = len(SOUND) - 38
    for position in range(header_end):
        for value in (0, ord("9"), ord("-"), ord('"'), SOUND[position] ^ 1, 255):
            damaged = bytearray(SOUND)
            damaged[position] = value
            (tmp_path / "model.safetensors").write_bytes(damaged)
            try:
                checkpoint = load_checkpoint(tmp_path)
            except (ModelFileError, UnsupportedModelError):
                continue
            for tensor in checkpoint.tensors.values():
                assert tensor.offset_bytes + tensor.data.nbytes <= len(SOUND)
                tensor.data.sum()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_in_place_of_a_file_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(CONFIG)
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ModelFileError, match="not a regular file"):
        load_checkpoint(tmp_path)


def test_a_pipe_in_place_of_the_config_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(SOUND)
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ModelFileError, match="no such file"):
        load_checkpoint(tmp_path)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="not a folder"):
        load_checkpoint(tmp_path / "nothing")


def test_case_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
