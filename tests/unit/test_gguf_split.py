"""Split files: the parts beside the first one become one model, and parts that do not belong together are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from phlite.errors import ModelFileError
from phlite.gguf import GGMLType, GGUFWriter, ValueType, load_gguf


def write_part(
    path: Path, number: int | None, count: int, total: int, tensors: Mapping[str, float], *, alignment: int = 32
) -> Path:
    """One part as llama-gguf-split writes it: model metadata in the first only, split keys in each."""
    with GGUFWriter(path, alignment=alignment) as writer:
        if number == 0:
            writer.add("general.architecture", "phi3")
        if number is not None:
            writer.add("split.no", number, ValueType.UINT16)
            writer.add("split.count", count, ValueType.UINT16)
            writer.add("split.tensors.count", total, ValueType.INT32)
        for name, value in tensors.items():
            writer.add_tensor(name, (8,), GGMLType.F32, np.full(8, value, np.float32))
    return path


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    names = [tmp_path / f"model-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    write_part(names[0], 0, 3, 4, {"a": 1})
    write_part(names[1], 1, 3, 4, {"b": 2, "c": 3}, alignment=64)
    write_part(names[2], 2, 3, 4, {"d": 4})
    return names


def test_tensors_of_all_parts_are_found_in_order(parts: list[Path]) -> None:
    with load_gguf(parts[0]) as file:
        values = {name: tensor.data.view(np.float32)[0].item() for name, tensor in file.tensors.items()}
        assert values == {"a": 1, "b": 2, "c": 3, "d": 4}
        assert [tensor.path for tensor in file.tensors.values()] == [parts[0], parts[1], parts[1], parts[2]]
        assert file.paths == tuple(parts)
        assert file.n_bytes == sum(part.stat().st_size for part in parts)
        assert file.metadata.get_str("general.architecture") == "phi3"


def test_tensors_of_any_part_can_be_released(parts: list[Path]) -> None:
    with load_gguf(parts[0]) as file:
        file.release(file.tensors["d"])
        assert file.tensors["d"].data.view(np.float32)[0] == 4


def test_a_later_part_is_refused_with_the_name_of_the_first(parts: list[Path]) -> None:
    with pytest.raises(ModelFileError, match=r"part 2 of 3; open the first one, .*model-00001-of-00003\.gguf"):
        load_gguf(parts[1])


def test_a_renamed_part_is_refused_with_the_expected_name(parts: list[Path], tmp_path: Path) -> None:
    renamed = parts[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelFileError, match=r"must end in -00001-of-00003\.gguf"):
        load_gguf(renamed)


def test_a_missing_part_is_named(parts: list[Path]) -> None:
    parts[2].unlink()
    with pytest.raises(ModelFileError, match=r"model-00003-of-00003\.gguf: cannot be opened"):
        load_gguf(parts[0])


@pytest.mark.parametrize(("number", "count"), [(None, 3), (2, 3), (1, 4)])
def test_a_part_of_another_file_is_refused(parts: list[Path], number: int | None, count: int) -> None:
    write_part(parts[1], number, count, 4, {"b": 2, "c": 3})
    with pytest.raises(ModelFileError, match=r"00002-of-00003\.gguf: split\.no and split\.count are"):
        load_gguf(parts[0])


def test_a_wrong_total_of_tensors_is_refused(parts: list[Path]) -> None:
    write_part(parts[1], 1, 3, 4, {"b": 2})
    with pytest.raises(ModelFileError, match=r"split\.tensors\.count is 4, but the 3 parts hold 3"):
        load_gguf(parts[0])


def test_a_tensor_in_two_parts_is_refused(parts: list[Path]) -> None:
    write_part(parts[1], 1, 3, 4, {"a": 2, "c": 3})
    with pytest.raises(ModelFileError, match=r"tensor 'a' is also in model-00001-of-00003\.gguf"):
        load_gguf(parts[0])


@pytest.mark.parametrize(("number", "count"), [(3, 3), (5, 3), (1, 1), (7, 0)])
def test_a_part_number_outside_the_count_is_refused(tmp_path: Path, number: int, count: int) -> None:
    path = write_part(tmp_path / "model-00001-of-00003.gguf", number, count, 1, {"a": 1})
    with pytest.raises(ModelFileError, match="expected 0 <= no < count"):
        load_gguf(path)


def test_a_file_that_says_it_is_the_only_part_is_read_under_any_name(tmp_path: Path) -> None:
    path = write_part(tmp_path / "whole.gguf", 0, 1, 1, {"a": 1})
    with load_gguf(path) as file:
        assert list(file.tensors) == ["a"]
