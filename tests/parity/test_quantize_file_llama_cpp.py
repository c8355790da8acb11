"""Quantised files in both directions: llama.cpp computes the model that phlite wrote, and phlite the one it wrote.

Both round the inputs of products, each in its own way; what such a rounding does to the logits is computed with the
float64 definition on the values that the file holds.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import (
    MEMBERS,
    Checkpoint,
    StoredTensor,
    all_logits,
    int8_activations,
    random_checkpoint,
    reference_logits,
    write_gguf,
)
from tiny_models.gguf_file import gguf_name

from phlite import ops
from phlite.convert.mixture import BASE_TYPES
from phlite.convert.quantize import quantize_file
from phlite.gguf import FileType, load_gguf
from phlite.models.registry import load_model

CONFIG = {**MEMBERS["phi-4-mini"], "hidden_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return random_checkpoint(CONFIG, seed=81)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint) -> Path:
    return write_gguf(tmp_path_factory.mktemp("model") / "f32.gguf", checkpoint)


def stored_tensors(path: Path, checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """The tensors of a file under Hugging Face names."""
    with load_gguf(path) as file:
        tensors = {name: file.tensors[gguf_name(name)] for name in checkpoint.tensors}
        return {
            name: StoredTensor(t.type.name, t.data, ops.dequantize(t.data, t.type, t.shape))
            for name, t in tensors.items()
        }


def rounded_to_half(x: np.ndarray, name: str) -> np.ndarray:
    return x.astype(np.float16).astype(np.float64)


def assert_same_logits(path: Path, checkpoint: Checkpoint, llama_cpp_model: Callable[..., Any], pool: ops.ThreadPool):
    tensors = stored_tensors(path, checkpoint)
    values = {name: tensor.values for name, tensor in tensors.items()}
    ids = np.random.default_rng(82).integers(0, CONFIG["vocab_size"], 48).tolist()
    oracle = llama_cpp_model(path, 64)
    oracle.eval(ids)
    theirs = np.array(oracle.scores[: len(ids)])
    oracle.close()
    ours = all_logits(load_model(path, pool=pool), ids)
    exact = reference_logits(CONFIG, values, ids)
    is_float = tensors["model.layers.0.mlp.down_proj.weight"].type in ("F16", "BF16")
    # llama.cpp rounds the inputs of products with F16 and BF16 to halves of their kind, the coarser one counts.
    rounding = rounded_to_half if is_float else int8_activations(tensors)
    size = np.linalg.norm(exact)
    error = np.linalg.norm(reference_logits(CONFIG, values, ids, round_activations=rounding) - exact) / size
    bound = (16 if tensors["model.layers.0.mlp.down_proj.weight"].type == "BF16" else 2) * error
    assert np.linalg.norm(ours - exact) / size < bound
    assert np.linalg.norm(theirs - exact) / size < bound


@pytest.mark.parametrize("file_type", BASE_TYPES, ids=lambda t: t.name)
def test_llama_cpp_computes_the_files_that_phlite_writes(
    source: Path,
    tmp_path: Path,
    checkpoint: Checkpoint,
    file_type: FileType,
    llama_cpp_model: Callable[..., Any],
    pool: ops.ThreadPool,
):
    with load_gguf(source) as file:
        path = quantize_file(file, tmp_path / "out.gguf", file_type, pool=pool)
    assert_same_logits(path, checkpoint, llama_cpp_model, pool)


@pytest.mark.parametrize("name", ["Q8_0", "Q5_1", "Q4_K_M", "IQ4_XS", "Q3_K_L", "Q2_K"])
def test_phlite_computes_the_files_that_llama_cpp_writes(
    source: Path,
    tmp_path: Path,
    checkpoint: Checkpoint,
    name: str,
    llama_cpp_model: Callable[..., Any],
    pool: ops.ThreadPool,
):
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = int(FileType[name]), 1
    path = tmp_path / "out.gguf"
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(params)) == 0
    assert_same_logits(path, checkpoint, llama_cpp_model, pool)
