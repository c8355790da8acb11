"""Adapters that are damaged, of another model, or more than low-rank matrices are refused, and say so."""

from __future__ import annotations

import contextlib
import json
import time

import numpy as np
import pytest
from tiny_models import random_checkpoint, tiny_config, write_gguf
from tiny_models.lora import random_lora, write_gguf_lora, write_peft

from phlite import ops
from phlite.errors import ModelFileError, PhliteError, UnsupportedModelError
from phlite.models.lora import load_adapter
from phlite.models.registry import load_model

CHECKPOINT = random_checkpoint(tiny_config(), seed=1)
PAIRS = random_lora(CHECKPOINT, ["qkv_proj"])
NAME = "model.layers.0.self_attn.qkv_proj"
A, B = PAIRS[NAME]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", CHECKPOINT)
    return load_model(path, pool=ops.ThreadPool(1))


@pytest.fixture
def refused(model, tmp_path):
    """Load an adapter; returns the error, which names the file."""

    def load(path=tmp_path / "adapter", error=UnsupportedModelError):
        with pytest.raises(error) as caught:
            load_adapter(path, model, name="x")
        assert str(tmp_path) in str(caught.value)
        return str(caught.value)

    return load


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "key 'use_dora' is 'True', which is not supported"),
        ({"bias": "lora_only"}, "bias is 'lora_only', expected 'none'"),
        ({"modules_to_save": ["lm_head"]}, "key 'modules_to_save'"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3', expected 'LORA'"),
        ({"layer_replication": [[0, 2]]}, "key 'layer_replication'"),
        ({"an_option_of_next_year": 3}, "key 'an_option_of_next_year'"),
        ({"rank_pattern": {"^(a|a)+$": 4}}, "rank_pattern '^(a|a)+$': expected module names"),
        ({"trainable_token_indices": {"embed_tokens": [1]}}, "key 'trainable_token_indices'"),
    ],
)
def test_a_config_that_asks_for_more_is_refused(refused, tmp_path, config, message):
    write_peft(tmp_path / "adapter", PAIRS, **config)
    assert message in refused()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": 5}, "has rank 4, expected 5 by adapter_config.json"),
        ({"r": 0}, "key 'r': got '0', expected a number above 0"),
        ({"r": True}, "key 'r': got 'True'"),
        ({"r": None}, "key 'r': got 'None'"),
        ({"lora_alpha": "16"}, "key 'lora_alpha': got '16'"),
        ({"lora_alpha": 10**400}, "key 'lora_alpha'"),
        ({"use_rslora": "yes"}, "key 'use_rslora': got 'yes'"),
        ({"alpha_pattern": [1]}, "key 'alpha_pattern': got list, expected an object"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(refused, tmp_path, config, message):
    write_peft(tmp_path / "adapter", PAIRS, **config)
    assert message in refused(error=ModelFileError)


def test_options_that_are_off_and_notes_on_the_training_do_not_matter(model, tmp_path):
    """What peft 0.21 writes for a plain adapter, and an option it does not have yet, turned off."""
    config = {
        "alora_invocation_tokens": None,
        "auto_mapping": None,
        "base_model_name_or_path": "microsoft/Phi-3-mini-4k-instruct",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_dropout": 0.1,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "target_modules": ["qkv_proj"],
        "use_dora": False,
        "use_qalora": False,
        "qalora_group_size": 16,
        "an_option_of_next_year": False,
    }
    adapter = load_adapter(write_peft(tmp_path / "adapter", PAIRS, **config), model, name="x")
    assert sorted(adapter.deltas) == [f"model.layers.{i}.self_attn.qkv_proj" for i in (0, 1)]
    assert adapter.n_bytes >= 2 * 4 * (256 + 768) * 4


PREFIX = "base_model.model."


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({f"{PREFIX}{NAME}.lora_magnitude_vector": np.ones(8)}, "is no A or B matrix of a plain LoRA adapter"),
        ({f"{PREFIX}{NAME}.lora_B.bias": np.ones(8)}, "is no A or B matrix"),
        ({f"{PREFIX}lm_head.weight": np.ones((8, 8))}, "modules_to_save"),
        ({f"{PREFIX}model.embed_tokens.lora_embedding_A": np.ones((4, 8))}, "is no A or B matrix"),
    ],
)
def test_every_tensor_has_a_place_or_is_refused(refused, tmp_path, extra, message):
    write_peft(tmp_path / "adapter", PAIRS, extra=extra)
    assert message in refused()


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"model.layers.2.self_attn.qkv_proj": (A, B)}, "is nothing that an adapter can change in this model"),
        ({"model.layers.0.mlp.experts.0.w1": (A, B)}, "expected layers of the model, and in them down_proj, gate"),
        ({"model.embed_tokens": (A, B)}, "is nothing that an adapter can change"),
        ({NAME: (A[:, :128], B)}, "is for a matrix of 768 x 128, the model's is 768 x 256"),
        ({NAME: (A, B[:512])}, "is for a matrix of 512 x 256, the model's is 768 x 256"),
    ],
)
def test_an_adapter_of_another_model_is_refused(refused, tmp_path, pairs, message):
    write_peft(tmp_path / "adapter", pairs)
    assert message in refused()


def test_half_a_pair_is_refused(refused, tmp_path):
    write_peft(tmp_path / "adapter", PAIRS, extra={f"{PREFIX}model.layers.0.mlp.down_proj.lora_A.weight": A})
    assert "'model.layers.0.mlp.down_proj' has only one of the two" in refused(error=ModelFileError)


def test_matrices_of_different_rank_are_refused(refused, tmp_path):
    write_peft(tmp_path / "adapter", {NAME: (A, B[:, :3])})
    assert "with one r of at most" in refused(error=ModelFileError)


def test_values_that_are_no_numbers_are_refused(refused, tmp_path):
    bad = A.copy()
    bad[1, 2] = np.nan
    write_peft(tmp_path / "adapter", {NAME: (bad, B)})
    assert "holds NaN or infinite values" in refused(error=ModelFileError)


def test_a_stacked_matrix_and_a_part_of_it_are_refused_together(refused, tmp_path):
    part = {"model.layers.0.self_attn.k_proj": (A, B[:256])}
    write_peft(tmp_path / "adapter", PAIRS | part)
    assert "changes rows that another module of the adapter changes too" in refused(error=ModelFileError)


def test_an_adapter_without_tensors_is_refused(refused, tmp_path):
    write_peft(tmp_path / "adapter", {})
    assert "no tensors, expected LoRA matrices" in refused(error=ModelFileError)


def test_a_folder_without_the_files_of_peft_is_refused(refused, tmp_path):
    assert "no such file or folder" in refused(error=ModelFileError)
    (tmp_path / "adapter").mkdir()
    assert "no adapter_config.json" in refused(error=ModelFileError)
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    assert "no adapter_model.safetensors" in refused(error=ModelFileError)
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(b"pickle")
    assert "runs whatever code it holds" in refused()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "llama"}, "an adapter for architecture 'llama', but the model's is 'phi3'"),
        ({"extra": {"adapter.alora.invocation_tokens": "x"}}, "'adapter.alora.invocation_tokens' asks for something"),
        ({"extra_tensors": {"blk.0.attn_norm.weight": np.ones(256, np.float32)}}, "is no A or B matrix"),
    ],
)
def test_a_gguf_adapter_of_another_kind_is_refused(refused, tmp_path, options, message):
    assert message in refused(write_gguf_lora(tmp_path / "adapter.gguf", PAIRS, **options))


def test_a_model_file_is_no_adapter(refused, tmp_path):
    path = write_gguf(tmp_path / "model.gguf", CHECKPOINT)
    assert "general.type is 'model', expected 'adapter'" in refused(path)


def test_an_adapter_file_is_no_model(tmp_path):
    path = write_gguf_lora(tmp_path / "adapter.gguf", PAIRS)
    with pytest.raises(UnsupportedModelError, match=r"holds a LoRA adapter.*--lora"):
        load_model(path, pool=ops.ThreadPool(1))


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes_are_refused_or_load(model, tmp_path, seed):
    """Nothing but a clean error comes of a damaged file; values may change unnoticed, shapes and names may not."""
    rng = np.random.default_rng(seed)
    if seed % 2:
        path = target = write_gguf_lora(tmp_path / "adapter.gguf", PAIRS)
    else:
        path = write_peft(tmp_path / "adapter", PAIRS)
        target = path / ("adapter_model.safetensors" if seed % 4 else "adapter_config.json")
    data = bytearray(target.read_bytes())
    for at in rng.integers(0, min(len(data), 1500), 3):
        data[at] ^= 1 << rng.integers(8)
    target.write_bytes(data)
    with contextlib.suppress(PhliteError):
        load_adapter(path, model, name="x")


def test_a_config_with_very_many_patterns_is_read_at_once(model, tmp_path):
    """Each of them against each module would take minutes."""
    patterns = {f"p{i}": 4 for i in range(40_000)}
    extra = {f"{PREFIX}model.layers.{i}.x.lora_{half}.weight": np.ones((4, 4)) for i in range(2000) for half in "AB"}
    write_peft(tmp_path / "adapter", PAIRS, extra=extra, rank_pattern=patterns)
    started_s = time.perf_counter()
    with pytest.raises(UnsupportedModelError, match="is nothing that an adapter can change"):
        load_adapter(tmp_path / "adapter", model, name="x")
    assert time.perf_counter() - started_s < 5
