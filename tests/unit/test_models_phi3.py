"""The phi3 model on real operations: equal to its float64 definition, strict about files and batches."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import (
    MEMBERS,
    Checkpoint,
    all_logits,
    greedy_ids,
    random_checkpoint,
    reference_logits,
    sequence_batch,
    tiny_config,
    write_gguf,
)

from phlite import ops
from phlite.errors import ModelFileError, PhliteError, ShapeError, UnsupportedModelError
from phlite.models.base import Batch, CausalLM
from phlite.models.registry import load_model

IDS = np.random.default_rng(5).integers(0, 512, 40).tolist()
Load = Callable[..., CausalLM]


@pytest.fixture(scope="module")
def pool() -> ops.ThreadPool:
    return ops.ThreadPool(2)


@pytest.fixture
def load(tmp_path: Path, pool: ops.ThreadPool) -> Load:
    def write_and_load(checkpoint: Checkpoint, **file: Any) -> CausalLM:
        return load_model(write_gguf(tmp_path / "tiny.gguf", checkpoint, **file), pool=pool)

    return write_and_load


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, pool: ops.ThreadPool) -> CausalLM:
    """A model whose LongRoPE switches at 48 tokens."""
    factors = {"type": "longrope", "long_factor": np.linspace(1, 9, 32).tolist(), "short_factor": [1.0] * 32}
    config = tiny_config(
        num_key_value_heads=2,
        max_position_embeddings=256,
        original_max_position_embeddings=48,
        sliding_window=30,
        rope_scaling=factors,
    )
    path = write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", random_checkpoint(config, "Q4_K"))
    return load_model(path, pool=pool)


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    error = np.abs(got - expected).max(axis=-1) / np.linalg.norm(expected, axis=-1)
    assert error.max() < 1e-5


@pytest.mark.parametrize("member", MEMBERS)
def test_logits_equal_the_float64_definition(load: Load, member: str):
    checkpoint = random_checkpoint(MEMBERS[member])
    assert_close(all_logits(load(checkpoint), IDS), reference_logits(checkpoint.config, checkpoint.weights, IDS))


def test_window_shorter_than_the_prompt_equals_the_definition(load: Load):
    checkpoint = random_checkpoint(tiny_config(sliding_window=7))
    assert_close(all_logits(load(checkpoint), IDS), reference_logits(checkpoint.config, checkpoint.weights, IDS))


def test_epsilon_of_the_norms_is_the_files(load: Load):
    checkpoint = random_checkpoint(tiny_config(rms_norm_eps=0.25))
    assert_close(all_logits(load(checkpoint), IDS), reference_logits(checkpoint.config, checkpoint.weights, IDS))


@pytest.mark.parametrize("n_tokens", [40, 41])
def test_longrope_lists_on_both_sides_of_the_original_length(load: Load, n_tokens: int):
    factors = {"type": "longrope", "long_factor": np.linspace(1, 9, 32).tolist(), "short_factor": [1.1] * 32}
    config = tiny_config(
        max_position_embeddings=4096, original_max_position_embeddings=40, rope_scaling=factors, vocab_size=64
    )
    checkpoint, ids = random_checkpoint(config), list(range(n_tokens))
    assert_close(all_logits(load(checkpoint), ids), reference_logits(config, checkpoint.weights, ids))


def test_split_matrices_equal_fused_ones(load: Load):
    split = random_checkpoint(tiny_config(num_key_value_heads=2), "Q8_0", split_qkv=True, split_gate_up=True)
    fused_logits = all_logits(load(split.fused()), IDS)
    np.testing.assert_array_equal(all_logits(load(split), IDS), fused_logits)


def test_split_matrices_may_have_different_formats(load: Load):
    config = tiny_config()
    mixed = random_checkpoint(config, lambda name: "Q6_K" if "v_proj" in name else "Q4_K", split_qkv=True)
    got, expected = all_logits(load(mixed), IDS), reference_logits(config, mixed.fused().weights, IDS)
    assert np.linalg.norm(got - expected) < 0.05 * np.linalg.norm(expected)


def test_llama_file_equals_the_phi3_file_of_the_same_weights(load: Load):
    config = tiny_config(num_key_value_heads=2, max_position_embeddings=2048)
    checkpoint = random_checkpoint(config, split_qkv=True, split_gate_up=True)
    as_phi3 = all_logits(load(checkpoint), IDS)
    assert_close(all_logits(load(checkpoint, architecture="llama"), IDS), as_phi3)


def test_empty_longrope_lists_of_ollamas_converter_mean_none(load: Load):
    checkpoint = random_checkpoint(tiny_config())
    empty = {f"rope_factors_{which}.weight": np.zeros(0, np.float32) for which in ("long", "short")}
    np.testing.assert_array_equal(
        all_logits(load(checkpoint, extra_tensors=empty), IDS), all_logits(load(checkpoint), IDS)
    )


def test_no_other_tensor_may_be_empty(load: Load):
    with pytest.raises(ModelFileError, match=r"dimensions \(0,\).*none of 0"):
        load(random_checkpoint(tiny_config()), extra_tensors={"rope_freqs.weight": np.zeros(0, np.float32)})


def test_vocabulary_rows_beyond_the_tokenizer_are_kept(load: Load):
    model = load(random_checkpoint(tiny_config(vocab_size=517)))
    assert model.config.vocab_size == 517
    assert model.forward(sequence_batch([516]), model.build_kv_cache(1)).shape == (1, 517)


def test_chunks_do_not_change_a_bit(shared: CausalLM):
    whole = all_logits(shared, IDS, dtype="f16")
    for chunk in (1, 7, 16, 39):
        np.testing.assert_array_equal(all_logits(shared, IDS, chunk=chunk, dtype="f16"), whole)


@pytest.mark.parametrize("dtype", ["f16", "q8_0", "f32"])
def test_neighbours_in_the_batch_do_not_change_a_bit(shared: CausalLM, dtype: str):
    # The middle one is above the original length: the regimes of the others must not follow it.
    prompts = [IDS[:5], (IDS * 2)[:60], IDS[10:31]]
    alone = [all_logits(shared, prompt, dtype=dtype)[-1] for prompt in prompts]
    starts = np.cumsum([0, *map(len, prompts)]).astype(np.int32)
    batch = Batch(
        token_ids=np.concatenate(prompts).astype(np.int32),
        positions=np.concatenate([np.arange(len(prompt)) for prompt in prompts]).astype(np.int32),
        seq_starts=starts,
        block_tables=np.array([[3], [0], [2]], np.int32),
        seq_lens=np.diff(starts).astype(np.int32),
        logit_rows=(starts[1:] - 1).astype(np.int32),
    )
    together = shared.forward(batch, shared.build_kv_cache(4, dtype))
    np.testing.assert_array_equal(together, np.stack(alone))


def test_threads_do_not_change_a_bit(tmp_path: Path):
    path = write_gguf(tmp_path / "tiny.gguf", random_checkpoint(MEMBERS["phi-4-mini"], "F16"))
    logits = [all_logits(load_model(path, pool=ops.ThreadPool(n)), IDS) for n in (1, 2, 7)]
    np.testing.assert_array_equal(logits[0], logits[1])
    np.testing.assert_array_equal(logits[0], logits[2])


def test_only_the_wanted_rows_are_returned_in_their_order(shared: CausalLM):
    every = all_logits(shared, IDS)
    wanted = shared.forward(sequence_batch(IDS, logit_rows=[30, 2, 39]), shared.build_kv_cache(1, "f32"))
    np.testing.assert_array_equal(wanted, every[[30, 2, 39]])


def test_a_chunk_that_wants_no_logits_still_fills_the_cache(shared: CausalLM):
    cache = shared.build_kv_cache(1, "f32")
    first = shared.forward(sequence_batch(IDS[:20], seq_len=40, logit_rows=[]), cache)
    assert first.shape == (0, 512)
    last = shared.forward(sequence_batch(IDS[20:], start=20), cache)
    np.testing.assert_array_equal(last[0], all_logits(shared, IDS)[-1])


def test_generation_across_the_original_length_equals_encoding_afresh(shared: CausalLM):
    prompt = (IDS * 2)[:44]
    ids = greedy_ids(shared, prompt, 10)
    afresh = [int(all_logits(shared, prompt + ids[:i])[-1].argmax()) for i in range(10)]
    assert ids == afresh


def test_cache_bytes_per_token(load: Load):
    model = load(random_checkpoint(MEMBERS["mini-4k"]))  # 2 layers, 4 heads of 96
    assert model.kv_bytes_per_token("f16") == 2 * 2 * 4 * 96 * 2
    assert model.kv_bytes_per_token("f32") == 2 * 2 * 4 * 96 * 4


@pytest.mark.parametrize(
    "tensor",
    [
        "token_embd.weight",
        "output_norm.weight",
        "blk.1.attn_qkv.weight",
        "blk.0.ffn_norm.weight",
        "blk.1.ffn_up.weight",
    ],
)
def test_missing_tensor_is_named(load: Load, tensor: str):
    with pytest.raises(ModelFileError, match=tensor):
        load(random_checkpoint(tiny_config()), leave_out=[tensor])


@pytest.mark.parametrize(
    "tensor", ["blk.0.attn_qkv.bias", "blk.2.attn_norm.weight", "output.bias", "rope_freqs.weight"]
)
def test_tensor_without_a_place_is_named(load: Load, tensor: str):
    with pytest.raises(UnsupportedModelError, match=tensor):
        load(random_checkpoint(tiny_config()), extra_tensors={tensor: np.zeros(256, np.float32)})


def test_tensor_of_another_shape_is_named(load: Load):
    checkpoint = random_checkpoint(tiny_config())
    with pytest.raises(ModelFileError, match=r"ffn_up.weight.*\[1024, 256\].*\[2048, 256\]"):
        load(checkpoint, extra={"feed_forward_length": 1024})


def test_norm_with_nan_is_refused(load: Load):
    checkpoint = random_checkpoint(tiny_config())
    checkpoint.tensors["model.norm.weight"].values[3] = np.nan
    with pytest.raises(ModelFileError, match=r"output_norm\.weight"):
        load(checkpoint)


def test_more_layers_than_tensors_are_refused(load: Load):
    with pytest.raises(ModelFileError, match=r"blk\.2\."):
        load(random_checkpoint(tiny_config()), extra={"block_count": 4_000_000_000})


def test_unknown_architecture_names_the_nearest(load: Load):
    with pytest.raises(UnsupportedModelError, match=r"'phi9' is not implemented.*'phi3'"):
        load(random_checkpoint(tiny_config()), architecture="phi9")


def test_adapter_is_refused(tmp_path: Path, pool: ops.ThreadPool):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "lora.gguf", "phi3")
    writer.add_type("adapter")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UnsupportedModelError, match="adapter"):
        load_model(tmp_path / "lora.gguf", pool=pool)


@pytest.mark.parametrize(
    "change",
    [
        {"token_ids": [0, 512]},
        {"token_ids": [0, -1]},
        {"token_ids": [0, 1, 2]},
        {"positions": [0, 0]},
        {"positions": [255, 256]},
        {"positions": [-1, 0]},
        {"seq_starts": [0, 1]},
        {"seq_starts": [0, 0, 2]},
        {"seq_lens": [1]},
        {"seq_lens": [2, 2]},
        {"logit_rows": [2]},
        {"logit_rows": [-1]},
        {"block_tables": [[4]]},
        {"block_tables": [[-1]]},
    ],
    ids=str,
)
def test_contradictory_batch_is_refused(shared: CausalLM, change: dict[str, list[int]]):
    batch = sequence_batch([0, 1])
    broken = replace(batch, **{name: np.array(value, np.int32) for name, value in change.items()})
    with pytest.raises(ShapeError):
        shared.forward(broken, shared.build_kv_cache(4, "f32"))


def test_batch_of_another_dtype_is_refused(shared: CausalLM):
    batch = replace(sequence_batch([0, 1]), positions=np.array([0, 1], np.int64))
    with pytest.raises(PhliteError, match="positions"):
        shared.forward(batch, shared.build_kv_cache(4, "f32"))
