"""The same ids and bit-identical logits for any number of threads, batch neighbours and prefill chunks, on every ISA.

The model is small and random, but has everything that could break this: grouped heads, a sliding window and a LongRoPE
switch that the sequences cross while they grow, and weights of several formats.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from tiny_models import greedy_ids, random_checkpoint, tiny_config, write_gguf

from phlite import ops
from phlite.engine import Engine, SamplingParams
from phlite.models.registry import load_model

ROPE_SCALING = {
    "type": "longrope",
    "short_factor": [1 + 0.05 * i for i in range(32)],
    "long_factor": [1 + 1.5 * i for i in range(32)],
}
CONFIG = tiny_config(
    hidden_size=256,
    intermediate_size=512,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=307,
    sliding_window=100,
    original_max_position_embeddings=80,
    rope_scaling=ROPE_SCALING,
)
N_NEW = 24
# Lengths around the blocks of the cache, the window and the LongRoPE switch; the third crosses the switch.
LENGTHS = [1, 63, 70, 80, 81, 140]
MIXTURES = {
    "F32": "F32",
    "Q4_K_M": lambda name: "Q6_K" if "down_proj" in name or "lm_head" in name else "Q4_K",
    "Q8_0": "Q8_0",
    "IQ4_NL": "IQ4_NL",
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """One file for each mixture of formats."""
    folder = tmp_path_factory.mktemp("models")
    return {
        name: write_gguf(folder / f"{name}.gguf", random_checkpoint(CONFIG, kind)) for name, kind in MIXTURES.items()
    }


@pytest.fixture(params=ops.supported_isas())
def isa(request):
    before = ops.isa_name()
    ops.select_isa(request.param)
    yield request.param
    ops.select_isa(before)


def prompt(i):
    return np.random.default_rng(i).integers(0, CONFIG["vocab_size"], LENGTHS[i]).tolist()


def generate(path, *, which, threads=1, max_batch_tokens=512, kv_type="f16"):
    """Run the prompts `which` together; return {prompt: (ids, float32[N_NEW, V] logits)}."""
    engine = Engine(
        load_model(path, pool=ops.ThreadPool(threads)),
        n_ctx=512,
        cache_tokens=2048,
        kv_type=kv_type,
        max_batch_tokens=max_batch_tokens,
    )
    sequences, seen = {}, {i: [] for i in which}
    for i in which:

        def record(ids, logits, seen=seen[i]):
            seen.append(logits.copy())
            return logits

        params = SamplingParams(
            seed=i, temperature=0.9, top_k=200, top_p=0.95, max_tokens=N_NEW, logits_function=record, repeat_penalty=1
        )
        sequences[i] = engine.add(prompt(i), params)
    while engine.has_unfinished:
        engine.step()
    assert all(sequence.error is None for sequence in sequences.values())
    return {i: (sequence.output_ids, np.stack(seen[i])) for i, sequence in sequences.items()}


def assert_identical(got, expected):
    for i, (ids, logits) in got.items():
        assert ids == expected[i][0], f"prompt {i}: ids"
        different = np.flatnonzero((logits.view(np.int32) != expected[i][1].view(np.int32)).any(axis=1))
        assert not different.size, f"prompt {i}: logits of token {different[0]}"


ALL = range(len(LENGTHS))


@pytest.fixture(scope="module")
def all_together(paths):
    """A function (ISA, mixture) -> all prompts in one batch on one thread, which the rest is compared with."""

    @functools.cache
    def run(isa, mixture):
        assert ops.isa_name() == isa
        return generate(paths[mixture], which=ALL)

    return run


@pytest.mark.parametrize("mixture", MIXTURES)
def test_neighbours_do_not_change_a_bit(paths, all_together, isa, mixture):
    for i in (0, 2, 5):
        assert_identical(generate(paths[mixture], which=[i]), all_together(isa, mixture))


@pytest.mark.parametrize("mixture", ["Q4_K_M", "F32"])
@pytest.mark.parametrize("threads", [2, 3, 7])
def test_the_number_of_threads_does_not_change_a_bit(paths, all_together, isa, mixture, threads):
    assert_identical(generate(paths[mixture], which=[2, 5], threads=threads), all_together(isa, mixture))


@pytest.mark.parametrize("mixture", ["Q4_K_M", "F32"])
@pytest.mark.parametrize("max_batch_tokens", [1, 7, 64, 100])
def test_the_prefill_chunk_does_not_change_a_bit(paths, all_together, isa, mixture, max_batch_tokens):
    chunked = generate(paths[mixture], which=[2, 5], max_batch_tokens=max_batch_tokens)
    assert_identical(chunked, all_together(isa, mixture))


@pytest.mark.parametrize("kv_type", ["q8_0", "f32"])
def test_every_type_of_cache_is_deterministic(paths, isa, kv_type):
    def run(**options):
        return generate(paths["Q4_K_M"], kv_type=kv_type, **options)

    together = run(which=[1, 2, 3])
    assert_identical(run(which=[2], max_batch_tokens=9), together)
    assert_identical(run(which=[3], threads=3), together)


def test_the_engine_equals_the_bare_model_across_the_rope_switch(paths):
    model = load_model(paths["Q4_K_M"], pool=ops.ThreadPool(2))
    engine = Engine(model, n_ctx=512, max_batch_tokens=48)
    sequences = engine.generate([prompt(2), prompt(1)], SamplingParams.greedy(max_tokens=N_NEW))
    assert model.rope_regime(LENGTHS[2]) != model.rope_regime(LENGTHS[2] + N_NEW)
    assert [one.output_ids for one in sequences] == [greedy_ids(model, prompt(i), N_NEW, dtype="f16") for i in (2, 1)]
