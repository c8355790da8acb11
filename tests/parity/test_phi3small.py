"""Phi-3-small against its plain PyTorch definition: logits within 1e-4 of their norm, the same greedy ids.

float32 throughout: three layers of 128 columns stay below 1e-5 of the logits' norm. The logits of a position depend on
the tokens before it only, so one run of the definition serves every length up to its own.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tiny_models import all_logits, greedy_ids
from tiny_models.checkpoint import Checkpoint
from tiny_models.hf_folder import stored
from tiny_models.phi3small import random_phi3small_checkpoint, tiny_phi3small_config, write_phi3small_folder

from phlite import ops
from phlite.checkpoint import load_checkpoint
from phlite.convert import convert_checkpoint
from phlite.convert.on_load import converted_checkpoint
from phlite.gguf import FileType, load_gguf
from phlite.models.registry import build_checkpoint_model, load_model

MAX_RELATIVE_DIFFERENCE = 1e-4
LONGEST = 1350
# A pattern whose every part is seen in a short sequence.
NARROW = {"blocksparse_num_local_blocks": 2, "blocksparse_vert_stride": 8}


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    """Compare rows: largest absolute difference relative to the norm of the row's logits; -inf in the same places."""
    assert np.array_equal(np.isneginf(got), np.isneginf(expected))
    got, expected = (np.where(np.isneginf(x), 0.0, x) for x in (got, expected))
    difference = (np.abs(got - expected).max(axis=-1) / np.linalg.norm(expected, axis=-1)).max()
    assert difference < MAX_RELATIVE_DIFFERENCE


@pytest.fixture(scope="module")
def definition() -> Callable[[Checkpoint], Any]:
    pytest.importorskip("torch", reason="the oracle needs torch: pip install 'phlite[parity]'")
    import torch
    from parity.phi3small_reference import Phi3SmallReference

    torch.set_num_threads(1)

    def build(checkpoint: Checkpoint) -> Phi3SmallReference:
        return Phi3SmallReference(
            checkpoint.config, {name: torch.from_numpy(values.copy()) for name, values in checkpoint.weights.items()}
        )

    return build


@pytest.fixture(scope="module")
def load(tmp_path_factory, pool) -> Callable[[Checkpoint], Any]:
    """Write a checkpoint as the published folder is, and load it."""

    def build(checkpoint: Checkpoint) -> Any:
        folder = write_phi3small_folder(tmp_path_factory.mktemp("small"), checkpoint)
        with load_checkpoint(folder) as opened:
            return build_checkpoint_model(opened, pool=pool)

    return build


@pytest.fixture(scope="module")
def pair(definition, load, random_ids) -> tuple[Any, list[int], np.ndarray]:
    """A model with the published pattern, ids that go beyond its local band, and their logits by the definition."""
    checkpoint = random_phi3small_checkpoint(tiny_phi3small_config(), seed=31)
    ids = random_ids(LONGEST, 384)
    return load(checkpoint), ids, definition(checkpoint).logits(ids).numpy()


@pytest.mark.parametrize("n", [1, 63, 64, 65, 127, 129, 1023, 1024, 1025, 1087, 1089, LONGEST])
def test_every_length_around_blocks_and_the_local_band(pair, n):
    model, ids, expected = pair
    assert_close(all_logits(model, ids[:n]), expected[:n])


@pytest.mark.parametrize("chunk", [17, 64, 100, 1024])
def test_chunks_of_a_prompt_give_the_bits_of_the_whole(pair, chunk):
    model, ids, _ = pair
    np.testing.assert_array_equal(all_logits(model, ids, chunk=chunk), all_logits(model, ids))


@pytest.mark.parametrize("n_prompt", [12, 990, 1270])
def test_64_greedy_ids(pair, definition, n_prompt):
    model, ids, _ = pair
    generated = greedy_ids(model, ids[:n_prompt], 64)
    # The definition chooses each of them behind the ones before: equal, token for token.
    checkpoint = random_phi3small_checkpoint(tiny_phi3small_config(), seed=31)
    logits = definition(checkpoint).logits(ids[:n_prompt] + generated).numpy()
    assert logits[n_prompt - 1 : -1].argmax(-1).tolist() == generated


@pytest.mark.parametrize("dtype", ["f16", "q8_0"])
def test_a_rounded_cache_changes_the_logits_a_little(pair, dtype):
    model, ids, expected = pair
    got = all_logits(model, ids, dtype=dtype)
    difference = np.abs(got - expected).max(-1) / np.linalg.norm(expected, axis=-1)
    assert difference.max() < {"f16": 2e-3, "q8_0": 5e-2}[dtype]


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 512},
        {"blocksparse_homo_head_pattern": True},
        {"blocksparse_vert_stride": 16},
        {"blocksparse_block_size": 128, "blocksparse_triton_kernel_block_size": 128},
        {"dense_attention_every_n_layers": 3},
        {"dense_attention_every_n_layers": None},
        {"dense_attention_every_n_layers": 1},
        {"gegelu_limit": 1.0},
        {"gegelu_limit": None},
        {"mup_use_scaling": False},
        {"mup_attn_multiplier": 3.0},
        {"mup_embedding_multiplier": 4.0, "mup_width_multiplier": 3.0},
        {"layer_norm_epsilon": 0.2},
        {"rope_embedding_base": 10000},
    ],
    ids=str,
)
def test_every_number_of_the_config_counts(definition, load, random_ids, changes):
    checkpoint = random_phi3small_checkpoint(tiny_phi3small_config(**(NARROW | changes)), seed=32)
    ids = random_ids(600, 384)
    assert_close(all_logits(load(checkpoint), ids), definition(checkpoint).logits(ids).numpy())


def test_the_pattern_of_blocks_is_felt(definition, random_ids):
    """What the tests above would not notice if the random weights hid it: another pattern gives other logits."""
    ids = random_ids(600, 384)
    logits = [
        definition(random_phi3small_checkpoint(tiny_phi3small_config(**(NARROW | changes)), seed=32))
        .logits(ids)
        .numpy()
        for changes in ({}, {"blocksparse_homo_head_pattern": True}, {"dense_attention_every_n_layers": 1})
    ]
    for other in logits[1:]:
        difference = np.abs(other - logits[0]).max(-1) / np.linalg.norm(logits[0], axis=-1)
        assert difference[:128].max() == 0.0
        assert np.median(difference[200:]) > 0.01


LONGROPE = {
    "type": "su",
    "short_factor": np.linspace(1.0, 1.3, 8).tolist(),
    "long_factor": np.linspace(1.0, 12.0, 8).tolist(),
    "original_max_position_embeddings": 96,
}


@pytest.mark.parametrize("mscales", [{}, {"short_mscale": 1.1, "long_mscale": 1.25}], ids=["formula", "given"])
@pytest.mark.parametrize("n", [95, 96, 97, 300])
def test_longrope_on_both_sides_of_the_original_length(definition, load, random_ids, mscales, n):
    config = tiny_phi3small_config(**NARROW, max_position_embeddings=1536, rope_scaling={**LONGROPE, **mscales})
    checkpoint, ids = random_phi3small_checkpoint(config, seed=33), random_ids(n, 384)
    assert_close(all_logits(load(checkpoint), ids), definition(checkpoint).logits(ids).numpy())


def test_generation_across_the_original_length(definition, load, random_ids):
    config = tiny_phi3small_config(**NARROW, max_position_embeddings=1536, rope_scaling=LONGROPE)
    checkpoint, ids = random_phi3small_checkpoint(config, seed=33), random_ids(90, 384)
    assert greedy_ids(load(checkpoint), ids, 16) == definition(checkpoint).greedy_ids(ids, 16)


def test_dummy_tokens_of_the_published_vocabulary_are_never_likely(definition, load, random_ids, pool, tmp_path):
    checkpoint = random_phi3small_checkpoint(tiny_phi3small_config(vocab_size=100352, num_hidden_layers=1), seed=34)
    ids = random_ids(5, 100352)
    model = load(checkpoint)
    got = all_logits(model, ids)
    assert_close(got, definition(checkpoint).logits(ids).numpy())
    assert np.flatnonzero(np.isneginf(got[0])).tolist() == [
        *(100256, 100258, 100259, 100260, 100264, 100265),
        *range(100267, 100352),
    ]


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("rope_scaling", [None, {**LONGROPE, "short_mscale": 1.1, "long_mscale": 1.25}])
def test_the_converted_file_gives_the_bits_of_the_folder(tmp_path, pool, load, random_ids, kind, rope_scaling):
    config = tiny_phi3small_config(**NARROW, max_position_embeddings=1536, rope_scaling=rope_scaling)
    checkpoint = random_phi3small_checkpoint(config, kind, seed=35)
    folder = write_phi3small_folder(tmp_path / "model", checkpoint)
    with load_checkpoint(folder) as opened:
        convert_checkpoint(opened, tmp_path / "tiny.gguf", file_type=FileType[kind])
    with load_gguf(tmp_path / "tiny.gguf") as file:
        matrices = [tensor for tensor in file.tensors.values() if len(tensor.shape) > 1]
        assert {tensor.type.name for tensor in matrices} == {kind}
    ids = random_ids(300, 384)
    model = load_model(tmp_path / "tiny.gguf", pool=pool)
    np.testing.assert_array_equal(all_logits(model, ids), all_logits(load(checkpoint), ids))


def test_an_output_matrix_that_equals_the_embedding_is_accepted(load, random_ids):
    checkpoint = random_phi3small_checkpoint(tiny_phi3small_config(), seed=36)
    with_output = Checkpoint(
        checkpoint.config, {**checkpoint.tensors, "lm_head.weight": checkpoint.tensors["model.embed_tokens.weight"]}
    )
    ids = random_ids(20, 384)
    np.testing.assert_array_equal(all_logits(load(with_output), ids), all_logits(load(checkpoint), ids))


@pytest.mark.parametrize("file_type", ["Q8_0", "Q4_K_M", "IQ4_NL"])
def test_quantised_weights_give_the_logits_of_their_values(definition, tmp_path, pool, random_ids, file_type):
    """The weights' values are exact; inputs of products are rounded to int8, which moves the logits by 1 to 5 %."""
    config = tiny_phi3small_config(**NARROW, hidden_size=256)
    folder = write_phi3small_folder(tmp_path / "model", random_phi3small_checkpoint(config, seed=37))
    with load_checkpoint(folder) as opened:
        path = convert_checkpoint(opened, tmp_path / "tiny.gguf", file_type=FileType[file_type], pool=pool)
        quantised = converted_checkpoint(opened, FileType[file_type], pool=pool).tensors
        values = {
            name: stored(ops.dequantize(t.data, t.type, t.shape).reshape(t.shape)) for name, t in quantised.items()
        }
    ids = random_ids(300, 384)
    got = all_logits(load_model(path, pool=pool), ids)
    expected = definition(Checkpoint(config, values)).logits(ids).numpy()
    difference = np.linalg.norm(got - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert np.median(difference) < 0.05
    unquantised = definition(random_phi3small_checkpoint(config, seed=37)).logits(ids).numpy()
    assert np.linalg.norm(got - expected) < np.linalg.norm(got - unquantised)
