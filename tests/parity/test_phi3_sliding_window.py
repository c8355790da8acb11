"""The sliding window against transformers: a query sees itself and the window - 1 tokens before it."""

import numpy as np
import pytest
from tiny_models import MEMBERS, all_logits, greedy_ids, random_checkpoint, tiny_config


def largest_difference(got: np.ndarray, expected: np.ndarray) -> float:
    return float((np.abs(got - expected).max(axis=-1) / np.linalg.norm(expected, axis=-1)).max())


@pytest.fixture(scope="module", params=["mini-4k", "medium-4k"])
def pair(request: pytest.FixtureRequest, transformers_model, phlite_model):
    checkpoint = random_checkpoint(MEMBERS[request.param], seed=41)
    return transformers_model(checkpoint), phlite_model(checkpoint)


@pytest.mark.parametrize("n_tokens", [2046, 2047, 2048, 2049, 2200])
def test_logits_around_2047_tokens_equal_transformers(pair, random_ids, n_tokens: int):
    oracle, model = pair
    ids = random_ids(2200, 512)[:n_tokens]
    got, expected = all_logits(model, ids, chunk=512)[-8:], oracle.logits(ids, last=8)
    assert largest_difference(got, expected) < 1e-4


def test_greedy_ids_across_2047_tokens_equal_transformers(pair, random_ids):
    oracle, model = pair
    prompt = random_ids(2200, 512)[:2040]
    assert greedy_ids(model, prompt, 16) == oracle.greedy_ids(prompt, 16)


@pytest.mark.parametrize("window", [1, 2, 31, 64, 65])
def test_small_windows_equal_transformers_at_every_position(transformers_model, phlite_model, random_ids, window: int):
    checkpoint = random_checkpoint(tiny_config(num_key_value_heads=2, sliding_window=window), seed=42)
    ids = random_ids(200, 512)
    got, expected = all_logits(phlite_model(checkpoint), ids), transformers_model(checkpoint).logits(ids)
    assert largest_difference(got, expected) < 1e-4


def test_64_greedy_ids_with_a_small_window_equal_transformers(transformers_model, phlite_model, random_ids):
    checkpoint = random_checkpoint(tiny_config(num_key_value_heads=2, sliding_window=33), seed=43)
    prompt = random_ids(10, 512)
    assert greedy_ids(phlite_model(checkpoint), prompt, 64) == transformers_model(checkpoint).greedy_ids(prompt, 64)


def test_a_key_at_the_window_distance_is_invisible(phlite_model, random_ids):
    """One layer, so that a token reaches the last one through attention only once."""
    config = tiny_config(num_hidden_layers=1, sliding_window=2047)
    model = phlite_model(random_checkpoint(config, seed=44))
    ids = random_ids(2200, 512)[:2048]
    last = [
        all_logits(model, [first, second, *ids[2:]], chunk=1024)[-1]
        for first, second in ((ids[0], ids[1]), (ids[0] ^ 1, ids[1]), (ids[0], ids[1] ^ 1))
    ]
    np.testing.assert_array_equal(last[0], last[1])  # distance 2047
    assert np.abs(last[0] - last[2]).max() > 0  # distance 2046
