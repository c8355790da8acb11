"""From a file to an answer: load options, errors and what is logged."""

import logging

import numpy as np
import pytest
from tiny_models import random_checkpoint, tiny_config, write_gguf

import phlite
from phlite.errors import DownloadError, RequestError


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    config = tiny_config(max_position_embeddings=512, original_max_position_embeddings=512)
    return str(write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", random_checkpoint(config, "Q8_0")))


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
