"""Prompt lookup changes the number of forward passes and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phlite.engine import Engine, SamplingParams
from phlite.engine.lookup import LENGTHS, LONGEST_PAUSE, MOST_ROWS, Guesser, find_guess


def guess_by_search(ids, n_most):
    """The definition, in plain Python."""
    for size in (4, 3, 2):
        for end in range(len(ids) - 1, size - 1, -1):
            if ids[end - size : end] == ids[len(ids) - size :]:
                period = ids[end:]
                return [period[i % len(period)] for i in range(n_most)]
    return []


@given(st.lists(st.sampled_from([0, 1, 2, 256, 65536, 1 << 24]), max_size=40), st.integers(1, 20))
def test_a_guess_is_what_followed_the_newest_of_the_longest_matches(ids, n_most):
    assert find_guess(np.array(ids, np.int32), n_most).tolist() == guess_by_search(ids, n_most)


def test_guesses_grow_when_right_shrink_when_wrong_and_pause_after_failures():
    guesser, ids = Guesser(most=100), np.array([1, 2, 3, 4, 5, 6, 7, 8] * 5, np.int32)
    sizes = []
    for _ in range(4):
        sizes.append(guesser.guess(ids, 100).size)
        guesser.note(sizes[-1], sizes[-1])
    assert sizes == list(LENGTHS[1:])
    guesser.note(15, 8)
    assert guesser.guess(ids, 100).size == 7
    guesser.note(7, 0)
    assert [guesser.guess(ids, 100).size for _ in range(2)] == [0, 1]
    for _ in range(20):
        guesser.n_pause = 0
        guesser.note(1, 0)
    assert [guesser.guess(ids, 100).size for _ in range(LONGEST_PAUSE + 1)] == [0] * LONGEST_PAUSE + [1]


def copying(ids, logits):
    """Prefer what followed the last id before; sometimes that is not enough."""
    earlier = np.flatnonzero(ids[:-1] == ids[-1])
    result = logits.copy()
    result[ids[earlier[-1:] + 1]] += 8.0
    return result


def run(model, prompts, n_guessed, engine_options=None, **fields):
    engine = Engine(model, **(engine_options or {}))
    defaults = {"seed": 5, "max_tokens": 60, "logits_function": copying, "repeat_penalty": 1.0}
    params = SamplingParams(**{**defaults, **fields}, prompt_lookup_num_tokens=n_guessed)
    sequences = engine.generate(prompts, params)
    assert engine.scheduler.blocks.n_free == engine.scheduler.blocks.n_blocks
    return [(s.output_ids, s.finish_reason, s.logprobs, s.state.mus) for s in sequences]


REQUESTS = {
    "greedy": {"temperature": 0.0},
    "sampled": {},
    "hot": {"temperature": 2.0},
    "penalties": {"repeat_penalty": 1.1, "frequency_penalty": 0.05, "presence_penalty": 0.1},
    "DRY and n-grams": {"dry_multiplier": 0.3, "dry_breakers": [3], "no_repeat_ngram_size": 6},
    "mirostat": {"mirostat": 2, "mirostat_tau": 2.0},
    "filters": {"top_k": 9, "top_p": 0.9, "xtc_probability": 0.3},
    "logprobs": {"logprobs": 3},
    "stop ids": {"stop_token_ids": [7, 8], "min_tokens": 5},
    "few tokens": {"max_tokens": 3},
}


@pytest.mark.parametrize("request_name", REQUESTS)
def test_ids_logprobs_and_state_are_the_same_with_and_without_guesses(fake_model, prompt, request_name):
    n_passes = [0, 0]
    for seed in range(12):
        fields = {"seed": seed, **REQUESTS[request_name]}
        prompts = [prompt(12 + seed, seed) * 2]
        results = []
        for i, n_guessed in enumerate((0, 15)):
            model = fake_model()
            results.append(run(model, prompts, n_guessed, **fields))
            n_passes[i] += len(model.batches)
        assert results[0] == results[1]
    assert n_passes[1] < n_passes[0] * (1.0 if request_name in ("few tokens", "hot") else 0.9)


@pytest.mark.parametrize("n_guessed", [1, 2, 5, 15, 100])
def test_the_rope_regime_changes_where_it_would_without_guesses(fake_model, prompt, n_guessed):
    def looping(ids, logits):
        return logits + 5 * (copying(ids, logits) - logits)

    expected = run(fake_model(short=70), [prompt(20) * 2], 0, logits_function=looping)
    model = fake_model(short=70)
    assert run(model, [prompt(20) * 2], n_guessed, logits_function=looping) == expected
    assert any(len(batch.logit_rows) > 1 for batch in model.batches)
    for batch in model.batches:
        regimes = {model.rope_regime(int(position) + 1) for position in batch.positions[batch.logit_rows]}
        assert regimes <= {model.rope_regime(int(batch.seq_lens[0]))}, (
            "logits of one regime from the table of the other"
        )


def test_neighbours_and_a_full_cache_change_nothing(fake_model, prompt):
    prompts = [prompt(25, i) * 2 for i in range(5)]
    options = {"n_ctx": 192, "cache_tokens": 192 + 64, "max_batch_tokens": 40}
    expected = [run(fake_model(), [one], 0, temperature=0.5)[0] for one in prompts]
    model = fake_model()
    assert run(model, prompts, 15, options, temperature=0.5) == expected
    assert any(len(batch.logit_rows) > len(batch.seq_lens) for batch in model.batches)


def test_guesses_never_fill_a_pass_nor_hold_a_prompt_back(fake_model, prompt):
    model = fake_model()
    engine = Engine(model, cache_tokens=4096, max_batch_tokens=20)
    params = SamplingParams(temperature=0, repeat_penalty=1, logits_function=copying, max_tokens=200)
    for i in range(6):
        engine.add(prompt(10, i) * 3, params)
    for _ in range(20):
        engine.step()
    late = engine.add(prompt(30, 9), params)
    n_steps = 0
    while not late.output_ids:
        engine.step()
        n_steps += 1
    assert n_steps < 10
    assert max(len(batch.logit_rows) for batch in model.batches) <= MOST_ROWS
    assert max(len(batch.token_ids) for batch in model.batches) <= 20


def test_no_guess_goes_beyond_the_context_or_the_last_token_wanted(fake_model, prompt):
    model = fake_model()
    ((ids, reason, *_),) = run(model, [prompt(30) * 2], 15, {"n_ctx": 97}, max_tokens=None)
    assert (len(ids), reason) == (37, "length")
    # The last token is never encoded.
    assert max(int(batch.positions.max()) for batch in model.batches) <= 95


def test_an_error_of_the_callers_function_at_a_guessed_position_ends_its_sequence_only(
    fake_model, prompt, assert_all_freed
):
    def fail_later(ids, logits):
        if len(ids) >= 50:
            raise ValueError("no more")
        return copying(ids, logits)

    engine = Engine(fake_model())
    fields = {"temperature": 0, "repeat_penalty": 1}
    bad = engine.add(prompt(20) * 2, SamplingParams(**fields, logits_function=fail_later))
    good = engine.add(prompt(10), SamplingParams.greedy(max_tokens=30))
    while engine.has_unfinished:
        engine.step()
    assert (bad.finish_reason, str(bad.error), len(bad.output_ids)) == ("aborted", "no more", 10)
    assert good.output_ids == fake_model().expected_greedy(prompt(10), 30)
    assert_all_freed(engine)


def test_every_token_is_put_out_once_and_in_order(fake_model, prompt):
    engine = Engine(fake_model())
    params = SamplingParams(temperature=0, repeat_penalty=1, logits_function=copying)
    sequence = engine.add(prompt(10) * 3, params)
    steps = []
    while engine.has_unfinished:
        steps.append(engine.step())
    outputs = [output for step in steps for output in step]
    assert [output.token_id for output in outputs] == sequence.output_ids
    assert [output.finish_reason for output in outputs] == [None] * 99 + ["length"]
    assert max(map(len, steps)) > 4
