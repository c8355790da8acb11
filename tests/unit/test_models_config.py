"""Phi3Config: every key of the architecture is used or refused, whatever kind of file it comes from."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import LONG_FACTOR, LONGROPE, SHORT_FACTOR, random_checkpoint, tiny_config, write_gguf

from phlite.errors import ModelFileError, UnsupportedModelError
from phlite.gguf import load_gguf
from phlite.layers.weights import Weights
from phlite.models.phi3_config import GGUF_NAMES, Phi3Config

LONG = tiny_config(hidden_size=384, max_position_embeddings=131072, rope_scaling=LONGROPE, num_hidden_layers=1)


@pytest.fixture
def config_of(tmp_path: Path):
    """Return the config that a file with these keys and tensors has."""

    def read(config: dict[str, Any], **file: Any) -> Phi3Config:
        split = file.get("architecture") == "llama"
        checkpoint = random_checkpoint(config, split_qkv=split, split_gate_up=split)
        opened = load_gguf(write_gguf(tmp_path / "tiny.gguf", checkpoint, **file))
        return Phi3Config.from_gguf(opened.metadata, Weights(opened.tensors, source="tiny.gguf", names=GGUF_NAMES))

    return read


def test_gguf_and_config_json_give_the_same_config(config_of):
    config = {**LONG, "num_key_value_heads": 2, "sliding_window": 2047}
    from_gguf = config_of(config)
    from_json = Phi3Config.from_hf_config(json.loads(json.dumps(config)))
    assert from_gguf.rope_attention_factor == pytest.approx(1.1902380714238083, rel=1e-7)  # stored as float32
    for field in ("rope_attention_factor", "rms_norm_eps", "rope_short_factor", "rope_long_factor"):
        assert getattr(from_gguf, field) == pytest.approx(getattr(from_json, field), rel=1e-7)
    for field in ("vocab_size", "num_key_value_heads", "head_dim", "rotary_dim", "sliding_window", "rope_theta"):
        assert getattr(from_gguf, field) == getattr(from_json, field)


def test_partial_rotary_factor_becomes_a_number_of_dimensions(config_of):
    config = tiny_config(partial_rotary_factor=0.75)
    assert config_of(config).rotary_dim == Phi3Config.from_hf_config(config).rotary_dim == 48


def test_a_file_without_output_matrix_is_tied(config_of):
    assert config_of(tiny_config(tie_word_embeddings=True)).tie_word_embeddings
    assert not config_of(tiny_config()).tie_word_embeddings


def test_window_zero_means_none(config_of):
    assert config_of(tiny_config(sliding_window=None)).sliding_window is None


def test_early_conversion_of_a_4k_model_has_its_window(config_of):
    # Conversions of April and May 2024 lack four keys; the values are those of Phi-3-mini-4k.
    absent = ["attention.sliding_window", "rope.freq_base", "rope.scaling.original_context_length"]
    config = config_of(tiny_config(), leave_out=absent)
    assert (config.sliding_window, config.rope_theta, config.original_max_position_embeddings) == (2047, 1e4, 4096)


def test_early_conversion_of_a_longer_model_has_no_window(config_of):
    config = config_of(tiny_config(max_position_embeddings=8192), leave_out=["attention.sliding_window"])
    assert config.sliding_window is None


def test_attention_factor_left_out_is_computed_from_the_lengths(config_of):
    config = config_of(LONG, leave_out=["rope.scaling.attn_factor"])
    assert config.rope_attention_factor == 1.1902380714238083


def test_attention_factor_is_one_when_the_original_length_is_left_out_too(config_of):
    config = config_of(LONG, leave_out=["rope.scaling.attn_factor", "rope.scaling.original_context_length"])
    assert config.rope_attention_factor == 1.0


@pytest.mark.parametrize(
    "key",
    [
        "embedding_length",
        "context_length",
        "feed_forward_length",
        "block_count",
        "attention.head_count",
        "attention.layer_norm_rms_epsilon",
    ],
)
def test_a_key_that_cannot_be_guessed_is_required(config_of, key: str):
    with pytest.raises(ModelFileError, match=f"phi3.{key}"):
        config_of(tiny_config(), leave_out=[key])


@pytest.mark.parametrize("key", ["attention.logit_scale", "expert_count", "rope.scaling.yarn_log_multiplier"])
def test_a_key_without_meaning_here_is_refused(config_of, key: str):
    with pytest.raises(UnsupportedModelError, match=f"phi3.{key}"):
        config_of(tiny_config(), extra={key: 2})


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"attention.head_count_kv": 3}, "multiple of the 3 key/value heads"),
        ({"rope.dimension_count": 63}, "63 rotary dimensions"),
        ({"rope.dimension_count": 128}, "128 rotary dimensions"),
        ({"vocab_size": 511}, "phi3.vocab_size"),
        ({"attention.key_length": 64, "attention.value_length": 32}, "phi3.attention.value_length"),
        ({"attention.layer_norm_rms_epsilon": 2.0}, "phi3.attention.layer_norm_rms_epsilon"),
        ({"rope.freq_base": 0.0}, "phi3.rope.freq_base"),
        ({"attention.head_count": 0}, "phi3.attention.head_count"),
        ({"attention.head_count": 512}, "rotary dimensions"),
        ({"context_length": 0}, "phi3.context_length"),
        ({"embedding_length": 320}, "token_embd.weight.*shape"),
        ({"rope.scaling.attn_factor": 1.19}, "rope_factors_short.weight"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(config_of, extra: dict[str, Any], message: str):
    with pytest.raises(ModelFileError, match=message):
        config_of(tiny_config(), extra=extra, leave_out=["rope.dimension_count"] if "head_count" in str(extra) else [])


@pytest.mark.parametrize("extra", [{"rope.scaling.type": "yarn"}, {"rope.scaling.factor": 4.0}])
def test_other_rope_scaling_is_refused(config_of, extra: dict[str, Any]):
    with pytest.raises(UnsupportedModelError, match="rope scaling"):
        config_of(tiny_config(), extra=extra)


def test_one_list_without_the_other_is_refused(config_of):
    with pytest.raises(ModelFileError, match=r"rope_factors_long\.weight"):
        config_of(LONG, leave_out=["rope_factors_long.weight"])


def test_lists_of_another_length_than_the_rotary_pairs_are_refused(config_of):
    with pytest.raises(ModelFileError, match=r"rope_factors_short.weight.*\[48\].*\[32\]"):
        config_of(LONG, extra={"rope.dimension_count": 64})


def test_a_factor_of_zero_is_refused(config_of):
    broken = {**LONGROPE, "long_factor": [0.0, *LONG_FACTOR[1:]]}
    with pytest.raises(ModelFileError, match="LongRoPE"):
        config_of({**LONG, "rope_scaling": broken})


def test_llama_file_of_a_phi3_rotates_neighbours(config_of):
    config = config_of(tiny_config(), architecture="llama")
    assert (config.rope_interleaved, config.sliding_window) == (True, 2047)


def test_llama_file_of_a_llama_is_refused_by_its_vocabulary(config_of):
    with pytest.raises(UnsupportedModelError, match=r"Llama.*<\|assistant\|>"):
        config_of(tiny_config(), architecture="llama", vocabulary=False)


def test_config_json_of_transformers_4_and_5_agree():
    plain = {key: value for key, value in LONG.items() if key not in ("rope_scaling", "rope_theta")}
    old = {**plain, "rope_theta": 250000.0, "rope_scaling": {**LONGROPE, "type": "su"}, "partial_rotary_factor": 1.0}
    new = {
        **plain,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 250000.0,
            "partial_rotary_factor": 1.0,
            "original_max_position_embeddings": 4096,
            "long_factor": LONG_FACTOR,
            "short_factor": SHORT_FACTOR,
        },
    }
    assert Phi3Config.from_hf_config(old) == Phi3Config.from_hf_config(new)


@pytest.mark.parametrize(
    ("more", "expected"), [({"factor": 16.0}, 1.1547005383792515), ({"attention_factor": 1.3}, 1.3)]
)
def test_config_json_may_give_the_scale_or_the_attention_factor(more: dict[str, float], expected: float):
    config = Phi3Config.from_hf_config({**LONG, "rope_scaling": {**LONGROPE, **more}})
    assert config.rope_attention_factor == pytest.approx(expected, rel=1e-12)


def test_config_json_keys_that_training_left_behind_are_ignored():
    inert = {"attention_dropout": 0.0, "resid_pdrop": 0.0, "use_cache": True, "torch_dtype": "bfloat16"}
    assert Phi3Config.from_hf_config({**tiny_config(), **inert}) == Phi3Config.from_hf_config(tiny_config())


@pytest.mark.parametrize(
    "more",
    [
        {"model_type": "phimoe"},
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"quantization_config": {"bits": 4}},
        {"num_local_experts": 16},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {**LONGROPE, "short_mscale": 1.2}},
    ],
)
def test_config_json_of_another_model_is_refused(more: dict[str, Any]):
    with pytest.raises(UnsupportedModelError, match=next(iter(more)).replace("rope_scaling", "rope.scaling")):
        Phi3Config.from_hf_config({**LONG, **more})


@pytest.mark.parametrize(
    "more",
    [
        {"hidden_size": "384"},
        {"hidden_size": True},
        {"num_hidden_layers": 0},
        {"rms_norm_eps": float("nan")},
        {"tie_word_embeddings": 1},
        {"num_key_value_heads": 3},
        {"rope_scaling": {"type": "longrope", "long_factor": LONG_FACTOR}},
        {"rope_scaling": {**LONGROPE, "short_factor": SHORT_FACTOR[:-1]}},
        {"rope_scaling": {**LONGROPE, "short_factor": ["1.0"] * 48}},
        {"rope_scaling": []},
    ],
)
def test_config_json_with_a_wrong_value_is_refused(more: dict[str, Any]):
    with pytest.raises(ModelFileError, match=r"config\.json"):
        Phi3Config.from_hf_config({**LONG, **more})
