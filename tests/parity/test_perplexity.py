"""Perplexity as transformers' logits give it, and llama.cpp's on the same file.

The windows are cut here once more, by the rule of llama.cpp's tool: side by side, and what the positions n_ctx / 2 to
n_ctx - 2 predict is scored.
"""

import math

import numpy as np
import pytest
from tiny_models import MEMBERS, int8_activations, random_checkpoint, reference_logits, write_gguf

from phlite.llm import LLM

N_CTX = 64
MAX_RELATIVE_DIFFERENCE = 1e-3


def load_llm(tmp_path, checkpoint) -> LLM:
    return LLM.load(str(write_gguf(tmp_path / "tiny.gguf", checkpoint)), threads=1, kv_type="f32")


def half_windows(ids: list[int]) -> list[list[int]]:
    return [ids[start : start + N_CTX] for start in range(0, len(ids) - N_CTX + 1, N_CTX)]


def nll_of_second_half(logits: np.ndarray, window: list[int]) -> np.ndarray:
    """Minus the log-probability of each token behind position n_ctx / 2, from float[T, V] logits."""
    x = logits[N_CTX // 2 : N_CTX - 1].astype(np.float64)
    log_sum = np.log(np.exp(x - x.max(axis=-1, keepdims=True)).sum(axis=-1)) + x.max(axis=-1)
    return log_sum - x[np.arange(len(x)), window[N_CTX // 2 + 1 :]]


@pytest.mark.parametrize("member", MEMBERS)
def test_perplexity_equals_transformers(transformers_model, tmp_path, random_ids, member):
    checkpoint = random_checkpoint(MEMBERS[member], seed=71)
    oracle = transformers_model(checkpoint)
    ids = random_ids(5 * N_CTX + 20, 512)
    nll = np.concatenate([nll_of_second_half(oracle.logits(window), window) for window in half_windows(ids)])
    result = load_llm(tmp_path, checkpoint).perplexity(ids, n_ctx=N_CTX)
    assert result.n_tokens == len(nll) == 5 * (N_CTX // 2 - 1)
    assert result.value == pytest.approx(math.exp(nll.mean()), rel=MAX_RELATIVE_DIFFERENCE)
    # The definition of a mean's standard error, with the sample's spread, carried over to exp of the mean.
    expected_error = math.exp(nll.mean()) * nll.std() / math.sqrt(len(nll) - 1)
    assert result.standard_error == pytest.approx(expected_error, rel=MAX_RELATIVE_DIFFERENCE)


def test_strided_perplexity_equals_transformers(transformers_model, tmp_path, random_ids):
    """Windows every 20 tokens, the last 20 of each scored with all that the window holds before them."""
    import torch

    checkpoint = random_checkpoint(MEMBERS["phi-4-mini"], seed=72)
    oracle = transformers_model(checkpoint)
    ids, stride = random_ids(3 * N_CTX, 512), 20
    losses = []
    for start in range(0, len(ids) - N_CTX, stride):
        window = torch.tensor(ids[start : start + N_CTX])
        logits = torch.from_numpy(oracle.logits(window.tolist()))
        losses.append(torch.nn.functional.cross_entropy(logits[-stride - 1 : -1], window[-stride:]).item())
    result = load_llm(tmp_path, checkpoint).perplexity(ids, n_ctx=N_CTX, stride=stride)
    assert (result.n_windows, result.n_tokens) == (len(losses), len(losses) * stride)
    assert result.value == pytest.approx(math.exp(np.mean(losses)), rel=MAX_RELATIVE_DIFFERENCE)


def test_float32_perplexity_equals_llama_cpp(llama_cpp_model, tmp_path, random_ids):
    checkpoint = random_checkpoint(MEMBERS["mini-4k"], seed=73)
    ids = random_ids(4 * N_CTX, 512)
    result = load_llm(tmp_path, checkpoint).perplexity(ids, n_ctx=N_CTX)
    nll = llama_cpp_nll(llama_cpp_model(tmp_path / "tiny.gguf", N_CTX), ids)
    assert result.value == pytest.approx(math.exp(nll.mean()), rel=MAX_RELATIVE_DIFFERENCE)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
def test_perplexity_of_a_quantised_file_equals_llama_cpp_within_the_rounding(
    llama_cpp_model, tmp_path, random_ids, kind
):
    """Both round activations to int8, each its own way: the means differ by less than one rounding does per token."""
    config = {**MEMBERS["phi-4-mini"], "hidden_size": 768, "num_attention_heads": 6, "num_key_value_heads": 2}
    checkpoint = random_checkpoint(config, kind, seed=74)
    ids = random_ids(2 * N_CTX, 512)
    result = load_llm(tmp_path, checkpoint).perplexity(ids, n_ctx=N_CTX)
    nll = llama_cpp_nll(llama_cpp_model(tmp_path / "tiny.gguf", N_CTX), ids)

    rounding = int8_activations(checkpoint.tensors)
    exact, rounded = (
        np.concatenate(
            [
                nll_of_second_half(reference_logits(config, checkpoint.weights, window, **options), window)
                for window in half_windows(ids)
            ]
        )
        for options in ({}, {"round_activations": rounding})
    )
    assert abs(result.mean_nll - nll.mean()) < np.sqrt(np.mean((rounded - exact) ** 2))


def llama_cpp_nll(oracle, ids: list[int]) -> np.ndarray:
    parts = []
    for window in half_windows(ids):
        oracle.reset()
        oracle.eval(window)
        parts.append(nll_of_second_half(np.array(oracle.scores[:N_CTX]), window))
    oracle.close()
    return np.concatenate(parts)
