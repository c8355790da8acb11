import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phlite.engine import SamplingParams
from phlite.engine.sampling import compute_logprob, sample, uniform
from phlite.engine.sampling.candidates import largest_rows
from phlite.engine.sampling.draw import draw
from phlite.engine.sampling.penalties import apply_repeat_penalty
from phlite.errors import RequestError

NO_PENALTY = {"repeat_penalty": 1.0}
NO_IDS = np.empty(0, np.int32)


def random_logits(vocab_size=200, seed=0, scale=3.0):
    return (np.random.default_rng(seed).standard_normal(vocab_size) * scale).astype(np.float32)


def draws(logits, params, n=3000, ids=NO_IDS, n_prompt=0):
    return np.array([sample(logits, params, ids, n_prompt=n_prompt, u=uniform(5, i)) for i in range(n)])


def support(logits, params):
    """The ids that can be drawn: u is walked over a fine grid."""
    return {sample(logits, params, NO_IDS, n_prompt=0, u=u) for u in np.linspace(0, 1, 2001)[:-1]}


def candle_top_p(probabilities, p):
    """Candle's rule in plain Python: walk down, a token is zeroed if the sum before it is already p."""
    order = sorted(range(len(probabilities)), key=lambda i: (-probabilities[i], i))
    total, kept = 0.0, set()
    for row in order:
        if total >= p:
            break
        kept.add(row)
        total += probabilities[row]
    return kept


def softmax64(logits):
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def test_greedy_takes_the_first_of_the_largest_logits():
    logits = np.array([1, 5, 2, 5], np.float32)
    assert sample(logits, SamplingParams.greedy(), NO_IDS, n_prompt=0, u=0.99) == 1


def test_a_temperature_below_candles_limit_is_greedy():
    params = SamplingParams(temperature=1e-8, **NO_PENALTY)
    assert sample(np.array([0, 1e-3, 0], np.float32), params, NO_IDS, n_prompt=0, u=0.999) == 1


def test_a_tiny_temperature_makes_no_nan():
    params = SamplingParams(temperature=1.1e-7, **NO_PENALTY)
    logits = np.array([-3e38, 3e38, 0, 2.9e38], np.float32)
    assert sample(logits, params, NO_IDS, n_prompt=0, u=0.999) == 1


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_draws_follow_the_softmax_of_logits_over_temperature(temperature):
    logits = random_logits(12, scale=1.0)
    counts = np.bincount(draws(logits, SamplingParams(temperature=temperature, **NO_PENALTY)), minlength=12)
    expected = softmax64(logits / temperature) * counts.sum()
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 35, "99.98 % bound of chi-square with 11 degrees of freedom"


def test_top_k_keeps_exactly_k_and_the_lower_ids_of_equal_logits():
    logits = np.array([1, 3, 2, 3, 3, 2.5, -1], np.float32)
    assert support(logits, SamplingParams(top_k=2, **NO_PENALTY)) == {1, 3}
    assert support(logits, SamplingParams(top_k=4, **NO_PENALTY)) == {1, 3, 4, 5}


@pytest.mark.parametrize("top_k", [None, 0, 7, 100])
def test_top_k_that_is_off_or_large_keeps_all(top_k):
    assert support(np.arange(7, dtype=np.float32) / 4, SamplingParams(top_k=top_k, **NO_PENALTY)) == set(range(7))


@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 8.0])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.999])
def test_top_p_keeps_what_candle_keeps(top_p, scale):
    logits = random_logits(50, seed=3, scale=scale)
    kept = support(logits, SamplingParams(top_p=top_p, **NO_PENALTY))
    expected = candle_top_p(softmax64(logits).tolist(), top_p)
    rare = {i for i in expected if softmax64(logits)[i] < 2e-3}
    assert expected - rare <= kept <= expected


def test_the_token_that_crosses_p_stays():
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    assert support(logits, SamplingParams(top_p=0.4, **NO_PENALTY)) == {0}
    assert support(logits, SamplingParams(top_p=0.6, **NO_PENALTY)) == {0, 1}
    assert support(logits, SamplingParams(top_p=0.9, **NO_PENALTY)) == {0, 1, 2}


def test_top_p_after_top_k_counts_probabilities_of_the_whole_vocabulary():
    logits = np.log(np.array([0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1], np.float32))
    assert support(logits, SamplingParams(top_k=3, top_p=0.45, **NO_PENALTY)) == {0, 1}
    # 0.55 is not reached by the three that are left (0.6 renormalised would cut after two): all three stay.
    assert support(logits, SamplingParams(top_k=3, top_p=0.55, **NO_PENALTY)) == {0, 1, 2}
    assert support(logits, SamplingParams(top_k=3, top_p=0.95, **NO_PENALTY)) == {0, 1, 2}


def test_top_p_of_equal_logits_keeps_the_lower_ids():
    kept = support(np.zeros(10, np.float32), SamplingParams(top_p=0.25, **NO_PENALTY))
    assert kept == {0, 1, 2}


def test_min_p_drops_what_is_rarer_than_its_part_of_the_likeliest():
    logits = np.log(np.array([0.5, 0.26, 0.2, 0.04], np.float32))
    assert support(logits, SamplingParams(min_p=0.5, **NO_PENALTY)) == {0, 1}
    assert support(logits, SamplingParams(min_p=0.1, **NO_PENALTY)) == {0, 1, 2}


def test_repeat_penalty_divides_positive_and_multiplies_negative_logits_once_per_id():
    logits = np.array([2, -2, 0, 3, 5], np.float32)
    apply_repeat_penalty(logits, 2.0, np.array([0, 0, 1, 2, 4, 0], np.int32))
    assert logits.tolist() == [1, -4, 0, 3, 2.5]


def test_repeat_penalty_sees_generated_ids_of_the_window_only():
    logits = np.array([4.0, 3.9, 3.8, 1.0], np.float32)
    ids = np.array([0, 1, 2], np.int32)
    params = {"temperature": 0, "repeat_penalty": 2.0}
    assert sample(logits, SamplingParams(**params), ids, n_prompt=3, u=0) == 0
    assert sample(logits, SamplingParams(**params), ids, n_prompt=0, u=0) == 0
    assert sample(logits, SamplingParams(**params, repeat_last_n=1), ids, n_prompt=0, u=0) == 0
    assert sample(logits, SamplingParams(**params), np.array([2, 0], np.int32), n_prompt=1, u=0) == 1
    assert sample(logits, SamplingParams(**params, repeat_last_n=1), np.array([0, 1], np.int32), n_prompt=0, u=0) == 0
    assert sample(logits, SamplingParams(**params, repeat_last_n=0), np.array([0], np.int32), n_prompt=0, u=0) == 0
    assert sample(logits, SamplingParams(**params, repeat_last_n=-1), np.array([0], np.int32), n_prompt=0, u=0) == 1


def test_frequency_and_presence_penalties_follow_the_counts():
    logits = np.array([3.0, 2.5, 2.0, 1.0], np.float32)
    ids = np.array([2, 0, 0, 1], np.int32)
    greedy = {"temperature": 0, "repeat_penalty": 1.0}
    assert sample(logits, SamplingParams(**greedy, frequency_penalty=0.6), ids, n_prompt=1, u=0) == 2
    assert sample(logits, SamplingParams(**greedy, frequency_penalty=0.4), ids, n_prompt=1, u=0) == 0
    assert sample(logits, SamplingParams(**greedy, presence_penalty=1.5), ids, n_prompt=1, u=0) == 2
    assert sample(logits, SamplingParams(**greedy, presence_penalty=0.3), ids, n_prompt=1, u=0) == 0


def test_logit_bias_adds_and_minus_infinity_forbids():
    logits = np.array([3.0, 2.5, 2.0], np.float32)
    greedy = {"temperature": 0, "repeat_penalty": 1.0}
    assert sample(logits, SamplingParams(**greedy, logit_bias={2: 1.5}), NO_IDS, n_prompt=0, u=0) == 2
    assert sample(logits, SamplingParams(**greedy, logit_bias={0: -math.inf}), NO_IDS, n_prompt=0, u=0) == 1


def test_forbidding_every_token_is_an_error():
    bias = {0: -math.inf, 1: -math.inf}
    for params in (SamplingParams(logit_bias=bias), SamplingParams(logit_bias=bias, temperature=0)):
        with pytest.raises(RequestError, match="forbids the whole vocabulary"):
            sample(np.zeros(2, np.float32), params, NO_IDS, n_prompt=0, u=0.5)


def test_the_callers_function_gets_all_ids_and_logits_after_the_penalties():
    seen = {}

    def choose_last(ids, logits):
        seen["ids"], seen["logits"] = ids.tolist(), logits.tolist()
        assert not ids.flags.writeable
        return np.array([0, 0, 9], np.float32)

    params = SamplingParams(temperature=0, repeat_penalty=2.0, logits_function=choose_last)
    ids = np.array([1, 0], np.int32)
    assert sample(np.array([4, 2, 1], np.float32), params, ids, n_prompt=1, u=0) == 2
    assert seen == {"ids": [1, 0], "logits": [2.0, 2.0, 1.0]}


@pytest.mark.parametrize(("result", "message"), [(np.zeros(4), r"shape \(4,\)"), (np.array([0, np.nan, 0]), "got nan")])
def test_a_logits_function_that_returns_nonsense_is_refused(result, message):
    for temperature in (0, 1):
        params = SamplingParams(temperature=temperature, logits_function=lambda ids, logits: result)
        with pytest.raises(RequestError, match=message):
            sample(np.zeros(3, np.float32), params, NO_IDS, n_prompt=0, u=0)


def test_sampling_leaves_the_logits_unchanged():
    logits = random_logits()
    before = logits.copy()
    params = SamplingParams(
        temperature=0.5, top_k=9, top_p=0.9, min_p=0.1, frequency_penalty=1, presence_penalty=1, logit_bias={1: 2.0}
    )
    sample(logits, params, np.array([1, 2, 3], np.int32), n_prompt=1, u=0.4)
    assert (logits == before).all()


def test_the_stream_of_a_seed_is_fixed_for_ever():
    assert [uniform(0, 0), uniform(0, 1), uniform(2**64 - 1, 10**6)] == [
        0.6524484863740322,
        0.7012121095215252,
        0.4611314684076886,
    ]


def test_neighbouring_seeds_give_unrelated_even_streams():
    table = np.array([[uniform(seed, i) for i in range(500)] for seed in range(40)])
    assert abs(table.mean() - 0.5) < 0.01
    assert np.bincount((table.ravel() * 10).astype(int)).min() > 1850
    assert np.abs(np.corrcoef(table) - np.eye(40)).max() < 0.2
    assert np.abs(np.corrcoef(table[:, 0], np.arange(40))[0, 1]) < 0.5


def test_a_draw_never_takes_a_token_of_weight_zero():
    weights = np.array([0, 0, 1e-30, 0, 2e-30, 0], np.float32)
    assert {draw(weights, u) for u in (0.0, 0.3, 0.4, 1 - 2**-53)} == {2, 4}


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=40),
    st.integers(1, 40),
)
def test_largest_rows_are_those_of_a_stable_sort(values, k):
    values = np.array(values, np.float32)
    k = min(k, values.size)
    assert largest_rows(values, k).tolist() == sorted(np.argsort(-values, kind="stable")[:k].tolist())


@settings(max_examples=200)
@given(
    st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=60),
    st.floats(0.05, 5),
    st.one_of(st.none(), st.integers(1, 70)),
    st.one_of(st.none(), st.floats(0.001, 1)),
    st.one_of(st.none(), st.floats(0, 1)),
    st.floats(0, 1, exclude_max=True),
)
def test_any_parameters_give_an_id_of_the_vocabulary(values, temperature, top_k, top_p, min_p, u):
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, **NO_PENALTY)
    token_id = sample(np.array(values, np.float32), params, NO_IDS, n_prompt=0, u=u)
    assert 0 <= token_id < len(values)


def test_logprobs_are_natural_logs_of_the_softmax():
    logits = random_logits(30)
    result = compute_logprob(logits, 7, 3)
    expected = np.log(softmax64(logits))
    assert result.logprob == pytest.approx(expected[7], abs=1e-5)
    assert [row for row, _ in result.top] == np.argsort(-expected, kind="stable")[:3].tolist()
    assert [value for _, value in result.top] == pytest.approx(np.sort(expected)[::-1][:3].tolist(), abs=1e-5)


def test_more_logprobs_than_vocabulary_are_all_of_it():
    assert len(compute_logprob(np.zeros(3, np.float32), 0, 10).top) == 3


@pytest.mark.parametrize("size", [511, 512, 513, 1000, 5003])
def test_a_draw_from_a_large_vocabulary_finds_the_row_of_its_running_sum(size):
    weights = np.random.default_rng(size).integers(0, 5, size).astype(np.float32)
    sums = np.cumsum(weights, dtype=np.float64)
    for u in np.linspace(0, 1, 999)[:-1]:
        assert draw(weights, u) == int(np.searchsorted(sums, u * sums[-1], side="right"))


def test_large_vocabularies_keep_what_candle_keeps():
    logits = random_logits(20_000, seed=9, scale=0.3)
    params = SamplingParams(top_p=0.4, **NO_PENALTY)
    expected = candle_top_p(softmax64(logits).tolist(), 0.4)
    assert set(draws(logits, params, n=500).tolist()) <= expected
    logits[[7, 11, 13, 9000, 19_999]] = [9, 8.5, 8, 7.5, 7]
    assert set(draws(logits, SamplingParams(top_k=4, **NO_PENALTY), n=500).tolist()) == {7, 11, 13, 9000}
