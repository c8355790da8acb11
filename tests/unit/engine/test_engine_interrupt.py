"""Ctrl-C may come between any two lines of a step; no id may be lost or changed by it."""

import sys
from pathlib import Path

import numpy as np
import pytest

import phlite.engine
from phlite.engine import Engine, SamplingParams

ENGINE_FOLDER = str(Path(phlite.engine.__file__).parent)


class InterruptAtLine:
    """Raises KeyboardInterrupt before the n-th line that runs inside phlite.engine."""

    def __init__(self, n: int) -> None:
        self.n_left = n

    def __call__(self, frame, event, arg):
        if not frame.f_code.co_filename.startswith(ENGINE_FOLDER):
            return None
        if event == "line":
            self.n_left -= 1
            if self.n_left == 0:
                raise KeyboardInterrupt
        return self

    def __enter__(self):
        self.outer = sys.gettrace()
        sys.settrace(self)
        return self

    def __exit__(self, *error) -> None:
        sys.settrace(self.outer)


def params(seed):
    return SamplingParams(seed=seed, max_tokens=4 + seed, logprobs=1)


def repeating(ids, logits):
    """Go on as after the last occurrence of the newest id, so that guesses are right."""
    earlier = np.flatnonzero(ids[:-1] == ids[-1])
    result = logits.copy()
    result[ids[earlier[-1:] + 1]] += 20.0
    return result


def repeating_params(seed):
    return SamplingParams(seed=seed, max_tokens=12 + seed, mirostat=2, logits_function=repeating, repeat_penalty=1.0)


def start(model, prompt, params=params, cache_tokens=192):
    engine = Engine(model, n_ctx=96, cache_tokens=cache_tokens)
    return engine, [engine.add(prompt(62 + i, i), params(i)) for i in range(3)]


def run(engine):
    while engine.has_unfinished:
        engine.step()


def test_an_interrupt_before_any_line_of_a_step_loses_and_changes_nothing(fake_model, prompt, assert_all_freed):
    engine, sequences = start(fake_model(short=64), prompt)
    run(engine)
    expected = [sequence.output_ids for sequence in sequences]
    n_line, n_interrupted = 0, 0
    while True:
        n_line += 7
        engine, sequences = start(fake_model(short=64), prompt)
        try:
            with InterruptAtLine(n_line):
                run(engine)
        except KeyboardInterrupt:
            n_interrupted += 1
        else:
            break
        run(engine)
        assert [sequence.output_ids for sequence in sequences] == expected, f"interrupted at line {n_line}"
        assert [len(sequence.logprobs) for sequence in sequences] == [len(ids) for ids in expected]
        assert_all_freed(engine)
    assert n_interrupted > 100


def test_an_interrupt_while_guesses_are_checked_loses_and_changes_nothing(fake_model, prompt, assert_all_freed):
    model = fake_model(short=68)
    engine, sequences = start(model, prompt, repeating_params)
    run(engine)
    expected = [(sequence.output_ids, sequence.state.mus) for sequence in sequences]
    assert any(len(batch.logit_rows) > len(batch.seq_lens) for batch in model.batches)
    for n_line in range(3, 10_000, 53):
        engine, sequences = start(fake_model(short=68), prompt, repeating_params)
        try:
            with InterruptAtLine(n_line):
                run(engine)
        except KeyboardInterrupt:
            run(engine)
        else:
            break
        assert [(one.output_ids, one.state.mus) for one in sequences] == expected, f"interrupted at line {n_line}"
        assert_all_freed(engine)
    assert n_line > 2000


def test_an_interrupt_before_any_line_of_a_beam_search_changes_no_hypothesis(fake_model, prompt, assert_all_freed):
    def beams(seed):
        return SamplingParams.beam_search(2 + seed % 2, max_tokens=5 + seed, num_return_sequences=2)

    engine, sequences = start(fake_model(short=66), prompt, beams, cache_tokens=640)
    run(engine)
    expected = [sequence.hypotheses for sequence in sequences]
    for n_line in range(5, 20_000, 97):
        engine, sequences = start(fake_model(short=66), prompt, beams, cache_tokens=640)
        try:
            with InterruptAtLine(n_line):
                run(engine)
        except KeyboardInterrupt:
            run(engine)
        else:
            break
        assert [sequence.hypotheses for sequence in sequences] == expected, f"interrupted at line {n_line}"
        assert [sequence.output_ids for sequence in sequences] == [list(best[0].token_ids) for best in expected]
        assert_all_freed(engine)
    assert n_line > 2000


def test_an_interrupted_generate_call_leaves_nothing_behind(fake_model, prompt, assert_all_freed):
    model = fake_model(fail_at={3: KeyboardInterrupt()})
    engine = Engine(model)
    with pytest.raises(KeyboardInterrupt):
        engine.generate([prompt(10), prompt(20)], params(1))
    assert_all_freed(engine)
