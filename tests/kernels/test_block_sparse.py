"""Attention to local blocks and vertical stripes: equal to the definition, and to itself bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from kernels.attention_case import AttentionCase
from kernels.matrix_case import KERNELS, select_kernels

from phlite import ops
from phlite.errors import ShapeError
from phlite.ops import BlockSparse
from phlite.ops.reference.attention import visible_blocks

DTYPES = ["f32", "f16", "q8_0"]
PHI3_SMALL = BlockSparse(block_size=64, num_local_blocks=16, vert_stride=8)
NARROW = BlockSparse(block_size=64, num_local_blocks=2, vert_stride=4)


@pytest.fixture(params=KERNELS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = ops.isa_name()
    select_kernels(request.param)
    yield request.param
    select_kernels(before)


def sparse_case(**changes: object) -> AttentionCase:
    """Four query heads of one key/value head: each sees another stripe of the four."""
    shape: dict[str, object] = {"n_heads": 4, "n_kv_heads": 1, "head_dim": 32, "block_sparse": NARROW}
    return AttentionCase(**(shape | changes))  # type: ignore[arg-type]


def assert_within_bound(case: AttentionCase) -> None:
    for seq, rows in enumerate(case.whole()):
        error = np.abs(rows - case.exact(seq)).max()
        assert error <= case.bound(seq), f"sequence {seq}: {error} > {case.bound(seq)}"


def assert_same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.shape == expected.shape
    assert np.array_equal(got.view(np.uint32), expected.view(np.uint32))


def test_the_mask_is_the_published_one() -> None:
    # Written out by hand for head 1 of 4, blocks of 64, two local ones, every fourth a stripe: block k with k % 4 == 2.
    mask = visible_blocks(np.arange(0, 640, 64, dtype=np.int32), 640, 4, NARROW)[1, :, ::64]
    seen = ["".join("x" if mask[q, k] else "." for k in range(q + 1)) for q in range(10)]
    assert seen == [
        "x",
        "xx",
        ".xx",
        "..xx",
        "..xxx",
        "..x.xx",
        "..x..xx",
        "..x...xx",
        "..x...xxx",
        "..x...x.xx",
    ]


@pytest.mark.parametrize("n", [63, 64, 65, 128, 129, 191, 192, 193, 320, 511, 513])
def test_lengths_around_blocks_are_within_the_bound(n: int) -> None:
    assert_within_bound(sparse_case(n_tokens=(n,)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_within_the_bound(isa: str, dtype: str) -> None:
    assert_within_bound(sparse_case(dtype=dtype, n_tokens=(529,)))


@pytest.mark.parametrize("n", [1023, 1024, 1025, 1088, 1089, 1300])
def test_lengths_around_the_local_band_of_phi3_small(n: int) -> None:
    assert_within_bound(AttentionCase(n_heads=4, n_kv_heads=2, n_tokens=(n,), head_dim=16, block_sparse=PHI3_SMALL))


@pytest.mark.parametrize(
    "block_sparse",
    [
        BlockSparse(64, 1, 1),
        BlockSparse(64, 1, 3),
        BlockSparse(64, 3, 7),
        BlockSparse(64, 2, 64),  # more stripes than heads: a head's step is 16
        BlockSparse(64, 2, 4, homo_head_pattern=True),
        BlockSparse(128, 2, 4),
        BlockSparse(192, 1, 2),
        BlockSparse(64, 1000, 2),
        BlockSparse(2**30, 2**31 - 1, 2**31 - 1),
    ],
    ids=str,
)
def test_every_pattern_is_within_the_bound(isa: str, block_sparse: BlockSparse) -> None:
    assert_within_bound(sparse_case(dtype="f32", n_tokens=(580,), block_sparse=block_sparse))


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(3, 3), (8, 2), (20, 1)])
def test_stripes_follow_the_query_head_whatever_the_groups(isa: str, n_heads: int, n_kv_heads: int) -> None:
    case = sparse_case(n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=16, n_tokens=(520,))
    assert_within_bound(case)
    cache, pool = case.cache(), ops.ThreadPool(1)
    case.step(cache, pool, {0: (0, 515)})
    # Few new tokens take another way through the tasks: all heads of a group together.
    assert_same_bits(case.step(cache, pool, {0: (515, 520)})[0], case.whole()[0][515:])


def test_a_window_hides_more(isa: str) -> None:
    assert_within_bound(sparse_case(n_tokens=(600,), sliding_window=300))


def test_up_to_the_local_band_the_bits_are_those_of_dense_attention(isa: str) -> None:
    sparse = AttentionCase(n_heads=2, n_kv_heads=1, head_dim=16, n_tokens=(1024,), block_sparse=PHI3_SMALL)
    dense = AttentionCase(n_heads=2, n_kv_heads=1, head_dim=16, n_tokens=(1024,))
    assert_same_bits(sparse.whole()[0], dense.whole()[0])


def test_blocks_that_no_head_sees_are_not_read(isa: str) -> None:
    block_sparse = BlockSparse(64, 1, 4, homo_head_pattern=True)  # stripes: blocks 3, 7, ...
    case = sparse_case(n_tokens=(641,), dtype="f32", block_sparse=block_sparse)
    cache, pool = case.cache(), ops.ThreadPool(1)
    expected = case.whole()[0][640:]
    hidden = np.isin(np.arange(640) // 64, [3, 7], invert=True)
    case.qkv[0][:640][hidden] = np.nan
    case.step(cache, pool, {0: (0, 640)})
    assert_same_bits(case.step(cache, pool, {0: (640, 641)})[0], expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_that_one_head_sees_changes_no_other_head(isa: str, dtype: str) -> None:
    case = sparse_case(n_tokens=(641,), dtype=dtype)
    before = case.whole()[0][640].reshape(4, -1)
    case.qkv[0][64:128] += np.float32(1)  # block 1: a stripe of head 2 alone
    after = case.whole()[0][640].reshape(4, -1)
    assert [np.array_equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False, True]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [16, 96, 128])
def test_instruction_sets_agree_to_the_bit(dtype: str, head_dim: int) -> None:
    case = sparse_case(dtype=dtype, head_dim=head_dim, n_tokens=(530, 7))
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
@pytest.mark.parametrize("chunk", [1, 15, 16, 100])
def test_chunks_of_a_prompt_give_the_bits_of_the_whole(dtype: str, chunk: int) -> None:
    n = 400
    case = sparse_case(dtype=dtype, n_tokens=(n,))
    cache, pool = case.cache(), ops.ThreadPool(1)
    parts = [case.step(cache, pool, {0: (a, min(n, a + chunk))})[0] for a in range(0, n, chunk)]
    assert_same_bits(np.concatenate(parts), case.whole()[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_threads", [2, 7])
def test_threads_and_the_split_of_a_long_context_change_no_bit(dtype: str, n_threads: int) -> None:
    n = 1700
    case = sparse_case(dtype=dtype, n_tokens=(n,))
    cache = case.cache()
    case.step(cache, ops.ThreadPool(1), {0: (0, n - 1)})
    whole = case.step(cache, ops.ThreadPool(1), {0: (n - 1, n)})[0]
    assert_same_bits(case.step(cache, ops.ThreadPool(n_threads), {0: (n - 1, n)})[0], whole)
    assert_same_bits(case.whole(n_threads)[0][n - 1 :], whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbours_in_the_batch_change_no_bit(dtype: str) -> None:
    together = sparse_case(dtype=dtype, n_tokens=(329, 305, 3))
    cache, pool = together.cache(), ops.ThreadPool(2)
    # Sequence 1 decodes its last token beside a long chunk of sequence 0 and the whole of sequence 2.
    first = together.step(cache, pool, {1: (0, 304)})[1]
    both = together.step(cache, pool, {0: (0, 329), 1: (304, 305), 2: (0, 3)})[1]
    assert_same_bits(np.concatenate([first, both]), together.whole()[1])


@pytest.mark.parametrize(
    ("block_sparse", "message"),
    [
        (BlockSparse(0, 1, 1), "sparse block size is 0, expected a multiple of 64"),
        (BlockSparse(32, 1, 1), "sparse block size is 32"),
        (BlockSparse(96, 1, 1), "sparse block size is 96"),
        (BlockSparse(-64, 1, 1), "sparse block size is -64"),
        (BlockSparse(64, 0, 1), "0 local blocks"),
        (BlockSparse(64, 1, 0), "vertical stride of 0"),
    ],
)
def test_a_pattern_that_cannot_be_is_refused(block_sparse: BlockSparse, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        sparse_case(n_tokens=(3,), block_sparse=block_sparse).whole()
