"""The order "transformers" against the processors that transformers' generate() builds, on fixed logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from phlite.engine import SamplingParams
from phlite.engine.sampling import Choice, build_steps, surviving

STOP_IDS = (2, 5)


@pytest.fixture(scope="module")
def processors():
    """A function (generation options, prompt length) -> the processors of generate(), in its order."""
    torch = pytest.importorskip("torch", reason="the oracle needs torch: pip install 'phlite[parity]'")
    transformers = pytest.importorskip("transformers", reason="the oracle needs transformers")
    config = transformers.Phi3Config(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    model = transformers.Phi3ForCausalLM(config)

    def build(options: dict[str, Any], n_prompt: int):
        settings = transformers.GenerationConfig(eos_token_id=list(STOP_IDS), pad_token_id=0, **options)
        model._prepare_special_tokens(settings, kwargs_has_attention_mask=True, device="cpu")
        return model._get_logits_processor(settings, input_ids_seq_length=n_prompt, device="cpu", model_kwargs={})

    def run(options: dict[str, Any], ids: np.ndarray, n_prompt: int, logits: np.ndarray) -> np.ndarray:
        processed = build(options, n_prompt)(torch.tensor(ids[None].astype(np.int64)), torch.tensor(logits[None]))
        return torch.softmax(processed[0].double(), -1).numpy()

    return run


def probabilities(params: SamplingParams, ids: np.ndarray, n_prompt: int, logits: np.ndarray) -> np.ndarray:
    """The distribution that phlite draws from, over the whole vocabulary."""
    choice = Choice(params, ids, n_prompt, stop_ids=frozenset(STOP_IDS))
    candidates = surviving(logits, choice, build_steps(params))
    result = np.zeros(logits.size)
    result[slice(None) if candidates.ids is None else candidates.ids] = candidates.probabilities()
    return result


BAD_WORDS = [[7], [11, 12], [3, 4, 9]]
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # Options of SamplingParams, and of GenerationConfig where they differ.
    "nothing": ({}, {}),
    "temperature": ({"temperature": 0.6}, {}),
    "repeat": ({"repeat_penalty": 1.7}, {"repetition_penalty": 1.7}),
    "top-k": ({"top_k": 20}, {}),
    "top-p": ({"top_p": 0.8}, {}),
    "min-p": ({"min_p": 0.1}, {}),
    "typical-p": ({"typical_p": 0.6}, {}),
    "n-grams": ({"no_repeat_ngram_size": 3}, {}),
    "single tokens once": ({"no_repeat_ngram_size": 1}, {}),
    "bad words": ({"bad_words": BAD_WORDS}, {"bad_words_ids": BAD_WORDS}),
    "suppressed": ({"suppress_token_ids": [1, 8]}, {"suppress_tokens": [1, 8]}),
    "at least 30 new": ({"min_tokens": 30}, {"min_new_tokens": 30}),
    "at least 10 new, reached": ({"min_tokens": 10}, {"min_new_tokens": 10}),
    "at least 60 of all": ({"min_length": 60}, {}),
    "bias": ({"logit_bias": {4: 3.0, 6: -2.0}}, {"sequence_bias": {(4,): 3.0, (6,): -2.0}}),
    "all": (
        {
            "temperature": 1.4,
            "repeat_penalty": 1.2,
            "top_k": 100,
            "top_p": 0.9,
            "min_p": 0.01,
            "typical_p": 0.9,
            "no_repeat_ngram_size": 2,
            "bad_words": BAD_WORDS,
            "min_tokens": 30,
        },
        {"repetition_penalty": 1.2, "bad_words_ids": BAD_WORDS, "min_new_tokens": 30},
    ),
}
OURS_ONLY = {"repeat_penalty", "bad_words", "suppress_token_ids", "min_tokens", "logit_bias"}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(6))
def test_the_distribution_equals_transformers(processors, case, seed):
    ours, theirs = CASES[case]
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(300) * (1, 2, 5)[seed % 3]).astype(np.float32)
    if seed > 2:
        logits = np.round(logits * 2) / 2  # many ties
        if "top_p" in ours or "typical_p" in ours:
            # Of equal logits at the edge torch.sort keeps any; the rest has to differ.
            logits += rng.permutation(300).astype(np.float32) * np.float32(1e-3)
    ids = rng.integers(0, (15, 3)[seed % 2], 50).astype(np.int32)
    ids[-2:] = (3, 4) if seed % 2 else (8, 11)
    options = {name: value for name, value in ours.items() if name not in OURS_ONLY} | theirs
    options = {"do_sample": True, "top_k": 0, **options}
    params = SamplingParams(**{"repeat_penalty": 1.0, **ours}, sampler_order="transformers")
    got = probabilities(params, ids, 28, logits)
    expected = processors(options, ids, 28, logits)
    assert np.flatnonzero(got).tolist() == np.flatnonzero(expected).tolist()
    assert np.abs(got - expected).max() < 1e-6
