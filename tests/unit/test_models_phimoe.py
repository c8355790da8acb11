"""The phimoe model on real operations: equal to its float64 definition, strict about files, its config read exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_models import Checkpoint, all_logits, greedy_ids, int8_activations, write_hf_folder
from tiny_models.phimoe import (
    MSCALE,
    PHIMOE_MEMBERS,
    fused_experts,
    phimoe_longrope,
    phimoe_reference_logits,
    random_phimoe_checkpoint,
    tiny_phimoe_config,
    write_phimoe_gguf,
)

from phlite import ops
from phlite.checkpoint import load_checkpoint
from phlite.convert import convert_checkpoint
from phlite.errors import ModelFileError, PhliteError, UnsupportedModelError
from phlite.gguf import load_gguf
from phlite.layers.weights import Weights
from phlite.models.base import CausalLM
from phlite.models.phimoe_config import GGUF_NAMES, PhimoeConfig
from phlite.models.phimoe_tensors import split_stacks
from phlite.models.registry import build_checkpoint_model, load_model

IDS = np.random.default_rng(5).integers(0, 512, 40).tolist()
Load = Callable[..., CausalLM]
ROUND = tiny_phimoe_config(num_hidden_layers=1, num_local_experts=4)


@pytest.fixture(scope="module")
def pool() -> ops.ThreadPool:
    return ops.ThreadPool(2)


@pytest.fixture
def load(tmp_path: Path, pool: ops.ThreadPool) -> Load:
    def write_and_load(checkpoint: Checkpoint, **file: Any) -> CausalLM:
        return load_model(write_phimoe_gguf(tmp_path / "tiny.gguf", checkpoint, **file), pool=pool)

    return write_and_load


@pytest.fixture
def load_folder(pool: ops.ThreadPool) -> Callable[[Path], CausalLM]:
    def load(folder: Path) -> CausalLM:
        with load_checkpoint(folder) as checkpoint:
            return build_checkpoint_model(checkpoint, pool=pool)

    return load


@pytest.fixture
def config_of(tmp_path: Path) -> Callable[..., PhimoeConfig]:
    """Return the config that a file with these keys and tensors has."""

    def read(config: dict[str, Any], **file: Any) -> PhimoeConfig:
        path = write_phimoe_gguf(tmp_path / "tiny.gguf", random_phimoe_checkpoint(config), **file)
        opened = load_gguf(path)
        return PhimoeConfig.from_gguf(opened.metadata, Weights(opened.tensors, source="tiny.gguf", names=GGUF_NAMES))

    return read


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, pool: ops.ThreadPool) -> CausalLM:
    """A quantised model whose LongRoPE switches at 48 tokens."""
    config = tiny_phimoe_config(
        intermediate_size=512,
        max_position_embeddings=256,
        sliding_window=30,
        rope_scaling=phimoe_longrope(64, original=48, long_mscale=1.4),
    )
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    return load_model(write_phimoe_gguf(path, random_phimoe_checkpoint(config, "Q4_K")), pool=pool)


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    error = np.abs(got - expected).max(axis=-1) / np.linalg.norm(expected, axis=-1)
    assert error.max() < 1e-5


@pytest.mark.parametrize("member", PHIMOE_MEMBERS)
def test_logits_equal_the_float64_definition(load: Load, member: str):
    checkpoint = random_phimoe_checkpoint(PHIMOE_MEMBERS[member])
    expected = phimoe_reference_logits(checkpoint.config, checkpoint.weights, IDS)
    assert_close(all_logits(load(checkpoint), IDS), expected)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_K", "Q6_K", "Q8_0", "Q5_0", "IQ4_XS"])
def test_experts_of_every_kind_of_format_equal_the_definition_with_the_same_rounding(load: Load, kind: str):
    """The definition rounds the inputs of products to int8 as the kernels do, so even the routes are the same.

    Where float32 and float64 fall on different sides of a rounding, one of some hundred inputs differs by a 127th, and
    a row by about a hundredth; that happens to few rows.
    """
    config = tiny_phimoe_config(intermediate_size=512)
    checkpoint = random_phimoe_checkpoint(config, kind, seed=3)
    rounding = int8_activations(checkpoint.tensors)
    expected = phimoe_reference_logits(config, checkpoint.weights, IDS, round_activations=rounding)
    got = all_logits(load(checkpoint), IDS)
    error = np.linalg.norm(got - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert np.median(error) < 1e-5
    assert error.max() < (1e-5 if kind in ("F16", "BF16") else 0.05)


@pytest.mark.parametrize("n_tokens", [31, 32, 33])
def test_list_and_attention_factor_change_with_the_length(load: Load, n_tokens: int):
    rope = phimoe_longrope(64, original=32, short_mscale=1.1, long_mscale=1.5)
    checkpoint = random_phimoe_checkpoint({**ROUND, "max_position_embeddings": 1024, "rope_scaling": rope})
    expected = phimoe_reference_logits(checkpoint.config, checkpoint.weights, IDS[:n_tokens])
    assert_close(all_logits(load(checkpoint), IDS[:n_tokens]), expected)


def test_window_shorter_than_the_prompt_equals_the_definition(load: Load):
    checkpoint = random_phimoe_checkpoint({**ROUND, "sliding_window": 7})
    expected = phimoe_reference_logits(checkpoint.config, checkpoint.weights, IDS)
    assert_close(all_logits(load(checkpoint), IDS), expected)


def test_width_of_sharing_and_epsilon_are_the_files(load: Load):
    checkpoint = random_phimoe_checkpoint({**ROUND, "router_jitter_noise": 0.4, "rms_norm_eps": 0.25})
    expected = phimoe_reference_logits(checkpoint.config, checkpoint.weights, IDS)
    assert_close(all_logits(load(checkpoint, extra={"router_jitter_noise": 0.4}), IDS), expected)


def test_chunks_do_not_change_a_bit(shared: CausalLM):
    whole = all_logits(shared, IDS, dtype="f16")
    for chunk in (1, 7, 16, 39):
        np.testing.assert_array_equal(all_logits(shared, IDS, chunk=chunk, dtype="f16"), whole)


def test_threads_do_not_change_a_bit(tmp_path: Path):
    path = write_phimoe_gguf(tmp_path / "tiny.gguf", random_phimoe_checkpoint(ROUND, "Q8_0"))
    results = [all_logits(load_model(path, pool=ops.ThreadPool(n)), IDS) for n in (1, 2, 7)]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_a_fused_qkv_matrix_equals_split_ones(load: Load, tmp_path: Path, pool: ops.ThreadPool):
    # llama.cpp can write either.
    checkpoint = random_phimoe_checkpoint(ROUND)
    expected = all_logits(load(checkpoint), IDS)
    parts = {kind: [checkpoint.tensors[f"model.layers.0.self_attn.{p}_proj.{kind}"].values for p in "qkv"] for kind in
             ("weight", "bias")}  # fmt: skip
    names = [f"blk.0.attn_{p}.{kind}" for p in "qkv" for kind in parts]
    fused = {f"blk.0.attn_qkv.{kind}": np.concatenate(values) for kind, values in parts.items()}
    path = write_phimoe_gguf(tmp_path / "fused.gguf", checkpoint, leave_out=names, extra_tensors=fused)
    np.testing.assert_array_equal(all_logits(load_model(path, pool=pool), IDS), expected)


def test_folders_with_experts_one_by_one_and_stacked_give_the_same_bits(
    load: Load, load_folder: Callable[[Path], CausalLM], tmp_path: Path
):
    config = {**ROUND, "rope_scaling": phimoe_longrope(64, original=64), "max_position_embeddings": 1024}
    checkpoint = random_phimoe_checkpoint(config)
    expected = all_logits(load(checkpoint), IDS)
    split = write_hf_folder(tmp_path / "split", checkpoint, n_shards=3)
    stacked = write_hf_folder(tmp_path / "stacked", Checkpoint(config, fused_experts(checkpoint)))
    np.testing.assert_array_equal(all_logits(load_folder(split), IDS), expected)
    np.testing.assert_array_equal(all_logits(load_folder(stacked), IDS), expected)
    assert greedy_ids(load_folder(split), IDS[:5], 8) == greedy_ids(load_folder(stacked), IDS[:5], 8)


def test_the_converted_file_gives_the_same_bits_and_keys(
    load_folder: Callable[[Path], CausalLM], tmp_path: Path, pool: ops.ThreadPool
):
    rope = phimoe_longrope(64, original=32, short_mscale=1.1, long_mscale=1.5)
    config = {**PHIMOE_MEMBERS["phi-tiny-moe"], "rope_scaling": rope, "router_jitter_noise": 0.02}
    folder = write_hf_folder(tmp_path / "model", random_phimoe_checkpoint(config, "BF16"))
    with load_checkpoint(folder) as checkpoint:
        convert_checkpoint(checkpoint, tmp_path / "tiny.gguf")
    model, converted = load_folder(folder), load_model(tmp_path / "tiny.gguf", pool=pool)
    np.testing.assert_array_equal(all_logits(converted, IDS), all_logits(model, IDS))
    reader = gguf.GGUFReader(tmp_path / "tiny.gguf")
    keys = {name: field.contents() for name, field in reader.fields.items() if name.startswith("phimoe.")}
    assert (keys["phimoe.expert_count"], keys["phimoe.expert_used_count"]) == (16, 2)
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}  # innermost first
    assert shapes["blk.1.ffn_down_exps.weight"] == [56, 512, 16]
    assert shapes["blk.1.ffn_gate_exps.weight"] == [512, 56, 16]
    assert next(t for t in reader.tensors if t.name == "blk.0.ffn_gate_inp.weight").tensor_type.name == "F32"


def test_stacked_folders_are_not_converted(tmp_path: Path):
    folder = write_hf_folder(tmp_path / "model", Checkpoint(ROUND, fused_experts(random_phimoe_checkpoint(ROUND))))
    with load_checkpoint(folder) as checkpoint, pytest.raises(UnsupportedModelError, match="stacked"):
        convert_checkpoint(checkpoint, tmp_path / "tiny.gguf")


def test_gguf_and_config_json_give_the_same_config(config_of: Callable[..., PhimoeConfig]):
    config = {**PHIMOE_MEMBERS["phi-3.5-moe"], "num_hidden_layers": 1}
    from_gguf, from_json = config_of(config), PhimoeConfig.from_hf_config(json.loads(json.dumps(config)))
    assert from_json.rope_short_mscale == from_json.rope_long_mscale == MSCALE
    for field in PhimoeConfig.__dataclass_fields__:
        got, expected = getattr(from_gguf, field), getattr(from_json, field)
        assert got == (pytest.approx(expected, rel=1e-7) if isinstance(expected, (float, tuple)) else expected), field


def test_attention_factor_by_llama_cpps_formula_becomes_the_published_one(config_of: Callable[..., PhimoeConfig]):
    config = {**PHIMOE_MEMBERS["phi-3.5-moe"], "num_hidden_layers": 1}
    read = config_of(config, mscales=False)
    assert read.rope_short_mscale == read.rope_long_mscale == MSCALE


def test_attention_factor_of_another_origin_is_the_files(config_of: Callable[..., PhimoeConfig]):
    config = {**PHIMOE_MEMBERS["phi-3.5-moe"], "num_hidden_layers": 1}
    assert config_of(config, mscales=False, extra={"rope.scaling.attn_factor": 1.5}).rope_long_mscale == 1.5
    other = {**ROUND, "max_position_embeddings": 1024, "rope_scaling": phimoe_longrope(64, original=64)}
    assert config_of(other, mscales=False).rope_short_mscale == pytest.approx((1 + np.log(16) / np.log(64)) ** 0.5)


def test_missing_keys_of_config_json_are_transformers_defaults():
    config = PhimoeConfig.from_hf_config({"model_type": "phimoe"})
    assert (config.num_local_experts, config.router_jitter_noise, config.rope_theta) == (16, 0.01, 1e6)
    assert (config.attention_bias, config.lm_head_bias, config.head_dim) == (False, False, 128)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts_per_tok": 1}, "num_experts_per_tok"),
        ({"num_local_experts": 1}, "num_local_experts"),
        ({"num_local_experts": 257}, "num_local_experts"),
        ({"num_key_value_heads": 3}, "multiple"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"shared_expert": 4}, "shared_expert"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_scaling": phimoe_longrope(32)}, "16 factors"),
        ({"head_dim": 63}, "even"),
    ],
)
def test_configs_of_another_model_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(PhliteError, match=message):
        PhimoeConfig.from_hf_config({**tiny_phimoe_config(), **changes})


@pytest.mark.parametrize("key", ["expert_count", "expert_used_count", "embedding_length", "feed_forward_length"])
def test_a_key_that_cannot_be_guessed_is_required(load: Load, key: str):
    with pytest.raises(ModelFileError, match=f"phimoe.{key}"):
        load(random_phimoe_checkpoint(ROUND), leave_out=[key])


@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        ({"expert_used_count": 3}, ModelFileError, "expert_used_count"),
        ({"expert_count": 5}, ModelFileError, "ffn_gate_inp.weight"),
        ({"expert_shared_count": 1}, UnsupportedModelError, "expert_shared_count"),
        ({"rope.dimension_count": 32}, ModelFileError, "dimension_count"),
        ({"router_jitter_noise": -1.0}, ModelFileError, "router_jitter_noise"),
    ],
)
def test_keys_that_contradict_the_file_are_refused(load: Load, extra: dict[str, Any], error: type, message: str):
    with pytest.raises(error, match=message):
        load(random_phimoe_checkpoint(ROUND), extra=extra)


@pytest.mark.parametrize(
    "name", ["blk.0.attn_norm.bias", "blk.0.ffn_gate_inp.weight", "output_norm.bias", "blk.0.attn_k.bias"]
)
def test_a_missing_tensor_is_named(load: Load, name: str):
    with pytest.raises(ModelFileError, match=name):
        load(random_phimoe_checkpoint(ROUND), leave_out=[name])


def test_a_missing_stack_is_named(load: Load):
    with pytest.raises(ModelFileError, match=r"blk\.0\.ffn_up"):
        load(random_phimoe_checkpoint(ROUND), leave_out=["blk.0.ffn_up_exps.weight"])


@pytest.mark.parametrize("shape", [(4, 384), (300, 2, 2), (4, 256, 384), (5, 384, 256)])
def test_a_stack_of_another_shape_is_refused(load: Load, shape: tuple[int, ...]):
    name = "blk.0.ffn_gate_exps.weight"
    with pytest.raises(PhliteError, match=r"ffn_gate(_exps|\.4)"):
        load(
            random_phimoe_checkpoint(ROUND),
            leave_out=[name],
            extra_tensors={name: np.zeros(shape, np.float32)},
        )


def test_a_mapping_without_stacks_is_not_looked_through():
    class MadeOnRequest(dict[str, Any]):
        def items(self) -> Any:
            raise AssertionError("every tensor was made at once")

        values = items

    tensors = MadeOnRequest({"model.layers.0.block_sparse_moe.experts.0.w1.weight": None})
    assert split_stacks(tensors, source="folder") is tensors


def test_a_tensor_without_a_place_is_refused(load: Load):
    with pytest.raises(UnsupportedModelError, match="ffn_gate_shexp"):
        load(random_phimoe_checkpoint(ROUND), extra_tensors={"blk.0.ffn_gate_shexp.weight": np.zeros((4, 4))})
