"""Prompt lookup on a real model: the same ids with it as without, for greedy and sampled answers, and fewer passes."""

import pytest

import phlite

POEM = "Old ice on the lake\nthe puck slides over the snow\nwinter holds its breath\n"


@pytest.fixture(scope="module")
def llm():
    return phlite.load("haiku", n_ctx=512, threads=2)


def generate(llm, ids, **fields):
    """The ids and the number of forward passes."""
    passes, forward = [], llm.engine.model.forward

    def counted(batch, cache):
        passes.append(len(batch.logit_rows))
        return forward(batch, cache)

    llm.engine.model.forward = counted
    try:
        sequences = llm.engine.generate(ids, phlite.SamplingParams(ignore_eos=True, max_tokens=60, **fields))
    finally:
        del llm.engine.model.forward
    return [(one.output_ids, one.logprobs) for one in sequences], len(passes)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.0, "repeat_penalty": 1.0},
        {"temperature": 0.2, "repeat_penalty": 1.0, "logprobs": 1},
        {"temperature": 0.7, "repeat_penalty": 1.1, "top_p": 0.9},
        {"temperature": 1.0, "min_p": 0.05, "repeat_penalty": 1.0, "sampler_order": "llama.cpp"},
    ],
)
def test_answers_over_many_seeds_are_the_same_to_the_bit(llm, fields):
    prompts = [llm.chat_ids(f"{POEM}{POEM}Write a haiku about {topic}") for topic in ("ice", "hockey", "rain")]
    n_passes = {0: 0, 15: 0}
    for seed in range(8):
        results = []
        for n_guessed in n_passes:
            result, n = generate(llm, prompts, seed=seed, prompt_lookup_num_tokens=n_guessed, **fields)
            results.append(result)
            n_passes[n_guessed] += n
        assert results[0] == results[1], f"seed {seed}"
    assert n_passes[15] < n_passes[0], "no guess was ever right, so the test shows nothing"


def test_a_constraint_holds_at_every_guessed_position(llm):
    pytest.importorskip("llguidance", reason="constraints need llguidance")
    constraint = phlite.Constraint.regex(r"(ice|snow|puck) (falls|slides)( (ice|snow|puck) (falls|slides)){12}")
    fields = {"temperature": 0.8, "max_tokens": 100, "constraint": constraint}
    for seed in range(6):
        texts = [
            llm.chat(f"{POEM}Write on", phlite.SamplingParams(**fields, seed=seed, prompt_lookup_num_tokens=n))
            for n in (0, 15)
        ]
        assert texts[0].token_ids == texts[1].token_ids
        assert texts[1].constraint_satisfied
