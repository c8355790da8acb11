import gc

import pytest

import phlite.llm
from phlite.engine import SamplingParams
from phlite.errors import ContextLengthError, RequestError
from phlite.llm import build_engine

GREEDY = SamplingParams.greedy(max_tokens=30)


def test_generate_gives_the_text_of_the_engines_ids(build_llm, fake_model, assert_all_freed):
    llm = build_llm()
    completion = llm.generate("hockey", GREEDY)
    prompt_ids = llm.tokenizer.encode("hockey")
    expected = fake_model().expected_greedy(prompt_ids, 30)
    assert completion.token_ids == tuple(expected)
    assert completion.text.removeprefix(" ") == llm.tokenizer.decode(expected)
    assert (completion.finish_reason, completion.stop) == ("length", None)
    assert (completion.prompt_tokens, completion.completion_tokens) == (6, 30)
    assert_all_freed(llm.engine)


def test_generate_takes_ids_as_well_as_text(build_llm):
    llm = build_llm()
    assert llm.generate(llm.tokenizer.encode("puck"), GREEDY).text == llm.generate("puck", GREEDY).text


def test_a_list_of_prompts_gives_what_each_gives_alone(build_llm, fake_model):
    model = fake_model()
    llm = build_llm(model)
    texts = ["ice", "stick and puck", "goal"]
    params = SamplingParams(seed=4, max_tokens=20)
    together = llm.generate(texts, params)
    assert max(len(batch.seq_lens) for batch in model.batches) == 3
    assert [one.text for one in together] == [llm.generate(text, params).text for text in texts]


def test_a_list_of_id_lists_is_a_list_of_prompts(build_llm):
    llm = build_llm()
    assert [one.prompt_tokens for one in llm.generate([[1, 2, 3], [4]], GREEDY)] == [3, 1]


@pytest.mark.parametrize("prompt", ["", []])
def test_an_empty_prompt_is_refused(build_llm, prompt):
    with pytest.raises(RequestError, match="prompt: got no tokens"):
        build_llm().generate(prompt)


def test_one_refused_prompt_of_a_list_leaves_nothing_behind(build_llm, assert_all_freed):
    llm = build_llm(n_ctx=20)
    with pytest.raises(ContextLengthError):
        llm.generate(["short", "much longer than the context"], GREEDY)
    assert_all_freed(llm.engine)


def test_streamed_pieces_join_to_the_text_and_are_never_empty(build_llm):
    llm = build_llm()
    stream = llm.stream("goalkeeper", GREEDY)
    assert stream.completion is None
    pieces = list(stream)
    assert all(pieces)
    assert "".join(pieces) == stream.completion.text == llm.generate("goalkeeper", GREEDY).text


def test_a_stop_string_ends_the_text_before_it_and_frees_the_sequence(build_llm, assert_all_freed):
    llm = build_llm()
    text = llm.generate("ice", GREEDY).text
    stop = text[9:12]
    completion = llm.generate("ice", GREEDY, stop=stop)
    assert completion.text == text[: text.index(stop)]
    assert (completion.finish_reason, completion.stop) == ("stop", stop)
    assert completion.completion_tokens < 30
    assert_all_freed(llm.engine)


def test_a_stop_string_that_ends_with_the_last_token_allowed_still_counts(build_llm):
    llm = build_llm()
    ids = llm.generate("ice", GREEDY).token_ids
    printed = [k for k in range(4, 30) if ids[k - 1] < 53 and ids[k - 2] < 53]
    n_tokens = next(
        k for k in printed if llm.tokenizer.decode(ids[:k]).count(llm.tokenizer.decode(ids[k - 2 : k])) == 1
    )
    stop = llm.tokenizer.decode(ids[n_tokens - 2 : n_tokens])
    completion = llm.generate("ice", SamplingParams.greedy(max_tokens=n_tokens), stop=stop)
    assert (completion.finish_reason, completion.completion_tokens) == ("stop", n_tokens)


@pytest.mark.parametrize("by_params", [True, False])
def test_a_stop_id_is_counted_but_not_printed(build_llm, fake_model, by_params):
    expected = fake_model().expected_greedy([8, 2, 4], 30)
    stop_id = expected[7]
    assert stop_id not in expected[:7]
    llm = build_llm(eos_ids=() if by_params else (stop_id,))
    params = SamplingParams(
        temperature=0, repeat_penalty=1, max_tokens=30, stop_token_ids=(stop_id,) if by_params else ()
    )
    completion = llm.generate("ice", params)
    assert completion.token_ids == tuple(expected[:8])
    assert completion.text == llm.tokenizer.decode(expected[:7])
    assert (completion.finish_reason, completion.stop) == ("stop", stop_id)


def test_a_closed_stream_is_aborted_freed_and_keeps_its_text(build_llm, assert_all_freed):
    llm = build_llm()
    with llm.stream("ice", GREEDY) as stream:
        first = next(stream) + next(stream)
    assert stream.completion.finish_reason == "aborted"
    assert stream.completion.text == first
    assert list(stream) == []
    assert_all_freed(llm.engine)


def test_a_dropped_stream_is_freed(build_llm, assert_all_freed):
    llm = build_llm()
    for _ in llm.stream("ice", GREEDY):
        break
    gc.collect()
    assert_all_freed(llm.engine)


def test_ctrl_c_in_a_step_aborts_the_stream_and_keeps_the_llm_usable(build_llm, fake_model, assert_all_freed):
    llm = build_llm(fake_model(fail_at={5: KeyboardInterrupt()}))
    stream = llm.stream("ice", GREEDY)
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    assert stream.completion.finish_reason == "aborted"
    assert stream.completion.completion_tokens == 4
    assert_all_freed(llm.engine)
    assert llm.generate("ice", GREEDY).text.startswith(stream.completion.text)


def test_a_failing_logits_function_raises_in_its_own_call(build_llm, assert_all_freed):
    def fail(ids, logits):
        raise ZeroDivisionError("mine")

    llm = build_llm()
    with pytest.raises(ZeroDivisionError, match="mine"):
        llm.generate("ice", SamplingParams(logits_function=fail))
    assert_all_freed(llm.engine)


def test_given_options_replace_fields_of_the_parameters(build_llm):
    llm = build_llm()
    params = SamplingParams(temperature=0.7, seed=1, max_tokens=9)
    assert llm.generate("ice", params, max_tokens=4, seed=7).completion_tokens == 4
    assert llm.generate("ice", params, seed=7).seed == 7
    assert llm.generate("ice", params, temperature=0).text == llm.generate("ice", params, temperature=0, seed=9).text


def test_a_refused_option_names_the_field(build_llm):
    with pytest.raises(RequestError, match="temperature: got -1"):
        build_llm().generate("ice", temperature=-1)


def test_the_reported_seed_reproduces_the_text(build_llm):
    llm = build_llm()
    completion = llm.generate("ice")
    assert llm.generate("ice", seed=completion.seed).text == completion.text


def test_chat_goes_through_the_template(build_llm):
    llm = build_llm()
    history = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "again"},
    ]
    assert llm.chat("hi", GREEDY).prompt_tokens == 1 + 2 + 1 + 1
    assert llm.chat(history, GREEDY).prompt_tokens == 3 * 2 + 2 + 3 + 5 + 1
    assert "".join(llm.chat_stream(history, GREEDY)) == llm.chat(history, GREEDY).text


def test_a_leading_space_belongs_to_a_continuation_but_not_to_an_answer(build_llm):
    llm = build_llm()
    only_spaces = SamplingParams(logit_bias={52: 1000.0}, max_tokens=2, repeat_penalty=1)
    assert llm.generate("ice", only_spaces).text == "  "
    assert "".join(llm.stream("ice", only_spaces)) == "  "
    assert llm.chat("ice", only_spaces).text == " "


def test_timings_are_measured(build_llm):
    timings = build_llm().generate("ice hockey", GREEDY).timings
    assert timings.load_ms == 3.0
    assert timings.prefill_ms > 0
    assert timings.decode_ms > 0
    assert timings.tokens_per_s == pytest.approx(29 / timings.decode_ms * 1000)


@pytest.mark.parametrize(
    ("free_bytes", "n_ctx", "expected"),
    [
        (None, None, (1024, 8192)),
        (8 * 4096 * 2, None, (1024, 4096)),
        (8 * 700 * 2, None, (640, 704)),
        (8 * 10 * 2, None, (512, 512)),
        (8 * 4096 * 2, 128, (128, 1024)),
    ],
)
def test_the_context_is_what_fits_into_half_of_the_free_memory(fake_model, monkeypatch, free_bytes, n_ctx, expected):
    monkeypatch.setattr(phlite.llm, "available_memory_bytes", lambda: free_bytes)
    engine = build_engine(fake_model(), n_ctx=n_ctx, kv_type="f16", eos_ids=())
    assert (engine.n_ctx, engine.cache_tokens) == expected


def test_a_context_larger_than_the_memory_is_warned_of(fake_model, monkeypatch, caplog):
    monkeypatch.setattr(phlite.llm, "available_memory_bytes", lambda: 8 * 64)
    build_engine(fake_model(), n_ctx=1000, kv_type="f16", eos_ids=())
    assert "more than half of the free memory" in caplog.text


def test_candidates_of_a_beam_search_are_texts_with_scores_and_the_first_is_the_answer(build_llm, assert_all_freed):
    llm = build_llm(cache_tokens=4096)
    params = SamplingParams.beam_search(4, max_tokens=15, num_return_sequences=3)
    completion = llm.generate("ice", params)
    first, second, third = completion.candidates
    assert (completion.text, completion.token_ids) == (first.text, first.token_ids)
    assert [one.text.removeprefix(" ") for one in (second, third)] == [
        llm.tokenizer.decode(one.token_ids) for one in (second, third)
    ]
    assert first.score > second.score > third.score
    assert llm.generate("ice", GREEDY).candidates == ()
    assert_all_freed(llm.engine)


def test_a_stop_string_cuts_the_candidates_of_a_beam_search(build_llm, assert_all_freed):
    llm = build_llm(cache_tokens=4096)
    params = SamplingParams.beam_search(3, max_tokens=15, num_return_sequences=3)
    text = llm.generate("ice", params).text
    stop = text[6:8]
    completion = llm.generate("ice", params, stop=stop)
    assert completion.text == completion.candidates[0].text == text[: text.index(stop)]
    assert (completion.finish_reason, completion.candidates[0].finish_reason) == ("stop", "stop")
    assert_all_freed(llm.engine)


def test_a_beam_search_that_is_closed_frees_its_beams(build_llm, assert_all_freed):
    llm = build_llm(cache_tokens=4096)
    stream = llm.stream("ice", SamplingParams.beam_search(3))
    for _ in range(5):
        llm.engine.step() if llm.engine.has_unfinished else llm.shared.apply_requests()
    stream.close()
    assert (stream.completion.finish_reason, stream.completion.candidates) == ("aborted", ())
    assert_all_freed(llm.engine)
