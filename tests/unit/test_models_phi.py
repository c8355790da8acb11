"""Phi-2 class models: every key and tensor is used or refused, and a sequence does not depend on its neighbours."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import all_logits, sequence_batch
from tiny_models.phi import PHI_MEMBERS, random_phi_checkpoint, tiny_phi_config, write_phi_gguf

from phlite import ops
from phlite.errors import ModelFileError, UnsupportedModelError
from phlite.models.base import Batch
from phlite.models.phi import PhiConfig, PhiForCausalLM
from phlite.models.registry import load_model


@pytest.fixture(scope="module")
def pool() -> ops.ThreadPool:
    return ops.ThreadPool(2)


@pytest.fixture
def load(tmp_path: Path, pool: ops.ThreadPool) -> Callable[..., PhiForCausalLM]:
    """Write a random model with this config and load it."""

    def build(config: dict[str, Any], **file: Any) -> PhiForCausalLM:
        path = write_phi_gguf(tmp_path / "tiny.gguf", random_phi_checkpoint(config, fused=True), **file)
        model = load_model(path, pool=pool)
        assert isinstance(model, PhiForCausalLM)
        return model

    return build


@pytest.mark.parametrize("member", PHI_MEMBERS)
def test_gguf_and_config_json_give_the_same_config(load, member: str):
    from_json = PhiConfig.from_hf_config(json.loads(json.dumps(PHI_MEMBERS[member])))
    from_gguf = load(PHI_MEMBERS[member]).config
    assert from_gguf.layer_norm_eps == pytest.approx(from_json.layer_norm_eps, rel=1e-7)  # stored as float32
    assert replace(from_gguf, layer_norm_eps=from_json.layer_norm_eps) == from_json


def test_phi_2_rotates_32_of_80_dimensions():
    assert PhiConfig.from_hf_config(tiny_phi_config()).rotary_dim == 32


def test_config_of_transformers_5_has_its_rope_keys_in_one_object():
    config = tiny_phi_config(rope_parameters={"rope_type": "default", "rope_theta": 5e3, "partial_rotary_factor": 0.5})
    del config["rope_theta"], config["partial_rotary_factor"]
    parsed = PhiConfig.from_hf_config(config)
    assert (parsed.rope_theta, parsed.rotary_dim) == (5e3, 40)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "phi3"}, "model_type is 'phi3', expected 'phi'"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu', expected 'gelu_new'"),
        ({"qk_layernorm": True}, "qk_layernorm is true"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope scaling 'linear'"),
        ({"sliding_window": 128}, "key 'sliding_window' has no meaning"),
    ],
)
def test_a_config_json_of_another_model_is_refused(change: dict[str, Any], message: str):
    with pytest.raises(UnsupportedModelError, match=message):
        PhiConfig.from_hf_config(tiny_phi_config(**change))


@pytest.mark.parametrize(("key", "value"), [("rope.dimension_count", 82), ("rope.dimension_count", 31)])
def test_rotary_dimensions_that_no_head_has_are_refused(load, key: str, value: int):
    with pytest.raises(ModelFileError, match="rotary dimensions, expected an even number up to the head's 80"):
        load(tiny_phi_config(), extra={key: value})


def test_heads_that_do_not_share_evenly_are_refused(load):
    with pytest.raises(ModelFileError, match="4 query heads, expected a multiple of the 3"):
        load(tiny_phi_config(), extra={"attention.head_count_kv": 3})


def test_an_unknown_key_is_refused(load):
    with pytest.raises(UnsupportedModelError, match=r"phi2\.rope\.scaling\.factor' has no meaning"):
        load(tiny_phi_config(), extra={"rope.scaling.factor": 4.0})


@pytest.mark.parametrize("name", ["blk.1.attn_qkv.bias", "blk.0.attn_norm.bias", "output.bias", "blk.1.ffn_up.bias"])
def test_a_missing_bias_is_refused(load, name: str):
    with pytest.raises(ModelFileError, match=f"tensor '{name}' is missing"):
        load(tiny_phi_config(), leave_out=(name,))


def test_a_tensor_without_a_place_is_refused(load):
    """A layer more than the metadata counts."""
    with pytest.raises(UnsupportedModelError, match=r"tensors have no place in this architecture: 'blk\.1\."):
        load(tiny_phi_config(), extra={"block_count": 1})


def test_neighbours_in_a_batch_do_not_change_a_bit(load):
    model = load(tiny_phi_config())
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 512, n).tolist() for n in (5, 70, 1)]
    alone = [all_logits(model, ids, dtype="f16")[-1] for ids in prompts]
    parts = [sequence_batch(ids) for ids in prompts]
    starts = np.cumsum([0, *map(len, prompts)])
    tables = np.full((3, 2), -1, np.int32)
    tables[0, 0], tables[1], tables[2, 0] = 3, (0, 1), 2
    batch = Batch(
        token_ids=np.concatenate([part.token_ids for part in parts]),
        positions=np.concatenate([part.positions for part in parts]),
        seq_starts=starts.astype(np.int32),
        block_tables=tables,
        seq_lens=np.array([len(ids) for ids in prompts], np.int32),
        logit_rows=(starts[1:] - 1).astype(np.int32),
    )
    together = model.forward(batch, model.build_kv_cache(4))
    assert np.array_equal(together, np.stack(alone))
