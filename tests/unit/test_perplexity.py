import threading

import numpy as np
import pytest
from tiny_models import random_checkpoint, tiny_config, write_gguf

from phlite import perplexity
from phlite.engine import SamplingParams
from phlite.errors import ModelFileError, RequestError
from phlite.llm import LLM
from phlite.perplexity import cut_windows, negative_log_likelihoods

TEXT = list(range(100))


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    return LLM.load(str(write_gguf(path, random_checkpoint(tiny_config(), seed=3))), threads=2, n_ctx=512)


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(4).integers(8, 512, 700).tolist()


def test_windows_lie_side_by_side_and_the_rest_is_left_out():
    windows = cut_windows(TEXT, n_ctx=32)
    assert windows.token_ids.tolist() == [TEXT[0:32], TEXT[32:64], TEXT[64:96]]
    assert windows.first_scored == 17


def test_a_begin_of_text_token_replaces_the_first_of_every_window():
    windows = cut_windows(TEXT, n_ctx=32, bos_id=7)
    assert windows.token_ids[:, 0].tolist() == [7, 7, 7]
    assert windows.token_ids[1, 1:].tolist() == TEXT[33:64]


def test_strided_windows_score_every_token_behind_the_first_window_once():
    windows = cut_windows(TEXT, n_ctx=32, stride=10, bos_id=7)
    scored = windows.token_ids[:, windows.first_scored :]
    assert scored.reshape(-1).tolist() == TEXT[22 : 22 + scored.size]
    assert windows.token_ids[-1, -1] == 91  # a window of tokens 70 to 101 would need two more


def test_windows_can_be_limited():
    assert len(cut_windows(TEXT, n_ctx=32, max_windows=2).token_ids) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_ctx": 51}, "the text has 100 tokens, expected at least 102"),
        ({"n_ctx": 7}, "n_ctx: got 7"),
        ({"n_ctx": 16, "stride": 16}, "stride: got 16, expected 1 to 15"),
        ({"n_ctx": 16, "stride": 0}, "stride: got 0"),
        ({"n_ctx": 16, "max_windows": 0}, "max_windows: got 0"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(RequestError, match=message):
        cut_windows(TEXT, **options)


def test_a_window_beyond_the_models_context_is_refused(llm, ids):
    with pytest.raises(RequestError, match="expected at most 4096, the model's longest context"):
        llm.perplexity(ids, n_ctx=4097)


def test_equal_logits_give_the_logarithm_of_the_vocabulary():
    nll = negative_log_likelihoods(np.full((2, 50), 1e4, np.float32), np.array([0, 49], np.int32))
    np.testing.assert_allclose(nll, np.log(50), rtol=1e-14)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_error(bad):
    logits = np.zeros((1, 5), np.float32)
    logits[0, 2] = bad
    with np.errstate(invalid="ignore"), pytest.raises(ModelFileError, match="not finite"):
        negative_log_likelihoods(logits, np.array([1], np.int32))


@pytest.mark.parametrize(("batch_tokens", "logit_bytes"), [(1, 1), (60, 1 << 20), (200, 100 * 512 * 4), (10**6, 10**9)])
def test_the_figure_does_not_depend_on_how_windows_are_batched(llm, ids, monkeypatch, batch_tokens, logit_bytes):
    """The logits are the same bits; only the sum over tokens is grouped otherwise."""
    expected = llm.perplexity(ids, n_ctx=100)
    monkeypatch.setattr(perplexity, "BATCH_TOKENS", batch_tokens)
    monkeypatch.setattr(perplexity, "LOGIT_BYTES", logit_bytes)
    assert llm.perplexity(ids, n_ctx=100).mean_nll == pytest.approx(expected.mean_nll, rel=1e-14)


def test_running_figures_count_up_to_the_result(llm, ids, monkeypatch):
    monkeypatch.setattr(perplexity, "BATCH_TOKENS", 200)
    seen = []
    result = llm.perplexity(ids, n_ctx=100, on_progress=seen.append)
    assert [(one.n_windows, one.n_windows_all) for one in seen] == [(2, 7), (4, 7), (6, 7), (7, 7)]
    assert seen[-1] == result
    assert seen[0].value == llm.perplexity(ids, n_ctx=100, max_windows=2).value


def test_it_measures_beside_a_thread_that_generates(llm, ids):
    params = SamplingParams.greedy(max_tokens=200, ignore_eos=True)
    alone, expected = llm.generate(ids[:20], params), llm.perplexity(ids, n_ctx=64)
    answers = []
    other = threading.Thread(target=lambda: answers.append(llm.generate(ids[:20], params)))
    other.start()
    figures = [llm.perplexity(ids, n_ctx=64) for _ in range(3)]
    other.join()
    assert figures == [expected] * 3
    assert answers[0].token_ids == alone.token_ids
