"""Float weights against transformers: logits within 1e-4 of their norm, the same greedy ids, for every member's shape.

The cache is float32 here, so nothing is rounded but float32 sums: a product of K columns is off by about
sqrt(K) 2^-24 of its terms' norm, and two layers of 400 columns stay below 1e-5 of the logits' norm.
"""

import numpy as np
import pytest
from tiny_models import MEMBERS, all_logits, greedy_ids, random_checkpoint

MAX_RELATIVE_DIFFERENCE = 1e-4


def relative_difference(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference of a row, relative to the norm of its logits; the worst row."""
    return float((np.abs(got - expected).max(axis=-1) / np.linalg.norm(expected, axis=-1)).max())


@pytest.fixture(scope="module", params=MEMBERS)
def pair(request: pytest.FixtureRequest, transformers_model, phlite_model):
    """A member's config with random float32 weights: the oracle's model and ours."""
    checkpoint = random_checkpoint(MEMBERS[request.param], seed=11)
    return transformers_model(checkpoint), phlite_model(checkpoint)


def test_logits_of_every_position_equal_transformers(pair, random_ids):
    oracle, model = pair
    ids = random_ids(150, 512)
    assert relative_difference(all_logits(model, ids), oracle.logits(ids)) < MAX_RELATIVE_DIFFERENCE


def test_64_greedy_ids_equal_transformers(pair, random_ids):
    oracle, model = pair
    prompt = random_ids(12, 512)
    assert greedy_ids(model, prompt, 64) == oracle.greedy_ids(prompt, 64)


def test_64_greedy_ids_do_not_change_with_a_float16_cache(pair, random_ids):
    oracle, model = pair
    prompt = random_ids(9, 512)
    assert greedy_ids(model, prompt, 64, dtype="f16") == oracle.greedy_ids(prompt, 64)


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_half_precision_weights_equal_transformers_on_their_values(kind, transformers_model, phlite_model, random_ids):
    # Products with F16 and BF16 weights are float32 products: the weights' values are exact, activations not rounded.
    checkpoint = random_checkpoint(MEMBERS["phi-4-mini"], kind, seed=12)
    ids = random_ids(100, 512)
    difference = relative_difference(
        all_logits(phlite_model(checkpoint), ids), transformers_model(checkpoint).logits(ids)
    )
    assert difference < MAX_RELATIVE_DIFFERENCE


def test_old_llama_file_equals_transformers(transformers_model, phlite_model, random_ids):
    """The first conversions of Phi-3-mini: split, q and k rows permuted for rotation in neighbouring pairs."""
    config = {**MEMBERS["mini-4k"], "num_key_value_heads": 2}
    split = random_checkpoint(config, split_qkv=True, split_gate_up=True, seed=13)
    model, oracle = phlite_model(split, architecture="llama"), transformers_model(split.fused())
    ids = random_ids(100, 512)
    assert relative_difference(all_logits(model, ids), oracle.logits(ids)) < MAX_RELATIVE_DIFFERENCE
    assert greedy_ids(model, ids[:12], 64) == oracle.greedy_ids(ids[:12], 64)


def test_full_vocabulary_of_32064_rows_equals_transformers(transformers_model, phlite_model, random_ids):
    checkpoint = random_checkpoint({**MEMBERS["mini-4k"], "vocab_size": 32064}, seed=14)
    ids = random_ids(30, 32064)
    got, expected = all_logits(phlite_model(checkpoint), ids), transformers_model(checkpoint).logits(ids)
    assert relative_difference(got, expected) < MAX_RELATIVE_DIFFERENCE
