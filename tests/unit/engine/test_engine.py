import numpy as np
import pytest

from phlite.engine import Engine, SamplingParams
from phlite.errors import ContextLengthError, ModelFileError, RequestError

GREEDY = SamplingParams.greedy(max_tokens=20)


def test_greedy_ids_equal_the_model_without_engine(fake_model, prompt, assert_all_freed):
    model = fake_model()
    engine = Engine(model)
    (sequence,) = engine.generate([prompt(10)], GREEDY)
    assert sequence.output_ids == model.expected_greedy(prompt(10), 20)
    assert sequence.finish_reason == "length"
    assert_all_freed(engine)


@pytest.mark.parametrize("max_batch_tokens", [1, 2, 3, 7, 63, 64, 65, 512])
def test_chunks_of_any_size_give_the_same_ids(fake_model, prompt, max_batch_tokens):
    model = fake_model()
    sequences = Engine(model, max_batch_tokens=max_batch_tokens).generate([prompt(150, 1), prompt(70, 2)], GREEDY)
    assert [sequence.output_ids for sequence in sequences] == [
        model.expected_greedy(prompt(150, 1), 20),
        model.expected_greedy(prompt(70, 2), 20),
    ]
    assert max(len(batch.token_ids) for batch in model.batches) <= max(max_batch_tokens, 2)


def test_neighbours_do_not_change_a_sampled_sequence(fake_model, prompt):
    def params(seed):
        return SamplingParams(seed=seed, temperature=0.8, top_k=20, top_p=0.9, max_tokens=30)

    alone = [Engine(fake_model()).generate([prompt(5 + 9 * i, i)], params(i))[0].output_ids for i in range(6)]
    engine = Engine(fake_model(), max_batch_tokens=40)
    together = []
    for i in range(6):
        together.append(engine.add(prompt(5 + 9 * i, i), params(i)))
        engine.step()
    while engine.has_unfinished:
        engine.step()
    assert [sequence.output_ids for sequence in together] == alone
    assert len({tuple(ids) for ids in alone}) == 6


def test_one_forward_pass_serves_prefill_and_decode_of_many_sequences(fake_model, prompt):
    model = fake_model()
    engine = Engine(model)
    engine.add(prompt(10, 1), GREEDY)
    engine.step()
    engine.add(prompt(12, 2), GREEDY)
    engine.add(prompt(14, 3), GREEDY)
    outputs = engine.step()
    assert len(outputs) == 3
    assert model.batches[-1].seq_starts.tolist() == [0, 1, 13, 27]
    assert model.batches[-1].positions[:3].tolist() == [10, 0, 1]
    assert model.batches[-1].logit_rows.tolist() == [0, 12, 26]
    assert model.batches[-1].seq_lens.tolist() == [11, 12, 14]


def test_a_full_cache_makes_the_youngest_wait_and_changes_no_id(fake_model, prompt, assert_all_freed):
    prompts = [prompt(60, i) for i in range(4)]
    params = SamplingParams.greedy(max_tokens=150)
    model = fake_model()
    engine = Engine(model, n_ctx=256, cache_tokens=256 + 64)
    sequences = engine.generate(prompts, params)
    for sequence, ids in zip(sequences, prompts, strict=True):
        assert sequence.output_ids == model.expected_greedy(ids, 150)
    n_encoded = sum(len(batch.token_ids) for batch in model.batches)
    assert n_encoded > 4 * (60 + 149), "nothing was thrown out and encoded again, so the test shows nothing"
    assert_all_freed(engine)


@pytest.mark.parametrize(("max_tokens", "n_together"), [(34, 4), (35, 4), (36, 2)])
def test_sequences_that_never_need_more_blocks_than_they_hold_leave_none_free(
    fake_model, prompt, max_tokens, n_together, assert_all_freed
):
    model = fake_model()
    engine = Engine(model, n_ctx=128, cache_tokens=4 * 64)
    # 30 + 35 ids: the last one is not encoded, so 64 positions are enough.
    params = SamplingParams.greedy(max_tokens=max_tokens, prompt_lookup_num_tokens=0)
    sequences = engine.generate([prompt(30, i) for i in range(4)], params)
    assert max(len(batch.seq_lens) for batch in model.batches) == n_together
    for i, sequence in enumerate(sequences):
        assert sequence.output_ids == model.expected_greedy(prompt(30, i), max_tokens)
    n_encoded = sum(len(batch.token_ids) for batch in model.batches)
    assert n_encoded == 4 * (30 + max_tokens - 1), "something was thrown out and encoded again"
    assert_all_freed(engine)


def test_a_growing_sequence_is_encoded_again_when_its_rope_regime_changes(fake_model, prompt):
    model = fake_model(short=40)
    (sequence,) = Engine(model).generate([prompt(35)], GREEDY)
    assert sequence.output_ids == model.expected_greedy(prompt(35), 20)
    at_crossing = [batch for batch in model.batches if batch.seq_lens[0] == 41]
    assert [batch.positions.tolist() for batch in at_crossing] == [list(range(41))]


def test_every_chunk_of_a_long_prompt_is_in_the_regime_of_the_whole_prompt(fake_model, prompt):
    model = fake_model(short=40)
    (sequence,) = Engine(model, max_batch_tokens=8).generate([prompt(41)], GREEDY)
    assert sequence.output_ids == model.expected_greedy(prompt(41), 20)
    assert all(batch.seq_lens[0] >= 41 for batch in model.batches)


def test_chunks_beside_other_sequences_are_in_the_regime_of_their_own_whole_prompt(fake_model, prompt):
    model = fake_model(short=40)
    prompts = [prompt(50, 1), prompt(41, 2), prompt(39, 3)]
    sequences = Engine(model, max_batch_tokens=12).generate(prompts, GREEDY)
    assert any(len(batch.seq_lens) > 1 and len(batch.token_ids) > 4 for batch in model.batches)
    assert [s.output_ids for s in sequences] == [model.expected_greedy(ids, 20) for ids in prompts]


def test_a_prompt_that_fills_the_short_regime_gets_its_first_token_from_it(fake_model, prompt):
    model = fake_model(short=40)
    (sequence,) = Engine(model).generate([prompt(40)], SamplingParams.greedy(max_tokens=1))
    assert sequence.output_ids == [int(model.expected_logits(prompt(40)).argmax())]
    assert len(model.batches) == 1


def test_neighbours_cross_the_rope_regime_each_for_itself(fake_model, prompt):
    model = fake_model(short=40)
    prompts = [prompt(30, 1), prompt(38, 2), prompt(60, 3)]
    sequences = Engine(model).generate(prompts, GREEDY)
    assert [s.output_ids for s in sequences] == [model.expected_greedy(ids, 20) for ids in prompts]


def test_generation_ends_with_length_when_the_context_is_full(fake_model, prompt, assert_all_freed):
    engine = Engine(fake_model(), n_ctx=70)
    (sequence,) = engine.generate([prompt(60)], SamplingParams.greedy(max_tokens=None))
    assert (len(sequence.output_ids), sequence.finish_reason) == (10, "length")
    assert_all_freed(engine)


@pytest.mark.parametrize("length", [70, 71, 500])
def test_a_prompt_that_leaves_no_room_is_refused_with_the_numbers(fake_model, prompt, length):
    with pytest.raises(ContextLengthError, match=rf"{length} tokens.* n_ctx is 70"):
        Engine(fake_model(), n_ctx=70).add(prompt(length))


def test_a_decoding_sequence_waits_for_one_chunk_of_a_long_prompt_at_most(fake_model, prompt):
    model = fake_model()
    engine = Engine(model, cache_tokens=2048)
    first = engine.add(prompt(5), SamplingParams.greedy(max_tokens=None))
    engine.step()
    long = engine.add(prompt(900, 1), GREEDY)
    n_steps = 1
    while not long.output_ids:
        engine.step()
        n_steps += 1
        assert len(first.output_ids) == n_steps
        assert len(model.batches[-1].token_ids) <= 129
    assert n_steps == 1 + -(-900 // 128)


def test_decoding_sequences_do_not_starve_a_prompt_when_the_step_is_full(fake_model, prompt):
    engine = Engine(fake_model(), max_batch_tokens=1)
    endless = engine.add(prompt(1), SamplingParams.greedy(max_tokens=None))
    engine.step()
    late = engine.add(prompt(6, 1), GREEDY)
    for _ in range(6):
        engine.step()
    assert len(late.output_ids) == 1
    assert endless.finish_reason is None


def test_a_sequence_that_was_thrown_out_comes_before_those_that_have_not_begun(fake_model, prompt):
    engine = Engine(fake_model(), n_ctx=128, cache_tokens=192)
    params = SamplingParams.greedy(max_tokens=60)
    oldest, second, last = (engine.add(prompt(60, i), params) for i in range(3))
    while len(oldest.output_ids) < 10:
        engine.step()
    assert list(engine.scheduler.waiting) == [second, last]
    assert second.output_ids


def test_a_short_prompt_is_served_before_a_long_one_that_came_first_is_through(fake_model, prompt):
    engine = Engine(fake_model(), max_batch_tokens=64, cache_tokens=2048)
    long = engine.add(prompt(900), GREEDY)
    engine.step()
    short = engine.add(prompt(20, 1), GREEDY)
    engine.step()
    assert len(short.output_ids) == 1
    assert not long.output_ids


def test_a_stop_id_of_the_model_ends_the_sequence_and_is_its_last_id(fake_model, prompt):
    model = fake_model()
    expected = model.expected_greedy(prompt(10), 20)
    (sequence,) = Engine(model, eos_ids=[expected[4]]).generate([prompt(10)], GREEDY)
    assert sequence.output_ids == expected[: expected.index(expected[4]) + 1]
    assert sequence.finish_reason == "stop"


def test_ignore_eos_goes_on_but_the_callers_stop_ids_still_end(fake_model, prompt):
    model = fake_model()
    expected = model.expected_greedy(prompt(10), 20)
    first, second = expected[0], next(i for i in expected if i != expected[0])
    params = SamplingParams(temperature=0, repeat_penalty=1, max_tokens=20, ignore_eos=True, stop_token_ids=[second])
    (sequence,) = Engine(model, eos_ids=[first]).generate([prompt(10)], params)
    assert sequence.output_ids == expected[: expected.index(second) + 1]
    assert sequence.finish_reason == "stop"


@pytest.mark.parametrize("n_steps", [0, 1, 3, 12])
def test_abort_frees_everything_at_any_time(fake_model, prompt, assert_all_freed, n_steps):
    engine = Engine(fake_model(), max_batch_tokens=16)
    sequences = [engine.add(prompt(50, i), GREEDY) for i in range(3)]
    for _ in range(n_steps):
        engine.step()
    for sequence in sequences:
        engine.abort(sequence)
        engine.abort(sequence)
    assert [sequence.finish_reason for sequence in sequences] == ["aborted"] * 3
    assert_all_freed(engine)


def test_logprobs_are_of_the_models_own_distribution(fake_model, prompt):
    model = fake_model()
    params = SamplingParams(temperature=0.3, repeat_penalty=1.5, seed=1, logprobs=2, max_tokens=5)
    (sequence,) = Engine(model).generate([prompt(10)], params)
    ids = prompt(10)
    for token_id, logprob in zip(sequence.output_ids, sequence.logprobs, strict=True):
        logits = model.expected_logits(ids).astype(np.float64)
        log_total = np.log(np.exp(logits).sum())
        assert logprob.token_id == token_id
        assert logprob.logprob == pytest.approx(logits[token_id] - log_total, abs=1e-5)
        assert [top[0] for top in logprob.top] == (-logits).argsort()[:2].tolist()
        ids.append(token_id)


def test_a_random_seed_is_reported_and_reproduces_the_run(fake_model, prompt):
    engine = Engine(fake_model())
    (first,) = engine.generate([prompt(10)])
    (again,) = engine.generate([prompt(10)], SamplingParams(seed=first.seed))
    assert again.output_ids == first.output_ids
    (other,) = engine.generate([prompt(10)])
    assert other.seed != first.seed


def test_a_failing_logits_function_ends_its_own_sequence_only(fake_model, prompt, assert_all_freed):
    def fail(ids, logits):
        raise ValueError("no rule for this text")

    model = fake_model()
    engine = Engine(model)
    bad = engine.add(prompt(10, 1), SamplingParams(logits_function=fail))
    good = engine.add(prompt(10, 2), GREEDY)
    while engine.has_unfinished:
        engine.step()
    assert (bad.finish_reason, str(bad.error)) == ("aborted", "no rule for this text")
    assert good.output_ids == model.expected_greedy(prompt(10, 2), 20)
    assert_all_freed(engine)
    with pytest.raises(ValueError, match="no rule for this text"):
        engine.generate([prompt(10)], SamplingParams(logits_function=fail))


def test_nan_logits_are_a_model_file_error(fake_model, prompt, assert_all_freed):
    model = fake_model()
    model.logits = lambda state: np.full(61, np.nan, np.float32)
    engine = Engine(model)
    with pytest.raises(ModelFileError, match="not finite"):
        engine.generate([prompt(10)], GREEDY)
    assert_all_freed(engine)


def test_an_error_in_one_step_is_raised_and_the_next_steps_go_on(fake_model, prompt):
    model = fake_model(fail_at={4: MemoryError("no room")})
    engine = Engine(model)
    sequence = engine.add(prompt(10), GREEDY)
    for _ in range(3):
        engine.step()
    with pytest.raises(MemoryError):
        engine.step()
    while engine.has_unfinished:
        engine.step()
    assert sequence.output_ids == model.expected_greedy(prompt(10), 20)


@pytest.mark.parametrize(
    ("ids", "message"),
    [([], "expected at least one"), ([61], "token id 61, expected 0 to 60"), ([-1], "token id -1")],
)
def test_a_prompt_outside_the_vocabulary_is_refused(fake_model, ids, message):
    with pytest.raises(RequestError, match=message):
        Engine(fake_model()).add(ids)


def test_a_bias_outside_the_vocabulary_is_refused(fake_model):
    with pytest.raises(RequestError, match="logit_bias: got token id 61"):
        Engine(fake_model()).add([1], SamplingParams(logit_bias={61: 1.0}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_ctx": 1025}, "n_ctx: got 1025, expected 2 to 1024"),
        ({"n_ctx": 1}, "n_ctx: got 1"),
        ({"n_ctx": 128, "cache_tokens": 127}, "cache_tokens: got 127"),
        ({"max_batch_tokens": 0}, "max_batch_tokens: got 0"),
        ({"max_sequences": 0}, "max_sequences: got 0"),
    ],
)
def test_an_engine_option_out_of_range_is_refused(fake_model, options, message):
    with pytest.raises(RequestError, match=message):
        Engine(fake_model(), **options)


def test_sequences_above_max_sequences_wait_their_turn(fake_model, prompt):
    model = fake_model()
    engine = Engine(model, max_sequences=2)
    sequences = engine.generate([prompt(10, i) for i in range(5)], GREEDY)
    assert max(len(batch.seq_lens) for batch in model.batches) == 2
    assert [s.output_ids for s in sequences] == [model.expected_greedy(prompt(10, i), 20) for i in range(5)]
