"""A constraint over ids: nothing else comes out, whatever samplers, functions, batches and interrupts do."""

from __future__ import annotations

import numpy as np
import pytest

from phlite.constrained import Constraint
from phlite.engine import Engine, SamplingParams
from phlite.errors import RequestError

END = 60
PLANS = [(1, 2, 3, 4, 5, 6), (1, 2, 9), (1, 2, 9, 9, 9, 40), (33, 7, 7, 7)]


class Plans:
    """One of some sequences of ids, as a TokenConstraint."""

    def __init__(self, plans, done=(), fail_after=None):
        self.plans, self.done, self.fail_after = plans, list(done), fail_after

    @property
    def is_complete(self):
        return tuple(self.done) in self.plans

    def mask(self):
        if self.fail_after is not None and len(self.done) >= self.fail_after:
            raise RequestError("too complex")
        n = len(self.done)
        flags = np.zeros(64, np.bool_)
        flags[[plan[n] for plan in self.plans if len(plan) > n and list(plan[:n]) == self.done]] = True
        return np.packbits(flags, bitorder="little").view("<u4")

    def accept(self, token_id):
        if not self.mask()[token_id // 32] >> (token_id % 32) & 1:
            raise RequestError(f"token {token_id} is not allowed")
        self.done.append(token_id)

    def rollback(self, n_tokens):
        del self.done[len(self.done) - n_tokens :]

    def clone(self):
        return Plans(self.plans, self.done, self.fail_after)


def text_ids(sequence):
    return tuple(token_id for token_id in sequence.output_ids if token_id != END)


def run(engine):
    while engine.has_unfinished:
        engine.step()


@pytest.mark.parametrize("temperature", [0.0, 0.7, 50.0])
@pytest.mark.parametrize("chunk", [1, 4, 512])
def test_only_what_the_constraint_allows_comes_out(fake_model, prompt, temperature, chunk, assert_all_freed):
    engine = Engine(fake_model(), eos_ids=[END], max_batch_tokens=chunk)
    params = [SamplingParams(temperature=temperature, seed=seed, top_k=3) for seed in range(20)]
    sequences = [engine.add(prompt(5 + i, i), one, constraint=Plans(PLANS)) for i, one in enumerate(params)]
    run(engine)
    assert {text_ids(sequence) for sequence in sequences} <= set(PLANS)
    assert {sequence.finish_reason for sequence in sequences} == {"stop"}
    if temperature:
        assert len({text_ids(sequence) for sequence in sequences}) == len(PLANS)
    assert_all_freed(engine)


def test_a_neighbour_without_a_constraint_gets_what_it_gets_alone(fake_model, prompt):
    params = SamplingParams(seed=3, max_tokens=12)
    alone = Engine(fake_model()).generate([prompt(9)], params)[0].output_ids
    engine = Engine(fake_model(), max_batch_tokens=7)
    free = engine.add(prompt(9), params)
    bound = engine.add(prompt(9, 1), params, constraint=Plans([(1, 2, 3, 4, 5, 6)]))
    run(engine)
    assert free.output_ids == alone
    assert bound.output_ids == [1, 2, 3, 4, 5, 6]


def test_what_a_function_or_a_bias_demands_stays_forbidden(fake_model, prompt):
    def demand_seventeen(ids, logits):
        changed = np.zeros_like(logits)
        changed[17] = 1e9
        return changed

    for temperature in (0.0, 1.0):
        params = SamplingParams(
            temperature=temperature, seed=1, logits_function=demand_seventeen, logit_bias={18: 1e9}, repeat_penalty=9.0
        )
        engine = Engine(fake_model(), eos_ids=[END])
        sequence = engine.add(prompt(4), params, constraint=Plans(PLANS))
        run(engine)
        assert sequence.error is None
        assert text_ids(sequence) in PLANS


def test_a_function_that_scribbles_on_its_argument_frees_nothing(fake_model, prompt):
    def scribble(ids, logits):
        logits[:] = 0.0
        logits[17] = 1e9
        return logits

    engine = Engine(fake_model(), eos_ids=[END])
    sequence = engine.add(prompt(4), SamplingParams(seed=1, logits_function=scribble), constraint=Plans(PLANS))
    run(engine)
    assert text_ids(sequence) in PLANS


def test_a_bias_that_forbids_all_that_is_allowed_is_an_error_of_this_request_alone(fake_model, prompt):
    engine = Engine(fake_model(), eos_ids=[END])
    bias = {1: -np.inf, 33: -np.inf}
    stuck = engine.add(prompt(4), SamplingParams(logit_bias=bias), constraint=Plans(PLANS))
    other = engine.add(prompt(4), SamplingParams(max_tokens=5, ignore_eos=True))
    run(engine)
    assert isinstance(stuck.error, RequestError)
    assert (stuck.finish_reason, stuck.output_ids) == ("aborted", [])
    assert len(other.output_ids) == 5


def test_a_constraint_that_gives_up_ends_its_sequence_with_the_error(fake_model, prompt, assert_all_freed):
    engine = Engine(fake_model(), eos_ids=[END])
    sequence = engine.add(prompt(4), SamplingParams(), constraint=Plans([(1, 2, 3, 4)], fail_after=2))
    other = engine.add(prompt(4), SamplingParams(max_tokens=5, ignore_eos=True))
    run(engine)
    assert str(sequence.error) == "too complex"
    assert sequence.finish_reason == "aborted"
    assert len(other.output_ids) == 5
    assert_all_freed(engine)


def test_no_token_that_leads_on_is_an_error_not_an_end(fake_model, prompt):
    engine = Engine(fake_model(), eos_ids=[END])
    sequence = engine.add(prompt(4), SamplingParams(), constraint=Plans([]))
    run(engine)
    assert "unfinished" in str(sequence.error)
    assert sequence.output_ids == []


def test_end_tokens_come_only_where_the_text_is_complete(fake_model, prompt):
    wants_to_end = SamplingParams(temperature=0.0, logit_bias={END: 1e6, 9: 1e5})
    engine = Engine(fake_model(), eos_ids=[END])
    sequence = engine.add(prompt(4), wants_to_end, constraint=Plans(PLANS[:3]))
    run(engine)
    assert sequence.output_ids == [1, 2, 9, END]


def test_text_that_nothing_may_follow_ends_without_another_forward_pass(fake_model, prompt):
    model = fake_model()
    engine = Engine(model, eos_ids=[END])
    sequence = engine.add(prompt(4), SamplingParams(), constraint=Plans([(1,), (2,)]))
    run(engine)
    assert (len(sequence.output_ids), sequence.finish_reason, len(model.batches)) == (1, "stop", 1)


def test_forced_tokens_take_one_forward_pass_together(fake_model, prompt):
    model = fake_model()
    engine = Engine(model, eos_ids=[END])
    sequence = engine.add(prompt(4), SamplingParams(seed=1), constraint=Plans([(1, 2, 3, 4, 5, 6), (1, 2, 3, 8, 9)]))
    outputs = []
    while engine.has_unfinished:
        outputs.append([output.token_id for output in engine.step()])
    assert outputs[0] == [1, 2, 3]
    assert [len(batch.token_ids) for batch in model.batches] == [4, 3]
    assert [*outputs[0], *outputs[1]] == sequence.output_ids
    assert tuple(sequence.output_ids) in {(1, 2, 3, 4, 5, 6), (1, 2, 3, 8, 9)}


def test_log_probabilities_are_there_for_forced_tokens_too(fake_model, prompt):
    engine = Engine(fake_model())
    sequence = engine.add(prompt(4), SamplingParams(logprobs=1), constraint=Plans([(1, 2, 3)]))
    plain = engine.add(prompt(4), SamplingParams(), constraint=Plans([(1, 2, 3)]))
    run(engine)
    assert sequence.output_ids == plain.output_ids == [1, 2, 3]
    assert [one.token_id for one in sequence.logprobs] == [1, 2, 3]


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 4])
def test_forced_tokens_stop_at_the_limit(fake_model, prompt, max_tokens):
    engine = Engine(fake_model())
    sequence = engine.add(prompt(4), SamplingParams(max_tokens=max_tokens), constraint=Plans([(1, 2, 3, 4, 5)]))
    run(engine)
    assert (sequence.output_ids, sequence.finish_reason) == ([1, 2, 3, 4, 5][:max_tokens], "length")


def test_the_same_ids_come_whatever_the_batch_and_the_cache(fake_model, prompt):
    def all_ids(**options):
        engine = Engine(fake_model(), eos_ids=[END], n_ctx=96, **options)
        sequences = [engine.add(prompt(50 + i, i), SamplingParams(seed=i), constraint=Plans(PLANS)) for i in range(6)]
        run(engine)
        return [sequence.output_ids for sequence in sequences]

    expected = all_ids()
    assert all_ids(max_batch_tokens=3) == expected
    assert all_ids(max_sequences=1) == expected
    assert all_ids(cache_tokens=128) == expected


def test_an_interrupt_anywhere_changes_no_id(fake_model, prompt, assert_all_freed):
    class InterruptingPlans(Plans):
        n_left = 0

        def accept(self, token_id):
            if InterruptingPlans.n_left == 1:
                InterruptingPlans.n_left = 0
                super().accept(token_id)
                raise KeyboardInterrupt  # the constraint has gone on, the output has not
            InterruptingPlans.n_left -= 1
            super().accept(token_id)

        def clone(self):
            return InterruptingPlans(self.plans, self.done)

    def start():
        engine = Engine(fake_model(), eos_ids=[END])
        params = [SamplingParams(seed=seed) for seed in range(3)]
        return engine, [engine.add(prompt(6, one.seed), one, constraint=InterruptingPlans(PLANS)) for one in params]

    engine, sequences = start()
    run(engine)
    expected = [sequence.output_ids for sequence in sequences]
    for n in range(1, len(sum(map(text_ids, sequences), ())) + 1):
        InterruptingPlans.n_left = n
        engine, sequences = start()
        with pytest.raises(KeyboardInterrupt):
            run(engine)
        run(engine)
        assert [sequence.output_ids for sequence in sequences] == expected, f"interrupted at accept {n}"
        assert_all_freed(engine)


def test_the_caller_keeps_the_constraint_it_gave(fake_model, prompt):
    plans = Plans(PLANS)
    engine = Engine(fake_model(), eos_ids=[END])
    first = engine.add(prompt(5), SamplingParams(seed=1), constraint=plans)
    second = engine.add(prompt(5), SamplingParams(seed=1), constraint=plans)
    run(engine)
    assert first.output_ids == second.output_ids
    assert plans.done == []


def test_the_engine_alone_refuses_a_constraint_it_cannot_compile(fake_model, prompt):
    params = SamplingParams(constraint=Constraint.choice(["a"]))
    with pytest.raises(RequestError, match=r"LLM\.build_constraint"):
        Engine(fake_model()).add(prompt(4), params)


def test_params_refuse_what_is_no_constraint():
    with pytest.raises(RequestError, match=r"constraint: got dict, expected what Constraint\.json_schema"):
        SamplingParams(constraint={"type": "object"})


def test_beam_search_refuses_what_it_could_not_keep(fake_model, prompt):
    with pytest.raises(RequestError, match="constraint: got num_beams above 1"):
        SamplingParams(temperature=0.0, repeat_penalty=1.0, num_beams=2, constraint=Constraint.choice(["a"]))
    beams = SamplingParams(temperature=0.0, repeat_penalty=1.0, num_beams=2)
    with pytest.raises(RequestError, match="constraint: got num_beams above 1"):
        Engine(fake_model()).add(prompt(4), beams, constraint=Plans(PLANS))


def test_guesses_from_the_prompt_change_nothing(fake_model):
    prompt_ids = [1, 2, 3, 4, 5, 6, 1, 2, 9, 9, 33, 7, 7, 7, 1, 2]
    for seed in range(6):
        both = []
        for n in (0, 15):
            engine = Engine(fake_model(), eos_ids=[END])
            params = SamplingParams(seed=seed, prompt_lookup_num_tokens=n, logprobs=0)
            both.append(engine.add(prompt_ids, params, constraint=Plans(PLANS)))
            run(engine)
        assert both[0].output_ids == both[1].output_ids
