"""Which format each tensor gets under a name: equal to what llama.cpp's quantiser writes, for the family's files."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from phlite.convert.mixture import BASE_TYPES, MixtureTraits, choose_mixture
from phlite.gguf import FileType, GGMLType, load_gguf

# Many layers of a few short rows: the rules look at names, counts and columns, not at values.
N_ROWS = 2


def phi3_names(n_layers: int, **_: int) -> list[str]:
    parts = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
    return [f"blk.{i}.{part}.weight" for i in range(n_layers) for part in parts]


def phimoe_names(n_layers: int, **_: int) -> list[str]:
    parts = (
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_gate_inp",
        "ffn_gate_exps",
        "ffn_up_exps",
        "ffn_down_exps",
    )
    return [f"blk.{i}.{part}.weight" for i in range(n_layers) for part in parts]


MODELS: dict[str, tuple[str, Callable[..., list[str]], MixtureTraits, dict[str, int]]] = {
    "phi3": ("phi3", phi3_names, MixtureTraits(32, 32, 32), {}),
    "phi3 with shared keys": ("phi3", phi3_names, MixtureTraits(40, 40, 10), {}),
    "phi3 of few layers": ("phi3", phi3_names, MixtureTraits(3, 4, 4), {}),
    "phi3 tied": ("phi3", phi3_names, MixtureTraits(9, 24, 8), {"output.weight": 0}),
    "phi3 of odd widths": (
        "phi3",
        phi3_names,
        MixtureTraits(8, 4, 4),
        {"ffn_down": 320, "attn_output": 96, "output": 96},
    ),
    "phi3 of very odd widths": ("phi3", phi3_names, MixtureTraits(8, 4, 4), {"ffn_down": 40, "token_embd": 72}),
    "phi2": ("phi2", phi3_names, MixtureTraits(24, 32, 32), {}),
    "phimoe": ("phimoe", phimoe_names, MixtureTraits(32, 32, 8, 16), {}),
    "phimoe of eight experts": ("phimoe", phimoe_names, MixtureTraits(16, 32, 32, 8), {}),
    "phi-mini-moe": ("phimoe", phimoe_names, MixtureTraits(32, 32, 8, 16), {"ffn_down_exps": 960}),
}


def write_model(path: Path, model: str) -> None:
    architecture, names_of, traits, n_cols = MODELS[model]
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {
        "context_length": 64,
        "rope.scaling.original_context_length": 64,
        "embedding_length": 256,
        "feed_forward_length": 256,
        "block_count": traits.n_layers,
        "attention.head_count": traits.n_heads,
        "attention.head_count_kv": traits.n_kv_heads,
        "rope.dimension_count": 8,
        "attention.sliding_window": 0,
    }.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    for key in ("layer_norm_rms_epsilon", "layer_norm_epsilon"):
        writer.add_float32(f"{architecture}.attention.{key}", 1e-5)
    if traits.n_experts:
        writer.add_uint32(f"{architecture}.expert_count", traits.n_experts)
        writer.add_uint32(f"{architecture}.expert_used_count", 2)
    writer.add_tokenizer_model("no_vocab")
    names = ["token_embd.weight", *names_of(traits.n_layers), "output.weight"]
    names = [name for name in names if n_cols.get(name) != 0]
    for name in names:
        kind = name.split(".")[-2]
        experts = (traits.n_experts,) if name.endswith("_exps.weight") else ()
        shape = (*experts, N_ROWS, n_cols.get(kind, 256))
        writer.add_tensor(name, np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape))
    for i in range(traits.n_layers):
        writer.add_tensor(f"blk.{i}.attn_norm.weight", np.ones(256, np.float32))
        writer.add_tensor(f"blk.{i}.attn_output.bias", np.ones(256, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(256, np.float32))
    writer.add_tensor("rope_factors_long.weight", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Importance(ctypes.Structure):
    """One entry of llama.cpp's importance matrix; a null name ends the list."""

    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t))


@pytest.fixture(scope="module")
def llama_cpp(quiet_llama_cpp: Any) -> Any:
    return quiet_llama_cpp


def types_of_llama_cpp(llama_cpp: Any, path: Path, file_type: FileType, importance: Any = None) -> dict[str, GGMLType]:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = int(file_type), 1
    if importance is not None:
        params.imatrix = ctypes.cast(importance, type(params.imatrix))
    out = path.with_suffix(".out")
    assert llama_cpp.llama_model_quantize(str(path).encode(), str(out).encode(), ctypes.byref(params)) == 0
    with load_gguf(out) as file:
        return {name: tensor.type for name, tensor in file.tensors.items()}


def shapes_and_types(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, GGMLType]]:
    with load_gguf(path) as file:
        return {n: t.shape for n, t in file.tensors.items()}, {n: t.type for n, t in file.tensors.items()}


@pytest.mark.parametrize("model", MODELS)
def test_every_tensor_gets_the_type_that_llama_cpp_gives_it(llama_cpp: Any, tmp_path: Path, model: str) -> None:
    path = tmp_path / "model.gguf"
    write_model(path, model)
    shapes, types = shapes_and_types(path)
    for file_type in BASE_TYPES:
        got = types | choose_mixture(shapes, file_type, MODELS[model][2])
        expected = types_of_llama_cpp(llama_cpp, path, file_type)
        assert {n: t.name for n, t in got.items()} == {n: t.name for n, t in expected.items()}, file_type.name


@pytest.mark.parametrize("file_type", [FileType.Q4_0, FileType.Q5_0, FileType.IQ4_NL, FileType.IQ4_XS, FileType.Q4_K_S])
def test_importance_changes_the_types_that_llama_cpp_changes(
    llama_cpp: Any, tmp_path: Path, file_type: FileType
) -> None:
    path = tmp_path / "model.gguf"
    write_model(path, "phi3")
    shapes, types = shapes_and_types(path)
    ones = (ctypes.c_float * 256)(*[1.0] * 256)
    entries = [Importance(name.encode(), ones, 256) for name, shape in shapes.items() if len(shape) == 2]
    importance = (Importance * (len(entries) + 1))(*entries)
    got = types | choose_mixture(shapes, file_type, MODELS["phi3"][2], has_importance=True)
    assert got == types_of_llama_cpp(llama_cpp, path, file_type, importance)
