"""Checkpoint folders: what is read, under which names, and what is said of folders that hold something else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import Checkpoint, random_checkpoint, stored, tiny_config, write_hf_folder

from phlite.checkpoint import is_checkpoint, load_checkpoint
from phlite.errors import ModelFileError, UnsupportedModelError
from phlite.gguf import GGMLType
from phlite.ops.dequantize import dequantize


@pytest.fixture
def tiny() -> Checkpoint:
    return random_checkpoint(tiny_config(vocab_size=64, num_hidden_layers=1), "BF16", seed=3)


@pytest.mark.parametrize("n_shards", [1, 4])
def test_every_tensor_has_its_name_shape_type_and_bytes(tmp_path: Path, tiny: Checkpoint, n_shards: int) -> None:
    folder = write_hf_folder(tmp_path / "model", tiny, n_shards=n_shards, tokenizer=False)
    with load_checkpoint(folder) as checkpoint:
        assert checkpoint.config == tiny.config
        assert set(checkpoint.tensors) == set(tiny.tensors)
        assert len(checkpoint.paths) == n_shards
        assert checkpoint.n_bytes == sum(path.stat().st_size for path in checkpoint.paths)
        for name, expected in tiny.tensors.items():
            tensor = checkpoint.tensors[name]
            assert (tensor.shape, tensor.type.name) == (expected.values.shape, expected.type)
            assert tensor.data.tobytes() == expected.data.tobytes()
            assert not tensor.data.flags.writeable
            np.testing.assert_array_equal(dequantize(tensor.data, tensor.type, tensor.shape), expected.values)


def test_data_at_an_odd_byte_is_read_like_any_other(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [3, 5], "data_offsets": [0, 60]}})
    header += " " * (1 - len(header) % 2)
    values = np.arange(15, dtype=np.float32)
    raw = len(header).to_bytes(8, "little") + header.encode() + values.tobytes()
    (tmp_path / "model.safetensors").write_bytes(raw)
    (tmp_path / "config.json").write_text("{}")
    with load_checkpoint(tmp_path) as checkpoint:
        tensor = checkpoint.tensors["w"]
        assert tensor.offset_bytes % 2 == 1
        np.testing.assert_array_equal(dequantize(tensor.data, tensor.type, (15,)), values)


def test_tensors_stay_readable_after_their_pages_were_given_back_and_the_checkpoint_was_closed(
    tmp_path: Path, tiny: Checkpoint
) -> None:
    folder = write_hf_folder(tmp_path / "model", tiny, tokenizer=False)
    with load_checkpoint(folder) as checkpoint:
        tensors = dict(checkpoint.tensors)
        for tensor in tensors.values():
            checkpoint.release(tensor)
    assert checkpoint.tensors == {}
    assert all(tensors[name].data.tobytes() == expected.data.tobytes() for name, expected in tiny.tensors.items())


def test_the_whole_file_goes_before_an_index_as_in_transformers(tmp_path: Path, tiny: Checkpoint) -> None:
    folder = write_hf_folder(tmp_path / "model", tiny, tokenizer=False)
    (folder / "model.safetensors.index.json").write_text("broken")
    with load_checkpoint(folder) as checkpoint:
        assert [path.name for path in checkpoint.paths] == ["model.safetensors"]


@pytest.mark.parametrize("config", [{}, {"model_type": 3}, {"model_type": None}])
def test_a_missing_model_type_is_an_error_that_names_the_file(tmp_path: Path, config: dict[str, object]) -> None:
    tensors = {"w": stored([[1.0]])}
    folder = write_hf_folder(tmp_path / "model", Checkpoint(config, tensors), tokenizer=False)
    with load_checkpoint(folder) as checkpoint, pytest.raises(ModelFileError, match=r"config\.json: key 'model_type'"):
        _ = checkpoint.model_type


@pytest.mark.parametrize(
    ("generation_config", "expected"),
    [
        (None, {}),
        ({"temperature": 0.7}, {}),
        ({"do_sample": False, "temperature": 0.7}, {}),
        ({"do_sample": True, "temperature": 0.7, "top_k": 50, "eos_token_id": 3}, {"temp": 0.7, "top_k": 50}),
        ({"do_sample": True, "repetition_penalty": 1.1}, {"penalty_repeat": 1.1, "penalty_last_n": -1}),
    ],
)
def test_sampling_is_recommended_where_generation_config_samples(
    tmp_path: Path, tiny: Checkpoint, generation_config: dict[str, object] | None, expected: dict[str, float]
) -> None:
    folder = write_hf_folder(tmp_path / "model", tiny, tokenizer=False, generation_config=generation_config)
    with load_checkpoint(folder) as checkpoint:
        assert checkpoint.sampling() == expected


def test_a_recommendation_that_is_no_number_is_refused(tmp_path: Path, tiny: Checkpoint) -> None:
    config = {"do_sample": True, "temperature": "warm"}
    folder = write_hf_folder(tmp_path / "model", tiny, tokenizer=False, generation_config=config)
    with load_checkpoint(folder) as checkpoint, pytest.raises(ModelFileError, match="temperature"):
        checkpoint.sampling()


def test_pickled_weights_are_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(b"\x80\x04.")
    assert not is_checkpoint(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"pytorch_model-00001.*expected model\.safetensors.*save_p"):
        load_checkpoint(tmp_path)


def test_types_are_those_of_the_file(tmp_path: Path) -> None:
    tensors = {kind: stored([[1.5, -2.0]], kind) for kind in ("F32", "F16", "BF16")}
    folder = write_hf_folder(tmp_path / "model", Checkpoint({}, tensors), tokenizer=False)
    with load_checkpoint(folder) as checkpoint:
        assert {name: tensor.type for name, tensor in checkpoint.tensors.items()} == {
            "F32": GGMLType.F32,
            "F16": GGMLType.F16,
            "BF16": GGMLType.BF16,
        }
