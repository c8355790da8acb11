"""Checkpoint folders that transformers itself writes: loaded, converted, and given to llama.cpp."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_models import (
    MEMBERS,
    StoredTensor,
    all_logits,
    greedy_ids,
    int8_activations,
    random_checkpoint,
    reference_logits,
    write_hf_folder,
)

from phlite.checkpoint import load_checkpoint
from phlite.convert import convert_checkpoint
from phlite.convert.on_load import converted_checkpoint
from phlite.gguf import FileType, load_gguf
from phlite.models.registry import build_checkpoint_model, load_model

MAX_RELATIVE_DIFFERENCE = 1e-4


def relative_difference(got: np.ndarray, expected: np.ndarray) -> float:
    return float((np.abs(got - expected).max(axis=-1) / np.linalg.norm(expected, axis=-1)).max())


@pytest.fixture(scope="module", params=MEMBERS)
def saved(request, tmp_path_factory, transformers_model) -> tuple[Any, Path]:
    """A member's oracle, and the folder of several shards that its save_pretrained writes."""
    oracle = transformers_model(random_checkpoint(MEMBERS[request.param], seed=21))
    folder = tmp_path_factory.mktemp(request.param)
    oracle.model.save_pretrained(folder, max_shard_size="1MB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return oracle, folder


@pytest.fixture
def from_hf(pool) -> Callable[[Path], Any]:
    def load(folder: Path) -> Any:
        with load_checkpoint(folder) as checkpoint:
            return build_checkpoint_model(checkpoint, pool=pool)

    return load


def test_a_folder_of_shards_equals_transformers(saved, from_hf, random_ids):
    oracle, folder = saved
    model, ids = from_hf(folder), random_ids(100, 512)
    assert relative_difference(all_logits(model, ids), oracle.logits(ids)) < MAX_RELATIVE_DIFFERENCE
    assert greedy_ids(model, ids[:10], 32) == oracle.greedy_ids(ids[:10], 32)


def test_the_converted_file_gives_the_same_bits_and_llama_cpp_the_same_logits(
    saved, from_hf, random_ids, pool, llama_cpp_model, tmp_path
):
    _, folder = saved
    tokenizer_of = write_hf_folder(tmp_path / "tok", random_checkpoint(oracle_config(folder), seed=1))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tokenizer_of / name).read_bytes())
    path = tmp_path / "tiny.gguf"
    with load_checkpoint(folder) as checkpoint:
        convert_checkpoint(checkpoint, path, file_type=FileType.F32, pool=pool)
    ids = random_ids(64, 512)
    expected = all_logits(from_hf(folder), ids)
    np.testing.assert_array_equal(all_logits(load_model(path, pool=pool), ids), expected)

    llama = llama_cpp_model(path, 256)
    llama.reset()
    llama.eval(ids)
    assert relative_difference(np.array(llama.scores[: len(ids)]), expected) < MAX_RELATIVE_DIFFERENCE
    llama.close()


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_weights_of_half_precision_are_used_as_they_are(kind, transformers_model, from_hf, random_ids, pool, tmp_path):
    checkpoint = random_checkpoint(MEMBERS["phi-4-mini"], kind, seed=22)
    folder = write_hf_folder(tmp_path / "model", checkpoint)
    model, oracle, ids = from_hf(folder), transformers_model(checkpoint), random_ids(80, 512)
    assert relative_difference(all_logits(model, ids), oracle.logits(ids)) < MAX_RELATIVE_DIFFERENCE

    with load_checkpoint(folder) as opened:
        convert_checkpoint(opened, tmp_path / "tiny.gguf", pool=pool)
    with load_gguf(tmp_path / "tiny.gguf") as file:
        assert {tensor.type.name for tensor in file.tensors.values() if len(tensor.shape) > 1} == {kind}
    np.testing.assert_array_equal(
        all_logits(load_model(tmp_path / "tiny.gguf", pool=pool), ids), all_logits(model, ids)
    )


@pytest.mark.parametrize("file_type", [FileType.Q8_0, FileType.Q4_K_M, FileType.IQ4_XS])
def test_llama_cpp_agrees_on_a_file_quantised_by_the_converter(file_type, llama_cpp_model, random_ids, pool, tmp_path):
    """Both round the inputs of products to int8 in ways of their own: that error decides how far they may be apart."""
    config = {**MEMBERS["phi-4-mini"], "hidden_size": 768, "num_attention_heads": 6, "num_key_value_heads": 2}
    folder = write_hf_folder(tmp_path / "model", random_checkpoint(config, "BF16", seed=24))
    with load_checkpoint(folder) as checkpoint:
        path = convert_checkpoint(checkpoint, tmp_path / "tiny.gguf", file_type=file_type, pool=pool)
        quantised = converted_checkpoint(checkpoint, file_type, pool=pool)
        tensors = {name: stored_tensor(quantised.tensors[name]) for name in quantised.tensors}
    model, llama, ids = load_model(path, pool=pool), llama_cpp_model(path, 256), random_ids(64, 512)
    llama.reset()
    llama.eval(ids)
    got, expected = all_logits(model, ids), np.array(llama.scores[: len(ids)])
    llama.close()

    weights = {name: tensor.values for name, tensor in tensors.items()}
    exact = reference_logits(config, weights, ids)
    rounded = reference_logits(config, weights, ids, round_activations=int8_activations(tensors))
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert np.linalg.norm(got - exact) / np.linalg.norm(exact) < 1.25 * error
    assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < 2 * error


def stored_tensor(tensor) -> StoredTensor:
    kind = gguf.GGMLQuantizationType[tensor.type.name]
    row_bytes = tensor.data.nbytes // int(np.prod(tensor.shape[:-1], initial=1))
    values = gguf.quants.dequantize(tensor.data.reshape(-1, row_bytes), kind).reshape(tensor.shape)
    return StoredTensor(tensor.type.name, tensor.data, values)


def oracle_config(folder: Path) -> dict[str, Any]:
    """The config of the member whose vocabulary the folder has, for a tokenizer of that size."""
    n_vocab = json.loads((folder / "config.json").read_text())["vocab_size"]
    return next(config for config in MEMBERS.values() if config["vocab_size"] == n_vocab)


def test_the_gguf_package_reads_what_was_written(tmp_path, pool):
    folder = write_hf_folder(tmp_path / "model", random_checkpoint(MEMBERS["mini-4k"], seed=23))
    with load_checkpoint(folder) as checkpoint:
        convert_checkpoint(checkpoint, tmp_path / "tiny.gguf", name="Phi-3 tiny", pool=pool)
    reader = gguf.GGUFReader(tmp_path / "tiny.gguf")
    assert reader.get_field("general.architecture").contents() == "phi3"
    assert reader.get_field("general.name").contents() == "Phi-3 tiny"
    assert reader.get_field("phi3.attention.sliding_window").contents() == 2047
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.PHI3, 2)
    with load_checkpoint(folder) as checkpoint:
        expected = {names.get_name(name, try_suffixes=(".weight",)) for name in checkpoint.tensors}
    assert {tensor.name for tensor in reader.tensors} == expected
