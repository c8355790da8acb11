"""LongRoPE against transformers at the real lengths: one list for the whole sequence, chosen by its length.

Sequences of up to 4096 tokens use the short list, longer ones the long list at every position, so a generation that
crosses the length is encoded again. Angles of some thousand radians are float32 here and there, and one rounding of
2^-24 of 4096 radians is 2^-12, shared by few frequencies: the logits agree as well as at short lengths.
"""

from collections.abc import Callable

import numpy as np
import pytest
from tiny_models import MEMBERS, all_logits, greedy_ids, random_checkpoint, sequence_batch

from phlite.engine import Engine, SamplingParams
from phlite.models.base import CausalLM

LENGTHS = [4096, 4097]


def last_logits(model: CausalLM, ids: list[int], n_last: int) -> np.ndarray:
    """float32[n_last, V] after the last tokens, the prompt fed in chunks of 1024."""
    cache = model.build_kv_cache(-(-len(ids) // 64), "f32")
    parts = []
    for start in range(0, len(ids), 1024):
        part = ids[start : start + 1024]
        rows = [row for row in range(len(part)) if start + row >= len(ids) - n_last]
        batch = sequence_batch(part, start=start, seq_len=len(ids), logit_rows=rows)
        parts.append(model.forward(batch, cache))
    return np.concatenate(parts)


@pytest.fixture(scope="module", params=["mini-128k", "phi-4-mini"])
def pair(request: pytest.FixtureRequest, transformers_model, phlite_model):
    checkpoint = random_checkpoint(MEMBERS[request.param], seed=31)
    return transformers_model(checkpoint), phlite_model(checkpoint)


@pytest.fixture(scope="module")
def small_pair(transformers_model, phlite_model):
    """The switch after 48 tokens, and a window that is shorter."""
    config = {
        **MEMBERS["mini-128k"],
        "max_position_embeddings": 1536,
        "original_max_position_embeddings": 48,
        "sliding_window": 40,
    }
    checkpoint = random_checkpoint(config, seed=32)
    return transformers_model(checkpoint), phlite_model(checkpoint)


@pytest.mark.parametrize("n_tokens", LENGTHS)
def test_logits_around_4096_tokens_equal_transformers(pair, random_ids: Callable[..., list[int]], n_tokens: int):
    oracle, model = pair
    ids = random_ids(5000, 512)[:n_tokens]
    got, expected = last_logits(model, ids, 4), oracle.logits(ids, last=4)
    difference = np.abs(got - expected).max(axis=-1) / np.linalg.norm(expected, axis=-1)
    assert difference.max() < 1e-4


def test_greedy_ids_across_4096_tokens_equal_transformers(pair, random_ids):
    oracle, model = pair
    prompt = random_ids(5000, 512)[:4090]
    assert greedy_ids(model, prompt, 12) == oracle.greedy_ids(prompt, 12)


@pytest.mark.parametrize("n_tokens", [47, 48, 49, 130])
def test_every_position_around_a_small_original_length_equals_transformers(small_pair, random_ids, n_tokens: int):
    oracle, model = small_pair
    ids = random_ids(n_tokens, 512)
    got, expected = all_logits(model, ids), oracle.logits(ids)
    difference = np.abs(got - expected).max(axis=-1) / np.linalg.norm(expected, axis=-1)
    assert difference.max() < 1e-4


@pytest.mark.parametrize("n_prompt", [20, 47, 48, 49])
def test_64_greedy_ids_across_a_small_original_length_equal_transformers(small_pair, random_ids, n_prompt: int):
    oracle, model = small_pair
    prompt = random_ids(n_prompt, 512)
    assert greedy_ids(model, prompt, 64) == oracle.greedy_ids(prompt, 64)


@pytest.mark.parametrize("max_batch_tokens", [17, 512])
def test_engine_with_many_sequences_across_the_length_equals_transformers(
    small_pair, random_ids, max_batch_tokens: int
):
    """Each sequence crosses at its own time, beside others that have or have not, whatever the chunks."""
    oracle, model = small_pair
    prompts = [random_ids(n, 512) for n in (5, 30, 44, 48, 49, 90)]
    engine = Engine(model, n_ctx=192, cache_tokens=2048, kv_type="f32", max_batch_tokens=max_batch_tokens)
    sequences = [engine.add(prompt, SamplingParams.greedy(max_tokens=30)) for prompt in prompts]
    ids: dict[int, list[int]] = {id(sequence): [] for sequence in sequences}
    while engine.has_unfinished:
        for output in engine.step():
            ids[id(output.sequence)].append(output.token_id)
    for prompt, sequence in zip(prompts, sequences, strict=True):
        assert ids[id(sequence)] == oracle.greedy_ids(prompt, 30)
