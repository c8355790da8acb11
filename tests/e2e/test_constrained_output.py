"""The embedded model, which knows nothing of JSON: an outside judge finds each finished answer valid."""

from __future__ import annotations

import asyncio
import json
import random
import re
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import numpy as np
import pytest
from e2e.random_schemas import random_root

import phlite
from phlite import Constraint, SamplingParams
from phlite.errors import RequestError

PROMPT = "Write a haiku about ice hockey"
TEMPERATURES = (0.0, 1.0, 9.0)

# jsonschema's own check of "time" takes no offset; this is RFC 3339's full-time.
FORMATS = jsonschema.FormatChecker(["date", "ipv4", "uuid", "email"])
TIME = r"([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)"


@FORMATS.checks("time")
def is_time(value: object) -> bool:
    return not isinstance(value, str) or re.fullmatch(TIME, value) is not None


@FORMATS.checks("date-time", raises=ValueError)
def is_date_time(value: object) -> bool:
    if not isinstance(value, str):
        return True
    date, time = value[:10], value[11:]
    return value[10] in "Tt " and FORMATS.conforms(date, "date") and is_time(time)


@pytest.fixture(scope="module")
def llm():
    return phlite.load("haiku", n_ctx=512, threads=1)


def check_json(text, schema):
    value = json.loads(text, parse_constant=pytest.fail)
    jsonschema.Draft202012Validator(schema, format_checker=FORMATS).validate(value)


def check_schemas(llm, seeds, temperatures, methods):
    """Generate and check; returns how many answers were finished and how many not."""
    n_finished = n_unfinished = 0
    for seed in seeds:
        schema = random_root(random.Random(seed))
        jsonschema.Draft202012Validator.check_schema(schema)
        constraint = Constraint.json_schema(schema)
        for temperature in temperatures:
            params = SamplingParams(temperature=temperature, constraint=constraint, seed=seed, max_tokens=150)
            for method in methods:
                answer = getattr(llm, method)(PROMPT, params)
                if answer.constraint_satisfied:
                    check_json(answer.text, schema)
                    n_finished += 1
                else:
                    assert (answer.finish_reason, answer.completion_tokens) == ("length", 150)
                    with pytest.raises(RequestError, match="unfinished"):
                        answer.parse()
                    n_unfinished += 1
    return n_finished, n_unfinished


def test_answers_to_random_schemas_are_valid_or_reported_as_unfinished(llm):
    n_finished, n_unfinished = check_schemas(llm, range(20), TEMPERATURES, ["chat", "generate"])
    assert n_finished > n_unfinished > 0


@pytest.mark.slow
def test_answers_to_hundreds_of_random_schemas_are_valid(llm):
    n_finished, _ = check_schemas(llm, range(20, 200), TEMPERATURES, ["chat", "generate"])
    assert n_finished > 400


@pytest.mark.parametrize(
    "pattern",
    [
        r"\d{3}-[a-f]{2,4}",
        r"(yes|no)(, (maybe|surely)){0,2}",
        r"[^a-z]{5}",
        r" ?[A-Z][a-z]{0,9} {2}x",
        r"🏒{2}|[日本語]{3}é",
        r"(a|b)*c(a|b){7}",
        "",
        r"\n\t[\x00-\x1f]{2}\\\"/",
        r"(?i)phi-(3|3\.5)",
        r".{4}",
    ],
)
def test_answers_match_the_whole_pattern(llm, pattern):
    for seed in range(6):
        params = SamplingParams(temperature=TEMPERATURES[seed % 3], constraint=Constraint.regex(pattern), seed=seed)
        for answer in (llm.chat(PROMPT, params), llm.generate(PROMPT, params)):
            assert re.fullmatch(pattern, answer.text) or answer.constraint_satisfied is False


def test_answers_are_one_of_the_choices_exactly(llm):
    choices = ["red", "red wine", " red", "Rot", "🏒", "日本", "a\nb", '"', "</s>", "<|end|>"]
    params = [SamplingParams(temperature=9.0, constraint=Constraint.choice(choices), seed=seed) for seed in range(60)]
    for method in (llm.chat, llm.generate):
        answers = [method(PROMPT, one) for one in params]
        assert all(answer.constraint_satisfied for answer in answers)
        texts = {answer.text for answer in answers}
        assert texts <= set(choices)
        assert len(texts) > 5


def test_answers_follow_a_grammar(llm):
    grammar = Constraint.grammar('start: sum\nsum: term ("+" term)*\nterm: /[0-9]{1,3}/ | "(" sum ")"')
    answers = [
        llm.chat(PROMPT, SamplingParams(temperature=3.0, constraint=grammar, seed=seed, max_tokens=40))
        for seed in range(20)
    ]
    assert all(re.fullmatch(r"[0-9+()]*", answer.text) for answer in answers)
    finished = [answer.text for answer in answers if answer.constraint_satisfied]
    assert len(finished) > 3
    for text in finished:
        assert isinstance(eval(re.sub(r"\b0+(?=\d)", "", text)), int)


def test_the_ids_do_not_depend_on_batch_threads_or_the_way_of_asking(llm):
    schema = {"type": "object", "properties": {"season": {"enum": ["spring", "winter"]}, "n": {"type": "integer"}}}
    schema |= {"required": ["season", "n"], "additionalProperties": False}
    params = [SamplingParams(constraint=Constraint.json_schema(schema), seed=seed, max_tokens=60) for seed in range(8)]
    alone = [llm.chat(PROMPT, one).token_ids for one in params]
    with ThreadPoolExecutor(8) as threads:
        assert [one.token_ids for one in threads.map(lambda one: llm.chat(PROMPT, one), params)] == alone

    async def together():
        return await asyncio.gather(*(llm.achat(PROMPT, one) for one in params))

    assert [one.token_ids for one in asyncio.run(together())] == alone
    for other in (phlite.load("haiku", threads=2), phlite.load("haiku", threads=3)):
        assert [other.chat(PROMPT, one).token_ids for one in params] == alone


def test_unicode_split_over_tokens_comes_out_whole(llm):
    texts = ["Zürich", "🏒🏒", "Ω≈ç√", "日本語", "e\u0301"]
    stream = llm.chat_stream(PROMPT, constraint=Constraint.json_schema({"const": texts}))
    assert "".join(stream) == json.dumps(texts, ensure_ascii=False)
    assert stream.completion.parse() == texts


def test_without_a_constraint_nothing_is_claimed(llm):
    answer = llm.chat(PROMPT, max_tokens=3)
    assert answer.constraint_satisfied is None
    with pytest.raises(RequestError, match="the answer is not JSON"):
        answer.parse()


def test_a_text_complete_at_the_limit_satisfies_and_one_that_is_cut_does_not(llm):
    params = SamplingParams(constraint=Constraint.regex("[0-9]+"), ignore_eos=True, max_tokens=3)
    answer = llm.generate(PROMPT, params)
    assert (answer.finish_reason, answer.constraint_satisfied) == ("length", True)
    answer = llm.generate(PROMPT, constraint=Constraint.regex("[0-9]{50}"), max_tokens=3)
    assert (answer.finish_reason, answer.constraint_satisfied) == ("length", False)


def test_a_stop_string_that_cuts_the_text_is_reported(llm):
    answer = llm.chat(PROMPT, constraint=Constraint.choice(["one two three"]), stop="two")
    assert (answer.text, answer.finish_reason, answer.constraint_satisfied) == ("one ", "stop", False)


def test_a_stream_closed_early_claims_nothing(llm):
    stream = llm.chat_stream(PROMPT, constraint=Constraint.regex("[a-z]{40}"))
    next(stream)
    stream.close()
    assert (stream.completion.finish_reason, stream.completion.constraint_satisfied) == ("aborted", False)


def test_a_function_cannot_free_what_the_constraint_forbids(llm):
    def wants_letters(ids, logits):
        wanted = np.full_like(logits, -50.0)
        wanted[[llm.tokenizer.encode("a")[0], *llm.tokenizer.stop_ids]] = 50.0
        return wanted

    params = SamplingParams(constraint=Constraint.regex("[0-9]{5}"), logits_function=wants_letters, seed=1)
    assert re.fullmatch("[0-9]{5}", llm.chat(PROMPT, params).text)


def test_an_answer_becomes_an_object_of_a_model_class(llm):
    class Goal:
        def __init__(self, minute):
            self.minute = minute

        @classmethod
        def model_json_schema(cls):
            minute = {"type": "integer", "minimum": 0, "maximum": 60}
            return {"properties": {"minute": minute}, "required": ["minute"], "additionalProperties": False}

        @classmethod
        def model_validate_json(cls, text):
            return cls(**json.loads(text))

    schema = {"type": "object", **Goal.model_json_schema()}
    goal = llm.chat(PROMPT, constraint=Constraint.json_schema(schema), seed=2).parse(Goal)
    assert isinstance(goal, Goal)
    assert 0 <= goal.minute <= 60


def test_numbers_of_any_size_are_numbers(llm):
    constraint = Constraint.json_schema({"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3})
    for seed in range(10):
        answer = llm.chat(PROMPT, SamplingParams(temperature=9.0, constraint=constraint, seed=seed, max_tokens=120))
        if answer.constraint_satisfied:
            assert all(isinstance(value, (int, float)) for value in answer.parse())
