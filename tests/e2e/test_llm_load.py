"""From a file to an answer: load options, errors and what is logged."""

import logging

import numpy as np
import pytest
from tiny_models import random_checkpoint, tiny_config, write_gguf

import phlite
from phlite.errors import DownloadError, ModelFileError, RequestError


def write_model(folder, **options):
    config = tiny_config(max_position_embeddings=512, original_max_position_embeddings=512)
    return str(write_gguf(folder / "tiny.gguf", random_checkpoint(config, "Q8_0"), **options))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def greedy_path(tmp_path_factory):
    """A file that asks to be sampled with temperature 0 and without a repeat penalty."""
    return write_model(tmp_path_factory.mktemp("greedy"), sampling={"temp": 0.0, "penalty_repeat": 1.0})


def test_a_loaded_model_chats_generates_and_streams(path):
    llm = phlite.load(path, threads=1)
    answer = llm.chat("Hello", seed=3, max_tokens=20)
    assert answer.text == "".join(llm.chat_stream("Hello", seed=3, max_tokens=20))
    assert answer.completion_tokens == 20 or answer.finish_reason == "stop"
    assert llm.generate("Hello", seed=3, max_tokens=5).prompt_tokens < answer.prompt_tokens
    assert answer.timings.load_ms == llm.load_ms > 0


def test_the_context_and_the_threads_are_logged_once(path, caplog):
    with caplog.at_level(logging.INFO, logger="phlite"):
        llm = phlite.load(path, n_ctx=300, threads=2, kv_type="q8_0")
        llm.generate("Hello", max_tokens=5)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "phlite"]
    assert "n_ctx 300 (the model's limit is 512), cache q8_0" in line
    assert "2 threads" in line
    assert llm.n_ctx == 300


def test_the_default_context_is_the_models(path):
    assert phlite.load(path, threads=1).n_ctx == 512


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads: got 0, expected 1 to 1024"),
        ({"n_ctx": 0}, "n_ctx: got 0"),
        ({"n_ctx": 513}, "n_ctx: got 513, expected 2 to 512"),
        ({"kv_type": "f64"}, "kv_type: got 'f64', expected one of f16, q8_0, f32"),
    ],
)
def test_a_load_option_out_of_range_is_refused_by_name(path, options, message):
    with pytest.raises(RequestError, match=message):
        phlite.load(path, **options)


def test_a_context_beyond_the_models_is_refused_without_a_word_on_memory(path, monkeypatch, caplog):
    monkeypatch.setattr("phlite.llm.available_memory_bytes", lambda: 1 << 16)
    with pytest.raises(RequestError, match="n_ctx"):
        phlite.load(path, n_ctx=513)
    assert caplog.records == []


def test_a_cache_of_most_of_the_memory_is_warned_of(path, monkeypatch, caplog):
    monkeypatch.setattr("phlite.llm.available_memory_bytes", lambda: 1 << 16)
    phlite.load(path, n_ctx=512)
    assert "the cache for n_ctx 512 takes more than half of the free memory" in caplog.text


def test_what_the_file_recommends_is_used_where_the_caller_does_not_say(greedy_path):
    llm = phlite.load(greedy_path, threads=1)
    assert (llm.default_params.temperature, llm.default_params.repeat_penalty) == (0.0, 1.0)
    greedy = llm.generate("Hello", phlite.SamplingParams.greedy(max_tokens=12))
    assert llm.generate("Hello", max_tokens=12).token_ids == greedy.token_ids
    assert "".join(llm.stream("Hello", max_tokens=12)) == greedy.text
    chat = llm.chat("Hello", phlite.SamplingParams.greedy(max_tokens=12))
    assert llm.chat("Hello", max_tokens=12).token_ids == chat.token_ids


def test_the_caller_replaces_single_fields_of_what_the_file_recommends(greedy_path):
    llm = phlite.load(greedy_path, threads=1)
    warm = llm.generate("Hello", temperature=1.0, seed=5, max_tokens=12)
    same = phlite.SamplingParams(temperature=1.0, repeat_penalty=1.0, seed=5, max_tokens=12)
    assert warm.token_ids == llm.generate("Hello", same).token_ids


def test_parameters_of_the_caller_replace_all_that_the_file_recommends(greedy_path, path):
    params = phlite.SamplingParams(seed=5, max_tokens=12)
    asked = phlite.load(greedy_path, threads=1).generate("Hello", params)
    assert asked.token_ids == phlite.load(path, threads=1).generate("Hello", params).token_ids


def test_a_recommendation_without_sense_is_refused(tmp_path):
    broken = write_model(tmp_path, sampling={"temp": -0.5})
    with pytest.raises(ModelFileError, match=r"general\.sampling\.temp': temperature: got -0\.5"):
        phlite.load(broken)


def test_a_file_without_a_vocabulary_is_refused_whatever_lies_beside_it(tmp_path):
    path = write_model(tmp_path, vocabulary=False)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFileError, match="tokenizer"):
        phlite.load(path)


def test_options_are_checked_before_a_model_is_looked_for():
    with pytest.raises(RequestError, match="threads"):
        phlite.load("no/such-model", threads=-1)


def test_a_missing_file_is_a_download_error(tmp_path):
    with pytest.raises(DownloadError, match=r"nothing\.gguf"):
        phlite.load(str(tmp_path / "nothing.gguf"))


def test_many_prompts_of_a_real_model_equal_each_alone(path):
    llm = phlite.load(path, threads=2)
    prompts = [np.random.default_rng(i).integers(8, 500, 5 + 40 * i).tolist() for i in range(5)]
    together = llm.generate(prompts, seed=1, max_tokens=30)
    assert [one.token_ids for one in together] == [
        llm.generate(ids, seed=1, max_tokens=30).token_ids for ids in prompts
    ]
