"""The order "llama.cpp" and its samplers against llama.cpp's own chain, on fixed logits."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import numpy as np
import pytest

import phlite
from phlite.engine import SamplingParams
from phlite.engine.sampling import Choice, build_steps, choose, surviving
from phlite.engine.sampling.candidates import Candidates
from phlite.engine.sampling.mirostat import next_mu

HAIKU = Path(phlite.__file__).parent / "assets" / "haiku.gguf"
N_VOCAB = 400
NO_IDS = np.empty(0, np.int32)


@pytest.fixture(scope="module")
def llama(quiet_llama_cpp):
    """llama-cpp-python's low-level functions."""
    return quiet_llama_cpp


@pytest.fixture(scope="module")
def vocab(llama):
    """The vocabulary of the embedded model, as llama.cpp reads it; DRY spells its breakers with it."""
    options = llama.llama_model_default_params()  # with vocab_only DRY would do nothing
    model = llama.llama_model_load_from_file(str(HAIKU).encode(), options)
    yield llama.llama_model_get_vocab(model)
    llama.llama_model_free(model)


@pytest.fixture
def apply(llama):
    """A function (samplers, logits, ids accepted before) -> (probabilities, id drawn or None) after the chain."""
    chains = []

    def run(samplers, logits, ids=NO_IDS, chain=None):
        if chain is None:
            chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
            chains.append(chain)
            for sampler in samplers:
                llama.llama_sampler_chain_add(chain, sampler)
            for token_id in ids.tolist():
                llama.llama_sampler_accept(chain, token_id)
        data = (llama.llama_token_data * logits.size)()
        for i, logit in enumerate(logits.tolist()):
            data[i].id, data[i].logit = i, logit
        array = llama.llama_token_data_array(data=data, size=logits.size, selected=-1, sorted=False)
        llama.llama_sampler_apply(chain, ctypes.byref(array))
        left = [(array.data[i].id, array.data[i].logit) for i in range(array.size)]
        values = np.full(logits.size, -np.inf)
        values[[i for i, _ in left]] = [logit for _, logit in left]
        weights = np.exp(values - values.max())
        drawn = array.data[array.selected].id if array.selected >= 0 else None
        return weights / weights.sum(), drawn

    yield run
    for chain in chains:
        llama.llama_sampler_free(chain)


def whole(candidates: Candidates, n: int = N_VOCAB) -> np.ndarray:
    """The probabilities of the tokens in play, zeros for the others."""
    result = np.zeros(n)
    result[slice(None) if candidates.ids is None else candidates.ids] = candidates.probabilities()
    return result


def random_logits(seed, scale=3.0, n=N_VOCAB):
    return (np.random.default_rng(seed).standard_normal(n) * scale).astype(np.float32)


def assert_same(got, expected):
    # Below this, weights of single precision are nothing, and llama.cpp's logits are still numbers.
    assert np.flatnonzero(got > 1e-30).tolist() == np.flatnonzero(expected > 1e-30).tolist()
    assert np.abs(got - expected).max() < 2e-6


def samplers(llama, params: SamplingParams, seed=1):
    """The chain that llama.cpp's common_sampler_init builds for these parameters, in its default order, without DRY."""
    chain = [
        llama.llama_sampler_init_penalties(
            N_VOCAB,
            params.repeat_last_n,
            params.repeat_penalty,
            params.frequency_penalty,
            params.presence_penalty,
        )
    ]
    if params.top_n_sigma is not None:
        chain.append(llama.llama_sampler_init_top_n_sigma(params.top_n_sigma))
    return [
        *chain,
        llama.llama_sampler_init_top_k(params.top_k or 0),
        llama.llama_sampler_init_typical(params.typical_p or 1.0, 0),
        llama.llama_sampler_init_top_p(params.top_p or 1.0, 0),
        llama.llama_sampler_init_min_p(params.min_p or 0.0, 0),
        llama.llama_sampler_init_xtc(params.xtc_probability, params.xtc_threshold, 0, seed),
        llama.llama_sampler_init_temp_ext(params.temperature, params.dynatemp_range, params.dynatemp_exponent),
    ]


OFF = {"repeat_penalty": 1.0}
CASES = {
    "defaults of llama.cpp": {**OFF, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "temperature": 0.8},
    "top-k": {**OFF, "top_k": 7},
    "top-p": {**OFF, "top_p": 0.7},
    "min-p": {**OFF, "min_p": 0.2},
    "typical-p": {**OFF, "typical_p": 0.5},
    "typical-p after top-k": {**OFF, "top_k": 30, "typical_p": 0.8},
    "top-n-sigma": {**OFF, "top_n_sigma": 1.5},
    "XTC": {**OFF, "xtc_probability": 1.0, "xtc_threshold": 0.05},
    "XTC after min-p": {**OFF, "min_p": 0.02, "xtc_probability": 1.0, "xtc_threshold": 0.1},
    "dynamic temperature": {**OFF, "temperature": 0.9, "dynatemp_range": 0.5},
    "dynamic temperature, exponent": {**OFF, "temperature": 1.1, "dynatemp_range": 0.7, "dynatemp_exponent": 2.0},
    "repeat penalty": {"repeat_penalty": 1.3},
    "repeat penalty of all": {"repeat_penalty": 1.3, "repeat_last_n": 1000},
    "counts": {**OFF, "frequency_penalty": 0.4, "presence_penalty": 0.3, "repeat_last_n": 20},
    "no window": {"repeat_penalty": 1.3, "frequency_penalty": 0.4, "repeat_last_n": 0},
    "all": {
        "repeat_penalty": 1.1,
        "frequency_penalty": 0.2,
        "top_n_sigma": 2.0,
        "top_k": 60,
        "typical_p": 0.95,
        "top_p": 0.9,
        "min_p": 0.01,
        "xtc_probability": 1.0,
        "xtc_threshold": 0.1,
        "temperature": 0.7,
    },
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(5))
def test_the_distribution_equals_llama_cpps_chain(llama, apply, case, seed):
    params = SamplingParams(**CASES[case], sampler_order="llama.cpp")
    logits = random_logits(seed, scale=(0.5, 1.5, 3, 5, 8)[seed])
    ids = np.random.default_rng(seed).integers(0, 30, 100).astype(np.int32)
    expected, _ = apply(samplers(llama, params), logits, ids)
    assert_same(whole(surviving(logits, Choice(params, ids, 60, u=0.3), build_steps(params))), expected)


@pytest.mark.parametrize("order", [("temperature", "top_p", "top_k"), ("min_p", "temperature", "typical_p", "top_k")])
def test_an_order_of_ones_own_equals_a_chain_in_that_order(llama, apply, order):
    values = {"temperature": 0.6, "top_p": 0.8, "top_k": 12, "min_p": 0.01, "typical_p": 0.7}
    params = SamplingParams(**OFF, **{name: values[name] for name in order}, sampler_order=order)
    chain = {
        "temperature": lambda: llama.llama_sampler_init_temp(values["temperature"]),
        "top_p": lambda: llama.llama_sampler_init_top_p(values["top_p"], 0),
        "top_k": lambda: llama.llama_sampler_init_top_k(values["top_k"]),
        "min_p": lambda: llama.llama_sampler_init_min_p(values["min_p"], 0),
        "typical_p": lambda: llama.llama_sampler_init_typical(values["typical_p"], 0),
    }
    for seed in range(5):
        logits = random_logits(seed)
        expected, _ = apply([chain[name]() for name in order], logits)
        assert_same(whole(surviving(logits, Choice(params, NO_IDS, 0), build_steps(params))), expected)


def test_temperature_0_takes_the_largest_of_what_xtc_left(llama, apply):
    params = SamplingParams(**OFF, temperature=0, xtc_probability=1.0, xtc_threshold=0.1, sampler_order="llama.cpp")
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.05, 0.05], np.float32))
    chain = [llama.llama_sampler_init_xtc(1.0, 0.1, 0, 1), llama.llama_sampler_init_greedy()]
    _, drawn = apply(chain, logits)
    assert choose(logits, Choice(params, NO_IDS, 0), build_steps(params)) == drawn == 2


@pytest.mark.parametrize("last_n", [-1, 12])
@pytest.mark.parametrize("allowed_length", [1, 2, 4])
def test_dry_equals_llama_cpps(llama, vocab, apply, allowed_length, last_n):
    n_vocab = llama.llama_vocab_n_tokens(vocab)
    speller = phlite.load("haiku", n_ctx=64, threads=1).speller
    breakers = ["\n", ":", ","]
    params = speller.spelt(
        SamplingParams(
            **OFF,
            dry_multiplier=0.8,
            dry_base=1.75,
            dry_allowed_length=allowed_length,
            dry_last_n=last_n,
            dry_breakers=breakers,
            sampler_order="llama.cpp",
        )
    )
    n_penalised = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        some = [*rng.integers(300, 303, 3).tolist(), *(params.dry_breakers[:1] if seed % 3 == 0 else ())]
        ids = rng.choice(np.array(some, np.int32), 60).astype(np.int32)
        logits = random_logits(seed, n=n_vocab)
        texts = (ctypes.c_char_p * len(breakers))(*(text.encode() for text in breakers))
        n = 1000 if last_n < 0 else last_n  # llama.cpp has no number for all
        dry = llama.llama_sampler_init_dry(vocab, 0.8, 1.75, allowed_length, n, texts, len(breakers))
        expected, _ = apply([dry], logits, ids)
        got = surviving(logits, Choice(params, ids, 30), build_steps(params))
        n_penalised += np.count_nonzero(got.logits != logits)
        assert_same(whole(got, n_vocab), expected)
    assert n_penalised > 10


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("tau", [1.0, 3.0, 5.0])
def test_mirostat_equals_llama_cpps_over_many_tokens(llama, apply, version, tau):
    params = SamplingParams(**OFF, mirostat=version, mirostat_tau=tau, mirostat_eta=0.3)
    if version == 1:
        sampler = llama.llama_sampler_init_mirostat(N_VOCAB, 7, tau, 0.3, 100)
    else:
        sampler = llama.llama_sampler_init_mirostat_v2(7, tau, 0.3)
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    llama.llama_sampler_chain_add(chain, sampler)
    mu, sizes = 2 * tau, set()
    for seed in range(30):
        logits = random_logits(seed, scale=2.0)
        expected, drawn = apply([], logits, chain=chain)
        got = whole(surviving(logits, Choice(params, NO_IDS, 0, mu=mu), build_steps(params)))
        assert_same(got, expected)
        sizes.add(np.count_nonzero(got))
        # The generators differ, so phlite's bound follows llama.cpp's draws.
        mu = next_mu(params, mu, got[drawn])
    llama.llama_sampler_free(chain)
    assert len(sizes) > 3


def test_a_drawn_token_moves_mirostats_bound_by_its_surprise():
    params = SamplingParams(**OFF, mirostat=2, mirostat_tau=2.0, mirostat_eta=0.5)
    choice = Choice(params, NO_IDS, 0, u=0.9, mu=4.0)
    logits = np.log(np.array([0.5, 0.25, 0.2, 0.05], np.float32))
    # -log2 of 0.05 is above 4 bits, so the draw is among the first three; 0.9 of 0.95 falls on the third.
    assert choose(logits, choice, build_steps(params)) == 2
    assert choice.mu == pytest.approx(4.0 - 0.5 * (-math.log2(0.2 / 0.95) - 2.0))
