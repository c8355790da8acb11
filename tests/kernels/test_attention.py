"""Attention over the block cache: equal to the definition within a derived bound, and to itself bit for bit."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from kernels.attention_case import AttentionCase
from kernels.matrix_case import KERNELS, select_kernels

from phlite import ops
from phlite.errors import ShapeError

SHAPES = [(96, 2, 2), (64, 4, 2), (128, 4, 1), (16, 3, 3), (80, 5, 1), (30, 2, 1), (112, 3, 1), (256, 2, 1)]
DTYPES = ["f32", "f16", "q8_0"]


@pytest.fixture(params=KERNELS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = ops.isa_name()
    select_kernels(request.param)
    yield request.param
    select_kernels(before)


def assert_within_bound(case: AttentionCase) -> None:
    for seq, rows in enumerate(case.whole()):
        error = np.abs(rows - case.exact(seq)).max()
        assert error <= case.bound(seq), f"sequence {seq}: {error} > {case.bound(seq)}"


def assert_same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.shape == expected.shape
    assert np.array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "n_heads", "n_kv_heads"), SHAPES)
def test_every_shape_and_dtype_is_within_the_bound(
    isa: str, dtype: str, head_dim: int, n_heads: int, n_kv_heads: int
) -> None:
    assert_within_bound(
        AttentionCase(n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, dtype=dtype, n_tokens=(131, 1, 64))
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sliding_window", [1, 5, 63, 64, 65, 129])
def test_a_window_hides_older_keys(isa: str, dtype: str, sliding_window: int) -> None:
    assert_within_bound(AttentionCase(head_dim=64, dtype=dtype, sliding_window=sliding_window, n_tokens=(200,)))


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 511, 512, 513])
def test_every_length_around_a_block_or_a_segment_is_within_the_bound(n: int) -> None:
    assert_within_bound(AttentionCase(n_heads=1, n_kv_heads=1, n_tokens=(n,)))


@pytest.mark.parametrize("sliding_window", [0, 2047])
def test_long_sequences_of_several_segments_are_within_the_bound(sliding_window: int) -> None:
    assert_within_bound(AttentionCase(n_heads=1, n_kv_heads=1, n_tokens=(2200,), sliding_window=sliding_window))


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(3, 3), (3, 1), (8, 2), (32, 8), (80, 1)])
def test_query_heads_read_the_key_head_of_their_group(isa: str, n_heads: int, n_kv_heads: int) -> None:
    assert_within_bound(AttentionCase(n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=32, n_tokens=(70,)))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [0, 2, 24, 48, 64])
def test_partial_rotation_leaves_the_other_dims(isa: str, rotary_dim: int, interleaved: bool) -> None:
    case = AttentionCase(head_dim=64, dtype="f32", rotary_dim=rotary_dim, interleaved=interleaved, n_tokens=(80,))
    assert_within_bound(case)


def test_scores_far_apart_neither_overflow_nor_lose_the_largest(isa: str) -> None:
    assert_within_bound(AttentionCase(head_dim=32, dtype="f32", magnitude=60.0, n_tokens=(150,)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "n_heads", "n_kv_heads"), SHAPES)
def test_instruction_sets_agree_to_the_bit(dtype: str, head_dim: int, n_heads: int, n_kv_heads: int) -> None:
    case = AttentionCase(
        n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, dtype=dtype, sliding_window=100, n_tokens=(150, 7)
    )
    before = ops.isa_name()
    results = []
    try:
        for name in KERNELS:
            select_kernels(name)
            results.append(case.whole())
    finally:
        select_kernels(before)
    for result in results[1:]:
        for got, expected in zip(result, results[0], strict=True):
            assert_same_bits(got, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sliding_window", [0, 100])
@pytest.mark.parametrize("n_kv_heads", [4, 1])
@pytest.mark.parametrize("chunk", [1, 7, 64, 100])
def test_chunks_of_a_prompt_give_the_bits_of_the_whole(
    dtype: str, sliding_window: int, n_kv_heads: int, chunk: int
) -> None:
    n = 200
    case = AttentionCase(
        n_heads=4, n_kv_heads=n_kv_heads, head_dim=48, dtype=dtype, sliding_window=sliding_window, n_tokens=(n,)
    )
    cache, pool = case.cache(), ops.ThreadPool(1)
    parts = [case.step(cache, pool, {0: (a, min(n, a + chunk))})[0] for a in range(0, n, chunk)]
    assert_same_bits(np.concatenate(parts), case.whole()[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_threads", [2, 7])
def test_the_number_of_threads_changes_no_bit(dtype: str, n_threads: int) -> None:
    case = AttentionCase(n_heads=6, n_kv_heads=3, head_dim=64, dtype=dtype, n_tokens=(150, 1, 66))
    for got, expected in zip(case.whole(n_threads), case.whole(1), strict=True):
        assert_same_bits(got, expected)


@pytest.mark.parametrize("sliding_window", [0, 700])
@pytest.mark.parametrize("n_threads", [2, 7])
def test_splitting_a_long_context_over_threads_changes_no_bit(n_threads: int, sliding_window: int) -> None:
    n = 1700  # four segments; one head, so that a decode step has fewer tasks than threads
    case = AttentionCase(n_heads=2, n_kv_heads=1, n_tokens=(n,), sliding_window=sliding_window)
    cache = case.cache()
    case.step(cache, ops.ThreadPool(1), {0: (0, n - 1)})
    whole = case.step(cache, ops.ThreadPool(1), {0: (n - 1, n)})[0]
    assert_same_bits(case.step(cache, ops.ThreadPool(n_threads), {0: (n - 1, n)})[0], whole)
    assert_same_bits(whole, case.whole()[0][n - 1 :])


@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbours_in_the_batch_change_no_bit(dtype: str) -> None:
    together = AttentionCase(n_heads=4, n_kv_heads=2, head_dim=64, dtype=dtype, n_tokens=(129, 65, 3))
    cache, pool = together.cache(), ops.ThreadPool(2)
    # Sequence 1 decodes its last token beside a chunk of sequence 0 and the whole of sequence 2.
    first = together.step(cache, pool, {1: (0, 64)})[1]
    both = together.step(cache, pool, {0: (0, 129), 1: (64, 65), 2: (0, 3)})[1]
    alone = together.whole()[1]
    assert_same_bits(np.concatenate([first, both]), alone)


def test_a_block_of_another_sequence_is_never_read() -> None:
    case = AttentionCase(n_tokens=(70, 70))
    cache = case.cache()
    poison = np.full_like(case.qkv[1], np.nan)
    case.qkv[1][:] = poison
    case.step(cache, ops.ThreadPool(1), {1: (0, 70)})
    rows = case.step(cache, ops.ThreadPool(1), {0: (0, 70)})[0]
    assert np.isfinite(rows).all()


def test_positions_that_another_sequence_left_behind_are_never_read(isa: str) -> None:
    case = AttentionCase(n_tokens=(64,), dtype="f32")
    cache, pool = case.cache(), ops.ThreadPool(1)
    good = case.qkv[0].copy()
    case.qkv[0][:] = np.nan
    case.step(cache, pool, {0: (0, 64)})  # the block is full of NaN, then used again
    case.qkv[0][:] = good
    rows = case.step(cache, pool, {0: (0, 20)})[0]
    assert_same_bits(rows, case.whole()[0][:20])


def guarded(array: np.ndarray) -> tuple[np.ndarray, mmap.mmap]:
    """A copy of the array that ends where an unreadable page begins."""
    page = mmap.PAGESIZE
    n_pages = -(-array.nbytes // page)
    memory = mmap.mmap(-1, (n_pages + 1) * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(address + n_pages * page), ctypes.c_size_t(page), 0) == 0
    copy = np.frombuffer(memory, array.dtype, array.size, n_pages * page - array.nbytes).reshape(array.shape)
    copy[...] = array
    return copy, memory


@pytest.mark.skipif(sys.platform == "win32", reason="mprotect is POSIX")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [30, 80, 96])
def test_nothing_is_touched_behind_the_last_byte_of_qkv_and_out(isa: str, dtype: str, head_dim: int) -> None:
    case = AttentionCase(n_heads=2, n_kv_heads=1, head_dim=head_dim, dtype=dtype, n_tokens=(67,))
    qkv, keep_qkv = guarded(case.qkv[0])
    out, keep_out = guarded(np.zeros((67, 2 * head_dim), np.float32))
    batch = ops.AttentionBatch(
        positions=np.arange(67, dtype=np.int32),
        seq_starts=np.array([0, 67], np.int32),
        block_tables=case.block_tables(),
        cos_sin=case.cos_sin[0],
    )
    ops.attention(
        qkv,
        case.cache(),
        0,
        batch,
        n_heads=2,
        softmax_scale=head_dim**-0.5,
        sliding_window=0,
        rope_interleaved=False,
        pool=ops.ThreadPool(1),
        out=out,
    )
    assert_same_bits(out, case.whole()[0])
    del qkv, out, keep_qkv, keep_out


# ---- what is refused ----


def batch_arguments(**changes: object) -> dict[str, object]:
    arguments: dict[str, object] = {
        "positions": np.arange(3, dtype=np.int32),
        "seq_starts": np.array([0, 3], np.int32),
        "block_tables": np.array([[0]], np.int32),
        "cos_sin": np.zeros((3, 8), np.float32),
    }
    return arguments | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": np.array([0, 2, 3], np.int32)}, "token 1 is at position 2, expected 1"),
        ({"positions": np.array([-1, 0, 1], np.int32)}, "starts at position -1"),
        ({"positions": np.array([2**31 - 3, 2**31 - 2, 2**31 - 1], np.int32)}, "out of range"),
        ({"positions": np.array([62, 63, 64], np.int32)}, "needs 2 blocks"),
        ({"positions": np.arange(3, dtype=np.int64)}, "positions int64"),
        ({"positions": np.arange(6, dtype=np.int32)[::2]}, "not contiguous"),
        ({"seq_starts": np.array([0, 2], np.int32)}, "expected 0 to 3"),
        ({"seq_starts": np.array([0], np.int32)}, "at least 2"),
        (
            {"seq_starts": np.array([0, 3, 3], np.int32), "block_tables": np.array([[0], [1]], np.int32)},
            "sequence 1 has no tokens",
        ),
        (
            {"seq_starts": np.array([0, 5, 3], np.int32), "block_tables": np.array([[0], [1]], np.int32)},
            "no tokens",
        ),
        ({"block_tables": np.array([[-1]], np.int32)}, "has id -1"),
        ({"block_tables": np.array([[0], [1]], np.int32)}, "block_tables has 2 rows"),
        ({"block_tables": np.array([0], np.int32)}, "block_tables int32"),
        ({"cos_sin": np.zeros((2, 8), np.float32)}, "cos_sin has 2 rows"),
        ({"cos_sin": np.zeros((3, 7), np.float32)}, "even"),
        ({"cos_sin": np.zeros((3, 8), np.float64)}, "cos_sin float64"),
    ],
)
def test_a_contradictory_batch_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        ops.AttentionBatch(**batch_arguments(**changes))  # type: ignore[arg-type]


def test_a_block_that_two_sequences_would_write_is_refused() -> None:
    changes = {
        "positions": np.array([0, 1, 0], np.int32),
        "seq_starts": np.array([0, 2, 3], np.int32),
        "block_tables": np.array([[4], [4]], np.int32),
    }
    with pytest.raises(ShapeError, match="block id 4 would be written twice"):
        ops.AttentionBatch(**batch_arguments(**changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qkv": np.zeros((3, 31), np.float32)}, r"qkv is \[3, 31\], expected \[3, 32\]"),
        ({"qkv": np.zeros((2, 32), np.float32)}, r"expected \[3, 32\]"),
        ({"qkv": np.zeros((3, 32), np.float64)}, "qkv float64"),
        ({"qkv": np.zeros((3, 64), np.float32)[:, ::2]}, "not contiguous"),
        ({"out": np.zeros((3, 15), np.float32)}, "out is"),
        ({"layer_idx": 1}, "layer_idx is 1, the cache has 1 layers"),
        ({"layer_idx": -1}, "layer_idx is -1"),
        ({"n_heads": 0}, "n_heads is 0"),
        ({"sliding_window": -1}, "sliding_window is -1"),
        ({"softmax_scale": float("nan")}, "not finite"),
        ({"batch": {"block_tables": np.array([[2]], np.int32)}}, "uses block 2, the cache has 2 blocks"),
        ({"batch": {"cos_sin": np.zeros((3, 10), np.float32)}}, "10 columns, expected at most head_dim 8"),
    ],
)
def test_arguments_that_do_not_fit_the_cache_are_refused(changes: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "qkv": np.zeros((3, 32), np.float32),
        "layer_idx": 0,
        "n_heads": 2,
        "softmax_scale": 1.0,
        "sliding_window": 0,
        "out": None,
    } | changes
    batch = ops.AttentionBatch(**batch_arguments(**arguments.pop("batch", {})))  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=message):
        ops.attention(
            arguments.pop("qkv"),
            ops.KVCache(1, 2, 1, 8, "f16"),
            arguments.pop("layer_idx"),
            batch,
            rope_interleaved=False,
            pool=ops.ThreadPool(1),
            **arguments,
        )  # type: ignore[arg-type]


def test_heads_that_do_not_divide_into_groups_are_refused() -> None:
    with pytest.raises(ShapeError, match="n_heads is 3, expected a multiple of the cache's 2"):
        ops.attention(
            np.zeros((3, 56), np.float32),
            ops.KVCache(1, 2, 2, 8, "f16"),
            0,
            ops.AttentionBatch(**batch_arguments()),  # type: ignore[arg-type]
            n_heads=3,
            softmax_scale=1.0,
            sliding_window=0,
            rope_interleaved=False,
            pool=ops.ThreadPool(1),
        )
