"""The same GGUF file in llama.cpp, where llama.cpp computes the model: short contexts, no window in sight.

llama.cpp rounds the inputs of products with F16 weights to float16, and those of products with quantised weights to
int8 with scales of its own. What such a rounding does to the logits is computed with the float64 definition, as in
test_phi3_quantised. Greedy ids must agree wherever the two best logits are further apart than the error can bridge.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import (
    MEMBERS,
    all_logits,
    greedy_ids,
    int8_activations,
    random_checkpoint,
    reference_logits,
    write_gguf,
)

import phlite
from phlite.models.registry import load_model

N_CTX = 256


def float16_activations(x: np.ndarray, name: str) -> np.ndarray:
    return x.astype(np.float16).astype(np.float64)


def relative_norm(difference: np.ndarray, of: np.ndarray) -> float:
    return float(np.linalg.norm(difference) / np.linalg.norm(of))


@pytest.fixture
def both(tmp_path, llama_cpp_model, pool) -> Callable[..., tuple[Any, Any]]:
    """Open one file with both."""

    def build(checkpoint, **file):
        path = write_gguf(tmp_path / "tiny.gguf", checkpoint, **file)
        return load_model(path, pool=pool), llama_cpp_model(path, N_CTX)

    return build


def llama_cpp_logits(oracle: Any, ids: list[int]) -> np.ndarray:
    oracle.reset()
    oracle.eval(ids)
    return np.array(oracle.scores[: len(ids)])


def llama_cpp_greedy_ids(oracle: Any, prompt: list[int], n_new: int) -> list[int]:
    oracle.reset()
    oracle.eval(prompt)
    ids: list[int] = []
    for _ in range(n_new):
        ids.append(int(np.argmax(oracle.scores[oracle.n_tokens - 1])))
        oracle.eval(ids[-1:])
    return ids


def assert_decided_ids_are_equal(got: np.ndarray, expected: np.ndarray, *, least_share: float) -> None:
    """Compare the best ids of the rows where the best two logits are further apart than the rounding can bridge.

    A difference of two logits is off by sqrt(2) times the error of one, which is spread evenly over the row.
    """
    spread = np.sqrt(2) * (got - expected).std(axis=-1)
    best_two = np.sort(expected, axis=-1)[:, -2:]
    decided = best_two[:, 1] - best_two[:, 0] > 5 * spread
    assert decided.mean() > least_share
    np.testing.assert_array_equal(got.argmax(axis=-1)[decided], expected.argmax(axis=-1)[decided])


@pytest.mark.parametrize("member", MEMBERS)
def test_float32_logits_and_greedy_ids_equal_llama_cpp(both, random_ids, member: str):
    model, oracle = both(random_checkpoint(MEMBERS[member], seed=51))
    ids = random_ids(64, 512)
    got, expected = all_logits(model, ids), llama_cpp_logits(oracle, ids)
    assert (np.abs(got - expected).max(axis=-1) / np.linalg.norm(expected, axis=-1)).max() < 1e-4
    assert greedy_ids(model, ids[:12], 64) == llama_cpp_greedy_ids(oracle, ids[:12], 64)
    oracle.close()


def test_old_llama_file_equals_llama_cpp(both, random_ids):
    config = {**MEMBERS["mini-4k"], "num_key_value_heads": 2}
    checkpoint = random_checkpoint(config, split_qkv=True, split_gate_up=True, seed=52)
    model, oracle = both(checkpoint, architecture="llama")
    ids = random_ids(64, 512)
    got, expected = all_logits(model, ids), llama_cpp_logits(oracle, ids)
    assert (np.abs(got - expected).max(axis=-1) / np.linalg.norm(expected, axis=-1)).max() < 1e-4
    assert greedy_ids(model, ids[:12], 64) == llama_cpp_greedy_ids(oracle, ids[:12], 64)
    oracle.close()


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_K", "Q5_K", "Q6_K"])
def test_rounded_logits_and_decided_greedy_ids_equal_llama_cpp(both, random_ids, kind: str):
    config = {**MEMBERS["phi-4-mini"], "hidden_size": 768, "num_attention_heads": 6, "num_key_value_heads": 2}
    checkpoint = random_checkpoint(config, kind, seed=53)
    model, oracle = both(checkpoint)
    ids = random_ids(64, 512)
    got, expected = all_logits(model, ids), llama_cpp_logits(oracle, ids)

    rounding = float16_activations if kind == "F16" else int8_activations(checkpoint.tensors)
    exact = reference_logits(config, checkpoint.weights, ids)
    error = relative_norm(reference_logits(config, checkpoint.weights, ids, round_activations=rounding) - exact, exact)
    assert relative_norm(got - expected, expected) < 2 * error  # independent rounding of both gives sqrt(2)

    assert_decided_ids_are_equal(got, expected, least_share=0.25)
    oracle.close()


@pytest.mark.parametrize("topic", ["ice hockey", "the sea", "an old cat"])
def test_decided_greedy_ids_of_the_embedded_model_equal_llama_cpp(llama_cpp_model, pool, topic: str):
    """Trained weights decide most tokens by far more than the rounding of int8 inputs."""
    path = Path(phlite.__file__).parent / "assets" / "haiku.gguf"
    if not path.exists():
        pytest.skip(f"{path} is missing: train it with tools/haiku")
    oracle = llama_cpp_model(path, N_CTX)
    prompt = f"<|user|>\nWrite a haiku about {topic}<|end|>\n<|assistant|>\n"
    ids = oracle.tokenize(prompt.encode(), add_bos=False, special=True)
    ids += llama_cpp_greedy_ids(oracle, ids, 64)
    got, expected = all_logits(load_model(path, pool=pool), ids), llama_cpp_logits(oracle, ids)
    assert_decided_ids_are_equal(got, expected, least_share=0.8)
    oracle.close()
