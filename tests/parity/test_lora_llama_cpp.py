"""GGUF adapters on GGUF models, the same files in llama.cpp: float32 logits within 1e-4 of their norm."""

from __future__ import annotations

import ctypes
import warnings

import numpy as np
import pytest
from tiny_models import MEMBERS, all_logits, random_checkpoint, write_gguf
from tiny_models.lora import random_lora, write_gguf_lora
from tiny_models.phi import PHI_MEMBERS, random_phi_checkpoint, write_phi_gguf

from phlite.engine.adapters import AdapterUse
from phlite.models.lora import load_adapter
from phlite.models.registry import load_model


@pytest.fixture(scope="module")
def llama_cpp():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("llama_cpp", reason="the oracle needs llama-cpp-python")


@pytest.fixture
def llama_cpp_logits(llama_cpp, llama_cpp_model):
    """Logits of every position with adapters, path and scale, set on the context."""

    def compute(path, adapters, ids):
        oracle = llama_cpp_model(path, 256)
        loaded = [llama_cpp.llama_adapter_lora_init(oracle.model, str(file).encode()) for file, _ in adapters]
        assert all(loaded)
        handles = (llama_cpp.llama_adapter_lora_p_ctypes * len(loaded))(*loaded)
        scales = (ctypes.c_float * len(loaded))(*(scale for _, scale in adapters))
        assert llama_cpp.llama_set_adapters_lora(oracle.ctx, handles, len(loaded), scales) == 0
        oracle.eval(ids)
        logits = np.array(oracle.scores[: len(ids)])
        oracle.close()
        return logits

    return compute


def relative_difference(got: np.ndarray, expected: np.ndarray) -> float:
    return float((np.abs(got - expected).max(axis=-1) / np.linalg.norm(expected, axis=-1)).max())


@pytest.mark.parametrize("alpha", [6.0, 0.0])
def test_two_adapters_with_scales_equal_llama_cpp(llama_cpp_logits, tmp_path, pool, random_ids, alpha: float):
    checkpoint = random_checkpoint(MEMBERS["mini-4k"], seed=91)
    base = write_gguf(tmp_path / "base.gguf", checkpoint)
    one = random_lora(checkpoint, ["qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head"], seed=1)
    two = random_lora(checkpoint, ["o_proj", "gate_up_proj"], rank=8, seed=2)
    files = [
        (write_gguf_lora(tmp_path / "one.gguf", one, alpha=alpha), 0.8),
        (write_gguf_lora(tmp_path / "two.gguf", two, alpha=alpha), -0.5),
    ]
    model, ids = load_model(base, pool=pool), random_ids(64, 512)
    uses = [AdapterUse(load_adapter(path, model, name=path.stem), scale) for path, scale in files]
    expected = llama_cpp_logits(base, files, ids)
    assert relative_difference(all_logits(model, ids, lora=uses), expected) < 1e-4
    assert relative_difference(all_logits(model, ids), expected) > 0.01


def test_an_adapter_of_the_old_llama_files_equals_llama_cpp(llama_cpp_logits, tmp_path, pool, random_ids):
    """Its q and k rows are in the file's order, as the converter of such adapters writes them."""
    config = {**MEMBERS["mini-4k"], "num_key_value_heads": 2}
    checkpoint = random_checkpoint(config, split_qkv=True, split_gate_up=True, seed=92)
    base = write_gguf(tmp_path / "base.gguf", checkpoint, architecture="llama")
    pairs = random_lora(checkpoint, ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"])
    files = [(write_gguf_lora(tmp_path / "one.gguf", pairs, architecture="llama"), 1.0)]
    model, ids = load_model(base, pool=pool), random_ids(64, 512)
    uses = [AdapterUse(load_adapter(files[0][0], model, name="one"), 1.0)]
    assert relative_difference(all_logits(model, ids, lora=uses), llama_cpp_logits(base, files, ids)) < 1e-4


def test_an_adapter_of_phi_2_equals_llama_cpp(llama_cpp_logits, tmp_path, pool, random_ids):
    """llama.cpp looks GELU up in a table of float16, which alone makes 2e-4 of the norm."""
    checkpoint = random_phi_checkpoint(PHI_MEMBERS["phi-2"], seed=93, fused=True)
    base = write_phi_gguf(tmp_path / "base.gguf", checkpoint)
    pairs = random_lora(checkpoint, ["qkv_proj", "dense", "fc2"])
    names = {"self_attn.qkv_proj": "attn_qkv", "self_attn.dense": "attn_output", "mlp.fc2": "ffn_down"}
    files = [(write_gguf_lora(tmp_path / "one.gguf", pairs, architecture="phi2", names=names), 0.5)]
    model, ids = load_model(base, pool=pool), random_ids(64, 512)
    uses = [AdapterUse(load_adapter(files[0][0], model, name="one"), 0.5)]
    assert relative_difference(all_logits(model, ids, lora=uses), llama_cpp_logits(base, files, ids)) < 4e-4
