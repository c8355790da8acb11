"""Beams in the engine: what they give, whom they sit beside, and what they leave behind."""

import math
from dataclasses import replace

import numpy as np
import pytest

from phlite.engine import Engine, SamplingParams
from phlite.engine.beam_cache import most_blocks
from phlite.engine.beam_search import Hypothesis, begin_search
from phlite.errors import RequestError

BEAMS = SamplingParams.beam_search(3, max_tokens=12, num_return_sequences=3)


def logprobs(model, ids):
    logits = model.expected_logits(ids).astype(np.float64)
    return logits - np.log(np.exp(logits).sum())


def search_in_plain_python(model, prompt, n_beams, n_new):
    """Beam search without stop ids, blocks or batches."""
    beams = [(0.0, [])]
    for _ in range(n_new):
        grown = []
        for score, ids in beams:
            grown += [(score + p, [*ids, i]) for i, p in enumerate(logprobs(model, prompt + ids).tolist())]
        beams = sorted(grown, key=lambda beam: -beam[0])[:n_beams]
    return [(ids, score / n_new) for score, ids in beams]


def found(sequence):
    return [(list(one.token_ids), pytest.approx(one.score, abs=1e-5)) for one in sequence.hypotheses]


def run(engine):
    while engine.has_unfinished:
        engine.step()


@pytest.mark.parametrize("length", [1, 10, 63, 64, 65, 130])
def test_the_hypotheses_are_those_of_a_plain_search(fake_model, prompt, length, assert_all_freed):
    model = fake_model()
    engine = Engine(model)
    (sequence,) = engine.generate([prompt(length)], BEAMS)
    assert found(sequence) == search_in_plain_python(model, prompt(length), 3, 12)
    assert sequence.output_ids == list(sequence.hypotheses[0].token_ids)
    assert (sequence.finish_reason, sequence.hypotheses[0].finish_reason) == ("length", "length")
    assert_all_freed(engine)


def test_all_beams_of_a_step_are_one_batch_and_share_their_prompts_blocks(fake_model, prompt):
    model = fake_model()
    engine = Engine(model, cache_tokens=1024)
    engine.add(prompt(200), BEAMS)
    n_free = []
    while engine.has_unfinished:
        engine.step()
        n_free.append(engine.scheduler.blocks.n_free)
    # 4 blocks for the prompt, and for the second and third beam one each that is not full.
    assert min(n_free) == 16 - 3 - 3
    assert [len(batch.seq_lens) for batch in model.batches] == [1] + [3] * 11
    assert [len(batch.token_ids) for batch in model.batches] == [200] + [3] * 11


def test_beams_cross_the_rope_regime_and_are_encoded_again(fake_model, prompt):
    model = fake_model(short=70)
    (sequence,) = Engine(model, max_batch_tokens=32).generate([prompt(64)], BEAMS)
    assert found(sequence) == search_in_plain_python(model, prompt(64), 3, 12)


def test_neighbours_evictions_and_chunks_change_no_hypothesis(fake_model, prompt, assert_all_freed):
    model = fake_model()
    engine = Engine(model, n_ctx=192, cache_tokens=384, max_batch_tokens=24)
    greedy = SamplingParams.greedy(max_tokens=100)
    params = SamplingParams.beam_search(3, max_tokens=30, num_return_sequences=2)
    first = engine.add(prompt(60, 1), greedy)
    beams = [engine.add(prompt(50 + 9 * i, i), params) for i in range(3)]
    last = engine.add(prompt(60, 5), greedy)
    run(engine)
    for i, sequence in enumerate(beams):
        assert found(sequence) == search_in_plain_python(model, prompt(50 + 9 * i, i), 3, 30)[:2]
    assert first.output_ids == model.expected_greedy(prompt(60, 1), 100)
    assert last.output_ids == model.expected_greedy(prompt(60, 5), 100)
    n_encoded = sum(len(batch.token_ids) for batch in model.batches)
    assert n_encoded > 160 + 2 * 100 + 3 * (59 + 3 * 30) + 60, "nobody was thrown out, so the test shows little"
    assert_all_freed(engine)


@pytest.mark.parametrize("n_steps", [0, 1, 2, 5, 9])
def test_abort_frees_all_beams_at_any_time(fake_model, prompt, assert_all_freed, n_steps):
    engine = Engine(fake_model(), max_batch_tokens=40)
    sequence = engine.add(prompt(70), BEAMS)
    for _ in range(n_steps):
        engine.step()
    engine.abort(sequence)
    assert (sequence.finish_reason, sequence.hypotheses) == ("aborted", ())
    assert_all_freed(engine)


@pytest.mark.parametrize("at", [1, 2, 3, 7, 12])
def test_an_interrupted_step_changes_no_hypothesis(fake_model, prompt, assert_all_freed, at):
    model = fake_model(fail_at={at: KeyboardInterrupt()})
    engine = Engine(model)
    sequence = engine.add(prompt(60), BEAMS)
    with pytest.raises(KeyboardInterrupt):
        run(engine)
    run(engine)
    assert found(sequence) == search_in_plain_python(fake_model(), prompt(60), 3, 12)
    assert_all_freed(engine)


def test_a_stop_id_ends_a_hypothesis_and_its_score_follows_the_length_penalty(fake_model, prompt):
    model = fake_model()
    stop_id = search_in_plain_python(model, prompt(10), 3, 4)[0][0][-1]
    engine = Engine(model, eos_ids=[stop_id])
    params = SamplingParams.beam_search(3, max_tokens=20, length_penalty=0.5, num_return_sequences=3)
    (sequence,) = engine.generate([prompt(10)], params)
    assert any(one.finish_reason == "stop" for one in sequence.hypotheses)
    for one in sequence.hypotheses:
        total, ids = 0.0, prompt(10)
        for token_id in one.token_ids:
            total += logprobs(model, ids)[token_id]
            ids.append(token_id)
        assert one.score == pytest.approx(total / len(one.token_ids) ** 0.5, abs=1e-5)
        assert (stop_id in one.token_ids) == (one.finish_reason == "stop")
    scores = [one.score for one in sequence.hypotheses]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("early_stopping", "length_penalty", "is_enough"),
    [
        # The best beam has -10 after 5 of 10 tokens: -2 each so far, -1 each if the rest costs nothing; the worst
        # result has -1.5.
        (True, 1.0, True),
        (False, 1.0, True),
        ("never", 1.0, False),
        ("never", -1.0, True),
        (False, 2.0, False),
    ],
)
def test_a_search_ends_by_early_stopping_when_no_beam_can_become_better(early_stopping, length_penalty, is_enough):
    params = SamplingParams.beam_search(2, early_stopping=early_stopping, length_penalty=length_penalty)
    search = begin_search([1], params, stop_ids=frozenset(), max_ids=11)
    search = replace(
        search,
        ids=np.zeros((2, 6), np.int32),
        scores=np.array([-10.0, -11.0]),
        finished=tuple(Hypothesis((1,), score, "stop") for score in (-1.0, -1.5)),
    )
    assert search.is_enough() == is_enough
    assert not replace(search, finished=search.finished[:1]).is_enough()


def test_outputs_are_the_best_hypothesis_token_by_token(fake_model, prompt):
    engine = Engine(fake_model())
    sequence = engine.add(prompt(10), BEAMS)
    outputs = []
    while engine.has_unfinished:
        outputs += engine.step()
    assert [output.token_id for output in outputs] == sequence.output_ids
    assert [output.finish_reason for output in outputs] == [None] * 11 + ["length"]
    assert sequence.timings.decode_ms > 0


def test_a_failing_logits_function_ends_its_own_search_only(fake_model, prompt, assert_all_freed):
    def fail(ids, logits):
        if len(ids) > 14:
            raise ValueError("no")
        return logits

    engine = Engine(fake_model())
    params = SamplingParams(temperature=0, repeat_penalty=1, num_beams=3, logits_function=fail)
    bad, good = engine.add(prompt(10), params), engine.add(prompt(12), BEAMS)
    run(engine)
    assert (bad.finish_reason, str(bad.error)) == ("aborted", "no")
    assert found(good) == search_in_plain_python(fake_model(), prompt(12), 3, 12)
    assert_all_freed(engine)


def test_forbidden_tokens_come_in_no_hypothesis(fake_model, prompt):
    params = SamplingParams(
        temperature=0,
        repeat_penalty=1,
        num_beams=4,
        num_return_sequences=4,
        max_tokens=6,
        logit_bias=dict.fromkeys(range(58), -math.inf),
    )
    (sequence,) = Engine(fake_model()).generate([prompt(10)], params)
    assert len(sequence.hypotheses) == 4
    assert all(set(one.token_ids) <= {58, 59, 60} for one in sequence.hypotheses)
    assert len({one.token_ids for one in sequence.hypotheses}) == 4


def test_beams_that_the_cache_cannot_hold_are_refused_with_the_numbers(fake_model, prompt):
    engine = Engine(fake_model(), n_ctx=256)
    assert most_blocks(100, 200, 3) * 64 == 64 + 3 * 3 * 64
    with pytest.raises(RequestError, match=r"num_beams: 3 beams of up to 200 tokens take 640 positions .* has 256"):
        engine.add(prompt(100), SamplingParams.beam_search(3))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_beams": 2}, "num_beams: got 2 with temperature 1; beams are compared, not drawn"),
        ({"num_beams": 0}, "num_beams: got 0"),
        ({"num_beams": 2, "temperature": 0, "top_k": 4}, "num_beams: got top_k too"),
        ({"num_beams": 2, "temperature": 0, "logprobs": 0}, "logprobs: got num_beams above 1"),
        (
            {"num_beams": 2, "temperature": 0, "num_return_sequences": 3},
            "num_return_sequences: got 3, expected at most",
        ),
        ({"num_return_sequences": 2}, "num_return_sequences: got 2, expected at most num_beams = 1"),
        ({"early_stopping": "often"}, "early_stopping: got 'often', expected True, False or 'never'"),
        ({"length_penalty": math.nan}, "length_penalty: got nan"),
    ],
)
def test_what_beams_cannot_do_is_refused(fields, message):
    with pytest.raises(RequestError, match=message):
        SamplingParams(**fields)
