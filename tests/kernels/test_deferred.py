"""Operations that are noted down and run together give what they give one by one."""

from __future__ import annotations

import gc
import signal
import threading
import time

import numpy as np
import pytest
from kernels.attention_case import AttentionCase
from kernels.matrix_case import random_matrix

from phlite import ops
from phlite.errors import ShapeError
from phlite.gguf import GGMLType


def pack(n_rows: int, n_cols: int, ggml_type: GGMLType = GGMLType.Q4_K, *, pool: ops.ThreadPool) -> ops.PackedMatrix:
    data, _ = random_matrix(ggml_type, n_rows, n_cols, seed=n_rows)
    return ops.pack_matrix([(data, ggml_type, n_rows)], n_cols, pool=pool)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def chain(x: np.ndarray, matrices: list[ops.PackedMatrix], pool: ops.ThreadPool) -> np.ndarray:
    """Feed x through the matrices, each of another shape, with norms and residuals between them."""
    for w in matrices:
        h = ops.linear(x, w, pool=pool, norm_weight=np.ones(x.shape[1], np.float32), eps=1e-5)
        x = ops.linear(h, pack(x.shape[1], h.shape[1], GGMLType.Q8_0, pool=pool), pool=pool, residual=x)
    return x


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("n_rows", [1, 3, 40])
def test_a_chain_of_products_has_the_same_bits(n_rows: int, n_threads: int) -> None:
    pool = ops.ThreadPool(n_threads)
    matrices = [pack(n, 256, pool=pool) for n in (512, 32, 1024, 17 * 32, 64)]
    x = normal(n_rows, 256)
    expected = chain(x, matrices, pool)
    assert not np.array_equal(expected, x)
    for _ in range(20):
        with ops.Deferred(pool):
            got = chain(x, matrices, pool)
            gc.collect()  # inputs that nothing but the noted operations hold
        assert np.array_equal(got, expected)


def test_attention_and_products_of_several_sequences_have_the_same_bits() -> None:
    pool = ops.ThreadPool(2)
    case = AttentionCase(n_tokens=(600, 1, 70), n_heads=4, n_kv_heads=2, head_dim=64)
    n_hidden = 4 * 64
    w = pack(n_hidden, n_hidden, pool=pool)

    def answers() -> list[np.ndarray]:
        rows = case.step(case.cache(), pool, {seq: (0, n) for seq, n in enumerate(case.n_tokens)})
        return [ops.linear(a, w, pool=pool, residual=a) for a in rows.values()]

    expected = answers()
    with ops.Deferred(pool):
        got = answers()
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_mixture_of_experts_sees_what_was_noted_before_it() -> None:
    pool = ops.ThreadPool(2)
    n_hidden, n_inner = 256, 512
    data, _ = random_matrix(GGMLType.F32, 2 * n_inner, n_hidden, seed=1)
    gate_up = ops.pack_matrix([(data, GGMLType.F32, 2 * n_inner)], n_hidden, activation="swiglu", pool=pool)
    down = pack(n_hidden, n_inner, GGMLType.F32, pool=pool)
    experts = ops.Experts(pack(2, n_hidden, GGMLType.F32, pool=pool), [gate_up] * 2, [down] * 2)
    w, x, one = pack(n_hidden, n_hidden, pool=pool), normal(3, n_hidden), np.ones(n_hidden, np.float32)

    def answer() -> np.ndarray:
        h = ops.linear(x, w, pool=pool, residual=x)
        h = ops.mix(h, experts, norm_weight=one, norm_bias=0 * one, eps=1e-5, jitter_eps=0.01, residual=h, pool=pool)
        return ops.linear(h, w, pool=pool)

    expected = answer()
    with ops.Deferred(pool):
        got = answer()
    assert np.array_equal(got, expected)


def test_a_norm_sees_what_was_noted_before_it() -> None:
    pool = ops.ThreadPool(2)
    w, x, one = pack(256, 256, pool=pool), normal(3, 256), np.ones(256, np.float32)
    expected = ops.norm(ops.linear(x, w, pool=pool), one, 1e-5)
    with ops.Deferred(pool):
        got = ops.norm(ops.linear(x, w, pool=pool), one, 1e-5, pool=pool)
    assert np.array_equal(got, expected)


def test_memory_of_dropped_results_is_used_again_and_that_of_kept_ones_is_not() -> None:
    pool = ops.ThreadPool(2)
    region, matrices = ops.Deferred(pool), [pack(256, 256, pool=pool) for _ in range(2)]
    x, one = normal(3, 256), np.ones(256, np.float32)

    def run(kept: list[np.ndarray]) -> np.ndarray:
        y = x
        for i in range(40):
            y = ops.linear(y, matrices[i % 2], pool=pool, norm_weight=one, eps=1e-5)
            if i % 10 == 5:
                kept.append(y[1:])  # a view keeps the whole
        return y

    kept_expected: list[np.ndarray] = []
    expected = run(kept_expected)
    answers: list[tuple[np.ndarray, list[np.ndarray]]] = []
    for _ in range(3):
        kept: list[np.ndarray] = []
        with region:
            answers.append((run(kept), kept))
        assert sum(len(results) for results in region.results.values()) <= 3
    for got, kept in answers:  # the first ones too, after later steps
        assert np.array_equal(got, expected)
        assert all(np.array_equal(a, b) for a, b in zip(kept, kept_expected, strict=True))


def test_memory_of_shapes_that_the_last_block_did_not_have_is_let_go() -> None:
    pool = ops.ThreadPool(2)
    region, w = ops.Deferred(pool), pack(256, 256, pool=pool)
    for n_rows in (3, 40, 3, 5):
        with region:
            for _ in range(2):
                ops.linear(ops.linear(normal(n_rows, 256), w, pool=pool), w, pool=pool)
        assert region.results.keys() == {(n_rows, 256)}


def long_chain(x: np.ndarray, w: ops.PackedMatrix, n: int, pool: ops.ThreadPool) -> np.ndarray:
    one = np.ones(x.shape[1], np.float32)
    for _ in range(n):
        x = ops.linear(x, w, pool=pool, norm_weight=one, eps=1e-5)
    return x


def links(x: np.ndarray, w: ops.PackedMatrix, pool: ops.ThreadPool, *, seconds: float) -> int:
    """Return how long a chain takes this time."""
    start = time.perf_counter()
    long_chain(x, w, 10, pool)
    return int(seconds / (time.perf_counter() - start) * 10) + 3


@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_block_that_lets_the_interpreter_in_now_and_then_has_the_same_bits(n_threads: int) -> None:
    pool = ops.ThreadPool(n_threads)
    w, x = pack(512, 512, pool=pool), normal(64, 512)
    n = links(x, w, pool, seconds=0.5)
    expected = long_chain(x, w, n, pool)
    with ops.Deferred(pool):
        got = long_chain(x, w, n, pool)
    assert np.array_equal(got, expected)


def test_another_thread_whose_operations_come_in_between_changes_nothing() -> None:
    pool = ops.ThreadPool(2)
    w, v, x, y = pack(512, 512, pool=pool), pack(1024, 512, pool=pool), normal(64, 512), normal(5, 512)
    n = links(x, w, pool, seconds=0.3)
    expected, other_expected = long_chain(x, w, n, pool), ops.linear(y, v, pool=pool)
    others: list[np.ndarray] = []
    n_between = 0
    is_done = threading.Event()

    def elsewhere() -> None:
        while not is_done.is_set():
            others.append(ops.linear(y, v, pool=pool))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    try:
        for _ in range(50):  # the system need not let the other thread in at the first occasion
            with ops.Deferred(pool):
                got = long_chain(x, w, n, pool)
                n_before = len(others)
            n_between = len(others) - n_before
            assert np.array_equal(got, expected)
            if n_between > 1:  # one may have waited for the block to begin
                break
    finally:
        is_done.set()
        thread.join()
    assert n_between > 1
    assert all(np.array_equal(other, other_expected) for other in others)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timer that interrupts")
def test_an_interrupt_is_heard_before_the_block_is_done() -> None:
    pool = ops.ThreadPool(2)
    w, x, out = pack(512, 512, pool=pool), normal(64, 512), np.full((64, 512), 7, np.float32)
    n = links(x, w, pool, seconds=5.0)

    def interrupted() -> None:
        with ops.Deferred(pool):
            ops.linear(long_chain(x, w, n, pool), w, pool=pool, out=out)
            signal.setitimer(signal.ITIMER_REAL, 0.05)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert np.all(out == 7)
    expected = ops.linear(x, w, pool=pool)
    with ops.Deferred(pool):
        got = ops.linear(x, w, pool=pool)
    assert np.array_equal(got, expected)


def test_nothing_runs_before_the_block_ends() -> None:
    pool = ops.ThreadPool(2)
    w, x, out = pack(64, 256, pool=pool), normal(1, 256), np.full((1, 64), 7, np.float32)
    with ops.Deferred(pool):
        ops.linear(x, w, pool=pool, out=out)
        assert np.all(out == 7)
    assert np.array_equal(out, ops.linear(x, w, pool=pool))


def test_an_error_drops_what_was_noted_and_the_pool_goes_on() -> None:
    pool = ops.ThreadPool(2)
    w, x, out = pack(64, 256, pool=pool), normal(1, 256), np.full((1, 64), 7, np.float32)

    def fail() -> None:
        with ops.Deferred(pool):
            ops.linear(x, w, pool=pool, out=out)
            ops.linear(x, w, pool=pool, residual=normal(2, 64))

    with pytest.raises(ShapeError, match=r"residual has shape \[2, 64\], expected \[1, 64\]"):
        fail()
    assert np.all(out == 7)
    expected = ops.linear(x, w, pool=pool)
    with ops.Deferred(pool):
        got = ops.linear(x, w, pool=pool)
    assert np.array_equal(got, expected)
    assert np.all(out == 7)


def test_a_region_whose_block_was_interrupted_before_its_end_starts_anew() -> None:
    pool = ops.ThreadPool(2)
    region = ops.Deferred(pool)
    w, x, out = pack(64, 256, pool=pool), normal(1, 256), np.full((1, 64), 7, np.float32)
    expected = ops.linear(x, w, pool=pool)
    region.__enter__()
    ops.linear(x, w, pool=pool, out=out)  # Ctrl-C before __exit__
    with region:
        got = ops.linear(x, w, pool=pool)
    assert np.array_equal(got, expected)
    region.__enter__()
    ops.linear(x, w, pool=pool, out=out)
    region.drop_interrupted()
    assert np.array_equal(ops.linear(x, w, pool=pool), expected)
    assert np.all(out == 7)


def test_blocks_do_not_nest() -> None:
    pool = ops.ThreadPool(1)
    with ops.Deferred(pool), pytest.raises(RuntimeError, match="deferred already"), ops.Deferred(pool):
        pass
    with ops.Deferred(pool):
        pass


def test_other_threads_and_other_pools_run_at_once() -> None:
    pool, other = ops.ThreadPool(2), ops.ThreadPool(1)
    w, v, x = pack(64, 256, pool=pool), pack(64, 256, pool=other), normal(1, 256)
    expected = ops.linear(x, w, pool=pool)
    results: list[np.ndarray] = []

    def elsewhere() -> None:
        results.append(ops.linear(x, w, pool=pool).copy())

    with ops.Deferred(pool):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert np.array_equal(results[0], expected)
        assert np.array_equal(ops.linear(x, v, pool=other), expected)
