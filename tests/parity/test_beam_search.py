"""Beam search against transformers' generate() on tiny random models: the same ids, and scores within float32 sums."""

from __future__ import annotations

import pytest
from tiny_models import MEMBERS, random_checkpoint

from phlite.engine import Engine, SamplingParams

N_NEW = 24


@pytest.fixture(scope="module", params=["phi-4-mini"])
def pair(request: pytest.FixtureRequest, transformers_model, phlite_model):
    """The oracle's model and ours."""
    checkpoint = random_checkpoint(MEMBERS[request.param], seed=21)
    return transformers_model(checkpoint), phlite_model(checkpoint)


@pytest.fixture(scope="module")
def search(pair):
    """A function (prompt, eos ids, options under HF's names) -> [(ids, score)] of transformers, of phlite."""
    import torch

    oracle, model = pair

    def run(prompt, eos_ids, **options):
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            expected = oracle.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                eos_token_id=list(eos_ids) or None,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_scores=True,
                **{"max_new_tokens": N_NEW, **options},
            )
        theirs = []
        for row, score in zip(expected.sequences[:, len(prompt) :].tolist(), expected.sequences_scores, strict=True):
            end = next((i + 1 for i, token_id in enumerate(row) if token_id in eos_ids), len(row))
            theirs.append((row[:end], float(score)))
        renamed = {
            "repetition_penalty": "repeat_penalty",
            "max_new_tokens": "max_tokens",
            "min_new_tokens": "min_tokens",
        }
        params = SamplingParams(
            temperature=0.0,
            sampler_order="transformers",
            **{
                "repeat_penalty": 1.0,
                "max_tokens": N_NEW,
                **{renamed.get(name, name): value for name, value in options.items()},
            },
        )
        engine = Engine(model, n_ctx=512, cache_tokens=4096, kv_type="f32", eos_ids=eos_ids)
        (sequence,) = engine.generate([prompt], params)
        assert engine.scheduler.blocks.n_free == engine.scheduler.blocks.n_blocks
        assert sequence.output_ids == list(sequence.hypotheses[0].token_ids)
        return theirs, [(list(one.token_ids), one.score) for one in sequence.hypotheses]

    return run


def assert_same(results):
    theirs, ours = results
    assert [ids for ids, _ in ours] == [ids for ids, _ in theirs]
    assert [score for _, score in ours] == pytest.approx([score for _, score in theirs], abs=2e-4)


def some_eos(pair, prompt, n):
    """Ids that the search meets soon: the first n different ones of the greedy continuation after the third."""
    return tuple(dict.fromkeys(pair[0].greedy_ids(prompt, 12)[3:]))[:n]


# Every two values of the three options meet once or more.
OPTIONS = [
    *((2, -0.5, True), (2, 1.0, False), (2, 2.0, "never"), (3, -0.5, "never"), (3, 0.0, False), (3, 1.0, True)),
    *((4, 0.0, "never"), (4, 1.0, "never"), (4, 2.0, True), (5, -0.5, False), (5, 0.0, True), (5, 2.0, False)),
]


@pytest.mark.parametrize(("num_beams", "length_penalty", "early_stopping"), OPTIONS)
def test_ids_equal_transformers(pair, search, random_ids, num_beams, length_penalty, early_stopping):
    prompt = random_ids(10 + num_beams, 500)
    options = {"num_beams": num_beams, "length_penalty": length_penalty, "early_stopping": early_stopping}
    assert_same(search(prompt, some_eos(pair, prompt, 2), num_return_sequences=num_beams, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 10},
        {"min_length": 20},
        {"repetition_penalty": 0.8, "no_repeat_ngram_size": 3, "early_stopping": True, "num_return_sequences": 3},
        {"max_new_tokens": 1, "num_return_sequences": 3},
    ],
)
def test_penalties_and_lengths_equal_transformers(pair, search, random_ids, options):
    prompt = random_ids(13, 500)
    assert_same(search(prompt, some_eos(pair, prompt, 1), num_beams=3, **options))


@pytest.mark.parametrize("n_prompt", [1, 63, 64])
def test_prompts_around_a_cache_block_equal_transformers(search, random_ids, n_prompt):
    assert_same(search(random_ids(n_prompt, 500), (), num_beams=4, num_return_sequences=4, max_new_tokens=66))


def test_many_stop_ids_equal_transformers(search, random_ids):
    assert_same(search(random_ids(9, 500), tuple(range(0, 500, 12)), num_beams=4, num_return_sequences=4))
