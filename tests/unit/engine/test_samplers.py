"""The samplers beyond Candle's, the orders, and what is remembered from token to token."""

import numpy as np
import pytest

from phlite.engine import Engine, SamplingParams
from phlite.engine.sampling import Choice, build_steps, sample, surviving, uniform
from phlite.engine.sampling.draw import second_uniform
from phlite.engine.sampling.penalties import repeated_lengths
from phlite.errors import RequestError

OFF = {"repeat_penalty": 1.0}
NO_IDS = np.empty(0, np.int32)


def log(*probabilities):
    return np.log(np.array(probabilities, np.float32))


def in_play(logits, params, ids=NO_IDS, n_prompt=0, **choice):
    """Ids that may be drawn: not dropped, and not of probability 0."""
    ids = np.asarray(ids, np.int32)
    candidates = surviving(logits, Choice(params, ids, n_prompt, **choice), build_steps(params))
    return {candidates.id_of(row) for row in np.flatnonzero(candidates.softmax())}


def test_the_default_order_draws_the_same_ids_for_ever():
    logits = (np.random.default_rng(8).standard_normal(1000) * 2).astype(np.float32)
    ids = np.array([5, 9, 700, 41, 700], np.int32)
    cases = [{}, {"temperature": 0.7, "top_p": 0.9}, {"top_k": 40, "min_p": 0.05}, {"temperature": 1.5, "top_k": 9}]
    drawn = [
        [sample(logits, SamplingParams(**case), ids, n_prompt=1, u=uniform(3, i)) for i in range(6)] for case in cases
    ]
    assert drawn == EXPECTED


EXPECTED = [
    [713, 639, 674, 762, 762, 669],
    [762, 682, 685, 762, 762, 685],
    [713, 674, 685, 762, 762, 682],
    [762, 685, 713, 762, 762, 685],
]


def test_typical_p_keeps_surprise_near_the_entropy():
    # Entropy 1.37 nats; surprises 0.69, 1.90, 1.90, 2.30: the pair of 0.15 is nearest, then 0.5.
    logits = log(0.5, 0.15, 0.15, 0.1, 0.1)
    assert in_play(logits, SamplingParams(**OFF, typical_p=0.2)) == {1, 2}
    assert in_play(logits, SamplingParams(**OFF, typical_p=0.31)) == {0, 1, 2}
    assert in_play(logits, SamplingParams(**OFF, typical_p=1.0)) == set(range(5))


def test_xtc_leaves_the_least_likely_of_the_top_choices():
    logits = log(0.4, 0.3, 0.2, 0.1)
    assert in_play(logits, SamplingParams(**OFF, xtc_probability=1.0, xtc_threshold=0.15)) == {2, 3}
    assert in_play(logits, SamplingParams(**OFF, xtc_probability=1.0, xtc_threshold=0.35)) == {0, 1, 2, 3}
    assert in_play(logits, SamplingParams(**OFF, xtc_probability=1.0, xtc_threshold=0.6)) == {0, 1, 2, 3}


def test_xtcs_coin_falls_as_often_as_asked_and_apart_from_the_draw():
    params = SamplingParams(**OFF, xtc_probability=0.3, xtc_threshold=0.1)
    draws = [uniform(1, i) for i in range(4000)]
    fell = np.array([0 not in in_play(log(0.6, 0.4), params, u=u) for u in draws])
    assert abs(fell.mean() - 0.3) < 0.03
    coins = [second_uniform(u) for u in draws]
    assert abs(np.corrcoef(draws, coins)[0, 1]) < 0.05


def test_top_n_sigma_counts_deviations_of_the_finite_logits():
    logits = np.array([3, 2, 1, 0, -np.inf], np.float32)  # deviation 1.118 without the last
    assert in_play(logits, SamplingParams(**OFF, top_n_sigma=1.0)) == {0, 1}
    assert in_play(logits, SamplingParams(**OFF, top_n_sigma=2.0)) == {0, 1, 2}


def test_a_dynamic_temperature_is_low_where_the_model_is_sure():
    params = SamplingParams(**OFF, dynatemp_range=0.9)

    def sharpness(*probabilities):
        candidates = surviving(log(*probabilities), Choice(params, NO_IDS, 0), build_steps(params))
        return candidates.probabilities().max() / max(probabilities)

    assert sharpness(0.97, 0.01, 0.01, 0.01) > 1.02
    assert sharpness(0.4, 0.3, 0.2, 0.1) < 0.95


@pytest.mark.parametrize("longest", [3, 100])
def test_repetitions_are_found_as_by_comparing_every_end(longest):
    rng = np.random.default_rng(longest)
    for _ in range(200):
        ids = rng.integers(0, 3, rng.integers(1, 30)).astype(np.int32)
        expected = {}
        for row in range(1, ids.size):
            n = 0
            while n < min(row, longest) and ids[row - 1 - n] == ids[-1 - n]:
                n += 1
            if n >= 2:
                expected[int(ids[row])] = max(n, expected.get(int(ids[row]), 0))
        assert repeated_lengths(ids, longest, 2) == expected


def test_dry_weakens_what_would_go_on_repeating_and_stops_at_breakers():
    greedy = {"temperature": 0, **OFF, "dry_multiplier": 1.0, "dry_base": 2.0}
    ids = np.array([4, 1, 2, 3, 0, 1, 2], np.int32)  # after 1, 2 came 3
    logits = np.array([0, 0, 0, 0.9, 0.5], np.float32)
    assert sample(logits, SamplingParams(**greedy, dry_breakers=()), ids, n_prompt=7, u=0) == 4
    assert sample(logits, SamplingParams(**greedy, dry_breakers=[1]), ids, n_prompt=7, u=0) == 3
    assert sample(logits, SamplingParams(**greedy, dry_breakers=(), dry_last_n=3), ids, n_prompt=7, u=0) == 3
    assert sample(logits, SamplingParams(**greedy, dry_breakers=(), dry_allowed_length=3), ids, n_prompt=7, u=0) == 3


def test_an_endless_repetition_is_penalised_by_a_finite_number():
    params = SamplingParams(**OFF, dry_multiplier=1.0, dry_base=4.0, dry_breakers=())
    ids = np.zeros(5000, np.int32)
    candidates = surviving(np.zeros(3, np.float32), Choice(params, ids, 0), build_steps(params))
    assert -np.inf < candidates.logits[0] < -1e30


@pytest.mark.parametrize(
    ("n", "allowed"), [(1, {5, 6, 7, 8, 9}), (2, {0, 4, 5, 6, 7, 8, 9}), (3, set(range(10)) - {3})]
)
def test_ngrams_do_not_repeat(n, allowed):
    ids = [1, 2, 3, 4, 0, 2, 2, 1, 2]
    assert in_play(np.zeros(10, np.float32), SamplingParams(**OFF, no_repeat_ngram_size=n), ids) == allowed


def test_ngrams_need_a_sequence_that_holds_one():
    params = SamplingParams(**OFF, no_repeat_ngram_size=3)
    for ids in ([], [1], [1, 1]):
        assert in_play(np.zeros(4, np.float32), params, ids) == {0, 1, 2, 3}
    assert in_play(np.zeros(4, np.float32), params, [1, 1, 1]) == {0, 2, 3}


def test_bad_words_are_never_completed():
    params = SamplingParams(**OFF, bad_words=[[0], [1, 2], [3, 1, 3]])
    assert in_play(np.zeros(5, np.float32), params) == {1, 2, 3, 4}
    assert in_play(np.zeros(5, np.float32), params, [1]) == {1, 3, 4}
    assert in_play(np.zeros(5, np.float32), params, [3, 1]) == {1, 4}


def test_stop_ids_wait_for_the_least_lengths():
    def stops(n_ids, **fields):
        ids = np.zeros(n_ids, np.int32)
        return 2 in in_play(np.zeros(4, np.float32), SamplingParams(**OFF, **fields), ids, 3, stop_ids=frozenset([2]))

    assert [stops(n, min_tokens=2) for n in (3, 4, 5)] == [False, False, True]
    assert [stops(n, min_length=5) for n in (3, 4, 5)] == [False, False, True]


IDS = np.array([0, 1, 1, 1, 2, 3], np.int32)  # prompt 0 1 1, generated 1 2 3
PENALTIES = {
    # What each order takes off logits of 4: by a repeat penalty of 2, and by counts at 0.5 and 0.25.
    ("candle", "repeat"): [0, 0, 2, 2, 0],
    ("candle", "counts"): [0, 0.75, 0.75, 0.75, 0],
    ("transformers", "repeat"): [2, 2, 2, 2, 0],
    ("transformers", "counts"): [0.75, 1.75, 0.75, 0.75, 0],
    ("llama.cpp", "repeat"): [0, 0, 2, 2, 0],
    ("llama.cpp", "counts"): [0, 0, 0.75, 0.75, 0],
    ("openai", "repeat"): [0, 0, 2, 2, 0],
    ("openai", "counts"): [0, 0.75, 0.75, 0.75, 0],
}


@pytest.mark.parametrize(("order", "kind"), PENALTIES)
def test_each_order_penalises_its_own_window(order, kind):
    repeat = {"repeat_penalty": 2.0} if kind == "repeat" else OFF
    counts = {"frequency_penalty": 0.5, "presence_penalty": 0.25} if kind == "counts" else {}
    last_n = 64 if order == "transformers" else 2
    params = SamplingParams(**repeat, **counts, repeat_last_n=last_n, sampler_order=order)
    candidates = surviving(np.full(5, 4, np.float32), Choice(params, IDS, 3), build_steps(params))
    assert (4 - candidates.logits).tolist() == PENALTIES[order, kind]


def test_openais_penalties_follow_the_documented_formula():
    # mu[j] - c[j] * frequency - (c[j] > 0) * presence, c counted over the generated text, then temperature and top-p.
    params = SamplingParams(
        **OFF, frequency_penalty=0.7, presence_penalty=-0.4, temperature=0.6, top_p=0.8, sampler_order="openai"
    )
    rng = np.random.default_rng(2)
    for _ in range(20):
        mu, ids = rng.standard_normal(40).astype(np.float32), rng.integers(0, 10, 30).astype(np.int32)
        counts = np.bincount(ids[12:], minlength=40)
        changed = (mu - counts * 0.7 - (counts > 0) * -0.4) / 0.6
        p = np.exp(changed) / np.exp(changed).sum()
        order = np.argsort(-p)
        expected = set(order[: int(np.searchsorted(p[order].cumsum(), 0.8)) + 1].tolist())
        assert in_play(mu, params, ids, 12) == expected


def test_top_p_after_top_k_is_of_what_is_left_in_every_order_but_candles():
    logits = log(0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1)
    fields = {**OFF, "top_k": 3, "top_p": 0.55}
    assert in_play(logits, SamplingParams(**fields)) == {0, 1, 2}
    for order in ("transformers", "llama.cpp", "openai", ("top_k", "top_p")):
        kept = in_play(logits, SamplingParams(**fields, sampler_order=order))
        # 0.3 and 0.2 of 0.6 reach 0.55; transformers also keeps all that equal the third.
        assert kept == ({0, 1, 2} if order == "transformers" else {0, 1}), order


def test_the_order_of_temperature_and_top_p_matters():
    logits = log(0.5, 0.3, 0.15, 0.05)
    fields = {**OFF, "temperature": 3.0, "top_p": 0.7}
    assert in_play(logits, SamplingParams(**fields, sampler_order=("top_p", "temperature"))) == {0, 1}
    assert in_play(logits, SamplingParams(**fields, sampler_order=("temperature", "top_p"))) == {0, 1, 2}


def test_the_callers_function_stands_where_the_order_puts_it():
    seen = []

    def look(ids, logits):
        seen.append(logits.tolist())
        return logits

    fields = {**OFF, "logits_function": look, "temperature": 0.5}
    for order in ("candle", ("temperature", "logits_function")):
        in_play(np.array([1, 0.5], np.float32), SamplingParams(**fields, sampler_order=order))
    assert seen == [[1, 0.5], [0, -1]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampler_order": "gemma"}, "sampler_order: got 'gemma', expected one of candle, transformers, llama.cpp"),
        ({"sampler_order": ("top_k", "heat")}, "got 'heat', expected samplers among logit_bias, penalties"),
        ({"sampler_order": ("top_k", "top_k")}, "'top_k' stands in it twice"),
        ({"sampler_order": 3}, "sampler_order: got 3"),
        ({"sampler_order": ("penalties",), "top_k": 3}, "top_k would have an effect but has no place"),
        ({"sampler_order": ("top_k",)}, r"penalties would have an effect .* repeat_penalty=1"),
        ({"sampler_order": "transformers", "repeat_last_n": 5}, "repeat_last_n: got 5, but the order 'transformers'"),
        ({"mirostat": 2, "top_p": 0.5, "min_p": 0.1}, "mirostat: got top_p, min_p too"),
        ({"mirostat": 1, "temperature": 0}, "mirostat: got temperature 0"),
        ({"dynatemp_range": 1, "temperature": 0}, "dynatemp_range: got temperature 0"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens: got 5, expected at most max_tokens = 4"),
        ({"min_length": 5, "max_length": 4}, "min_length: got 5, expected at most max_length = 4"),
        ({"bad_words": [3]}, r"bad_words: got 3, expected texts or sequences of ids such as \[\[3\]\]"),
        ({"bad_words": [[]]}, r"bad_words: got \(\), expected non-empty"),
        ({"bad_words": [""]}, "bad_words: got ''"),
        ({"dry_breakers": [""]}, "dry_breakers: got ''"),
    ],
)
def test_what_cannot_be_together_is_refused(fields, message):
    with pytest.raises(RequestError, match=message):
        SamplingParams(**fields)


def run(engine):
    while engine.has_unfinished:
        engine.step()


def mirostat(max_tokens=40):
    return SamplingParams(**OFF, mirostat=2, mirostat_tau=2.0, mirostat_eta=0.5, seed=3, max_tokens=max_tokens)


def test_mirostat_remembers_in_the_sequence_whatever_happens_to_the_cache(fake_model, prompt):
    (alone,) = Engine(fake_model()).generate([prompt(60)], mirostat())
    assert len(set(alone.state.mus)) > 5
    engine = Engine(fake_model(), n_ctx=128, cache_tokens=128 + 64)
    crowd = engine.generate([prompt(60, 1), prompt(60), prompt(60, 2)], mirostat())
    assert crowd[1].output_ids == alone.output_ids
    model = fake_model(fail_at={9: KeyboardInterrupt()})
    engine = Engine(model)
    sequence = engine.add(prompt(60), mirostat())
    with pytest.raises(KeyboardInterrupt):
        run(engine)
    run(engine)
    assert sequence.output_ids == alone.output_ids
    assert sequence.state.mus == alone.state.mus


def test_a_sequence_ends_at_max_length_and_not_before_min_tokens(fake_model, prompt):
    model = fake_model()
    expected = model.expected_greedy(prompt(10), 20)
    engine = Engine(model, eos_ids=[expected[2]])
    (short,) = engine.generate([prompt(10)], SamplingParams(temperature=0, **OFF, max_length=12))
    assert (short.output_ids, short.finish_reason) == (expected[:2], "length")
    (long,) = engine.generate([prompt(10)], SamplingParams(temperature=0, **OFF, min_tokens=8, max_tokens=9))
    assert long.output_ids[:2] == expected[:2]
    assert expected[2] not in long.output_ids[:8]
    with pytest.raises(RequestError, match="max_length: got 10, expected more than the 10 tokens"):
        engine.add(prompt(10), SamplingParams(max_length=10))


@pytest.mark.parametrize(
    "fields", [{"bad_words": [[61]]}, {"suppress_token_ids": [61]}, {"dry_multiplier": 1.0, "dry_breakers": [61]}]
)
def test_ids_outside_the_vocabulary_are_refused(fake_model, fields):
    with pytest.raises(RequestError, match="got token id 61, expected 0 to 60"):
        Engine(fake_model()).add([1], SamplingParams(**fields))


def test_texts_need_an_llm(fake_model):
    for fields in ({"bad_words": "ice"}, {"dry_multiplier": 1.0}):
        with pytest.raises(RequestError, match="texts need an LLM"):
            Engine(fake_model()).add([1], SamplingParams(**fields))
    Engine(fake_model()).add([1], SamplingParams())


def test_an_llm_spells_bad_words_and_breakers(build_llm):
    llm = build_llm()
    params = SamplingParams(bad_words=["ab", [9]], dry_multiplier=1.0, dry_breakers=["b", 4])
    spelt = llm.speller.spelt(params)
    assert set(spelt.bad_words) == {(0, 1), (52, 0, 1), (9,)} or set(spelt.bad_words) == {(0, 1), (9,)}
    assert spelt.dry_breakers == (1, 4)
    free = llm.generate("ice", SamplingParams(seed=1, temperature=3.0, max_tokens=200))
    letters = {text: llm.tokenizer.encode(text) for text in "abcdefgh"}
    assert any(ids[0] in free.token_ids for ids in letters.values())
    bound = llm.generate("ice", SamplingParams(seed=1, temperature=3.0, max_tokens=200, bad_words=list(letters)))
    assert not any(ids[0] in bound.token_ids for ids in letters.values())


def test_a_bad_word_that_cannot_be_spelt_is_refused(build_llm):
    with pytest.raises(RequestError, match="no ids that spell '日本'"):
        build_llm().generate("ice", SamplingParams(bad_words=["日本"]))
