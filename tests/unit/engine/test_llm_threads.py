"""Several threads and asyncio tasks on one LLM: batched together, each with the result it has alone."""

import asyncio
import threading

import pytest

from phlite.engine import SamplingParams

PROMPTS = ["ice", "stick and puck", "goal", "a long sentence about the game", "x"]


def params(i):
    return SamplingParams(seed=i, max_tokens=25 + 5 * i)


@pytest.fixture
def alone(build_llm):
    return [build_llm().generate(prompt, params(i)).text for i, prompt in enumerate(PROMPTS)]


def no_driver_runs():
    return not [thread for thread in threading.enumerate() if thread.name == "phlite-driver"]


def in_threads(functions):
    """Run all functions at once, each in its thread; return results or raised exceptions in order."""
    results = [None] * len(functions)

    def call(i, function):
        try:
            results[i] = function()
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=call, args=(i, function)) for i, function in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    return results


def test_threads_share_steps_and_get_what_they_get_alone(build_llm, fake_model, alone, assert_all_freed):
    model = fake_model()
    llm = build_llm(model)
    barrier = threading.Barrier(len(PROMPTS))

    def generate(i):
        barrier.wait()
        return llm.generate(PROMPTS[i], params(i)).text

    assert in_threads([lambda i=i: generate(i) for i in range(len(PROMPTS))]) == alone
    assert max(len(batch.seq_lens) for batch in model.batches) > 1
    assert_all_freed(llm.engine)
    assert no_driver_runs()


def test_a_step_that_fails_in_one_thread_does_not_lose_the_others(build_llm, fake_model, alone, assert_all_freed):
    llm = build_llm(fake_model(fail_at={9: MemoryError("no room")}))
    results = in_threads([lambda i=i: llm.generate(PROMPTS[i], params(i)).text for i in range(len(PROMPTS))])
    failed = [i for i, result in enumerate(results) if isinstance(result, MemoryError)]
    assert len(failed) == 1
    assert [results[i] for i in range(len(PROMPTS)) if i not in failed] == [
        alone[i] for i in range(len(PROMPTS)) if i not in failed
    ]
    assert_all_freed(llm.engine)


def test_a_caller_that_leaves_after_a_failed_step_does_not_keep_the_lead(build_llm, fake_model, alone):
    llm = build_llm(fake_model(fail_at={1: MemoryError("no room")}))
    sequence = llm.shared.add([1, 2, 3])
    (error,) = in_threads([lambda: llm.shared.wait(sequence, 0)])
    assert isinstance(error, MemoryError)
    assert in_threads([lambda: llm.generate(PROMPTS[0], params(0)).text]) == [alone[0]]


def test_a_stream_that_nobody_reads_does_not_hold_up_another_call(build_llm, alone, assert_all_freed):
    llm = build_llm()
    idle = llm.stream(PROMPTS[1], params(1))
    next(idle)
    assert llm.generate(PROMPTS[0], params(0)).text == alone[0]
    assert "".join(idle) in alone[1]
    assert idle.completion.text == alone[1]
    assert_all_freed(llm.engine)


def test_asyncio_requests_run_in_one_batch(build_llm, fake_model, alone, assert_all_freed):
    model = fake_model()
    llm = build_llm(model)

    async def main():
        requests = [llm.agenerate(prompt, params(i)) for i, prompt in enumerate(PROMPTS)]
        return await asyncio.gather(*requests)

    assert [completion.text for completion in asyncio.run(main())] == alone
    assert max(len(batch.seq_lens) for batch in model.batches) > 1
    assert_all_freed(llm.engine)


def test_asyncio_and_threads_work_side_by_side(build_llm, alone):
    llm = build_llm()

    async def main():
        sync = [asyncio.to_thread(llm.generate, PROMPTS[i], params(i)) for i in (0, 1)]
        return await asyncio.gather(*sync, *[llm.agenerate(PROMPTS[i], params(i)) for i in (2, 3, 4)])

    assert [completion.text for completion in asyncio.run(main())] == alone


def test_an_async_stream_gives_pieces_and_its_completion(build_llm, alone):
    llm = build_llm()

    async def main():
        stream = llm.astream(PROMPTS[0], params(0))
        pieces = [piece async for piece in stream]
        return pieces, stream.completion

    pieces, completion = asyncio.run(main())
    assert all(pieces)
    assert "".join(pieces) == completion.text == alone[0]


def test_async_chat_equals_chat(build_llm):
    llm = build_llm()

    async def main():
        stream = llm.achat_stream("hi", params(1))
        return (await llm.achat("hi", params(1))).text, "".join([piece async for piece in stream])

    text = llm.chat("hi", params(1)).text
    assert asyncio.run(main()) == (text, text)


def test_cancelling_a_task_ends_its_sequence_and_no_other(build_llm, alone, assert_all_freed):
    llm = build_llm()

    async def main():
        endless = asyncio.create_task(llm.agenerate("endless", SamplingParams(max_tokens=None)))
        other = asyncio.create_task(llm.agenerate(PROMPTS[0], params(0)))
        await asyncio.sleep(0.01)
        endless.cancel()
        with pytest.raises(asyncio.CancelledError):
            await endless
        return await other

    assert asyncio.run(main()).text == alone[0]
    join_driver()
    assert_all_freed(llm.engine)


@pytest.mark.parametrize("how", ["aclose", "with", "drop"])
def test_leaving_an_async_stream_ends_its_sequence(build_llm, assert_all_freed, how):
    llm = build_llm()

    async def main():
        stream = llm.astream("endless", SamplingParams(max_tokens=None))
        if how == "with":
            async with stream:
                await anext_of(stream)
            return
        await anext_of(stream)
        if how == "aclose":
            await stream.aclose()
            assert stream.completion.finish_reason == "aborted"

    asyncio.run(main())
    join_driver()
    assert_all_freed(llm.engine)


async def anext_of(stream):
    return await stream.__anext__()


def join_driver():
    for thread in threading.enumerate():
        if thread.name == "phlite-driver":
            thread.join(timeout=60)
    assert no_driver_runs()


def test_a_closed_event_loop_ends_what_it_left_behind(build_llm, assert_all_freed):
    llm = build_llm()

    async def start():
        return llm.astream("endless", SamplingParams(max_tokens=None))

    stream = asyncio.run(start())
    join_driver()
    assert stream.transcript.sequence.finish_reason == "aborted"
    assert_all_freed(llm.engine)


def test_a_step_that_fails_in_the_driver_raises_in_every_waiting_task(build_llm, fake_model, assert_all_freed):
    model = fake_model()
    llm = build_llm(model)

    def fail_with_all(batch, cache, forward=model.forward):
        if len(batch.seq_lens) == len(PROMPTS):
            raise MemoryError("no room")
        return forward(batch, cache)

    model.forward = fail_with_all

    async def main():
        requests = [llm.agenerate(prompt, max_tokens=900) for prompt in PROMPTS]
        return await asyncio.gather(*requests, return_exceptions=True)

    assert [type(result) for result in asyncio.run(main())] == [MemoryError] * len(PROMPTS)
    join_driver()
    assert_all_freed(llm.engine)


def test_a_failing_logits_function_raises_in_its_own_task(build_llm, alone):
    def fail(ids, logits):
        raise ZeroDivisionError("mine")

    llm = build_llm()

    async def main():
        bad = llm.agenerate("ice", SamplingParams(logits_function=fail))
        return await asyncio.gather(bad, llm.agenerate(PROMPTS[0], params(0)), return_exceptions=True)

    bad, good = asyncio.run(main())
    assert isinstance(bad, ZeroDivisionError)
    assert good.text == alone[0]
