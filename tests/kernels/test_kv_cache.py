"""The block cache: what is stored, how it is rounded, and what is refused."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from kernels.attention_case import AttentionCase

from phlite import ops
from phlite.errors import RequestError, ShapeError
from phlite.ops.reference import attention as reference


@pytest.fixture(params=ops.supported_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = ops.isa_name()
    ops.select_isa(request.param)
    yield request.param
    ops.select_isa(before)


def stored(case: AttentionCase) -> tuple[np.ndarray, np.ndarray]:
    cache = case.cache()
    case.step(cache, ops.ThreadPool(1), {0: (0, case.n_tokens[0])})
    return cache.positions(0, case.block_tables()[0], case.n_tokens[0])


@pytest.mark.parametrize("dtype", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("head_dim", [2, 16, 30, 64, 80, 96, 128])
def test_keys_and_values_are_rounded_as_the_definition_says(isa: str, dtype: str, head_dim: int) -> None:
    case = AttentionCase(head_dim=head_dim, dtype=dtype, n_tokens=(70,))
    k, v = stored(case)
    _, rotated, values = case.heads(0)
    assert np.array_equal(k, reference.round_kv(rotated, dtype))
    assert np.array_equal(v, reference.round_kv(values, dtype))


def test_f16_values_beyond_the_largest_half_are_limited(isa: str) -> None:
    case = AttentionCase(head_dim=16, rotary_dim=0, dtype="f16", magnitude=1e5, n_tokens=(16,))
    _, v = stored(case)
    assert np.abs(v).max() == 65504


@pytest.mark.parametrize("magnitude", [0.0, 1e-38, 1e-20, 1e-3, 1e20])
def test_q8_0_keeps_half_a_step_of_accuracy_at_every_magnitude(isa: str, magnitude: float) -> None:
    case = AttentionCase(head_dim=64, rotary_dim=0, dtype="q8_0", magnitude=magnitude, n_tokens=(16,))
    _, v = stored(case)
    values = case.heads(0)[2].reshape(-1, 32).astype(np.float64)
    # The scale is max / 127 rounded up to bfloat16 (2^-7); below 2^-100 a block counts as zero.
    step = np.abs(values).max(axis=1, keepdims=True) / 127 * (1 + 2.0**-7)
    assert (np.abs(v.reshape(-1, 32) - values) <= step / 2 * (1 + 1e-6) + 127 * 2.0**-100).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_a_broken_value_spoils_its_own_position_only(isa: str, bad: float) -> None:
    case = AttentionCase(head_dim=32, rotary_dim=0, dtype="q8_0", n_tokens=(20,))
    good, _ = stored(case)
    case.qkv[0][7, 2 * 32] = bad  # the first key head of token 7
    k, _ = stored(case)
    assert np.array_equal(np.delete(k, 7, axis=0), np.delete(good, 7, axis=0))


def test_copying_a_block_copies_every_layer_and_head() -> None:
    cache = ops.KVCache(2, 2, 2, 16, "f16")
    batch = ops.AttentionBatch(
        positions=np.arange(64, dtype=np.int32),
        seq_starts=np.array([0, 64], np.int32),
        block_tables=np.array([[0]], np.int32),
        cos_sin=np.zeros((64, 0), np.float32),
    )
    for layer_idx in range(2):
        qkv = np.random.default_rng(layer_idx).standard_normal((64, 6 * 16), np.float32)
        ops.attention(
            qkv,
            cache,
            layer_idx,
            batch,
            n_heads=2,
            softmax_scale=1.0,
            sliding_window=0,
            rope_interleaved=False,
            pool=ops.ThreadPool(1),
        )
    cache.copy_block(0, 1)
    for layer_idx in range(2):
        for source, copy in zip(
            cache.positions(layer_idx, np.array([0], np.int32), 64),
            cache.positions(layer_idx, np.array([1], np.int32), 64),
            strict=True,
        ):
            assert np.array_equal(source, copy)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_a_fresh_cache_takes_no_memory_before_it_is_written() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    before = resident_bytes()
    cache = ops.KVCache(8, 512, 32, 96, "f16")
    assert cache.block_bytes * cache.n_blocks == 3 * 2**30
    assert resident_bytes() - before < 32 * 2**20


@pytest.mark.parametrize(("dtype", "bytes_per_value"), [("f32", 4), ("f16", 2), ("q8_0", 1 + 2 / 32)])
def test_block_bytes_are_those_of_the_values_and_scales(dtype: str, bytes_per_value: float) -> None:
    assert ops.KVCache(3, 1, 2, 96, dtype).block_bytes == 3 * 2 * 64 * 2 * 96 * bytes_per_value


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(RequestError, match="'q4_0', expected one of f16, q8_0, f32"):
        ops.KVCache(1, 1, 1, 32, "q4_0")


@pytest.mark.parametrize(
    "shape", [(0, 1, 1, 32), (1, 0, 1, 32), (1, 1, 0, 32), (1, 1, 1, 31), (1, 1, 1, 258), (1, 1, 1, 0)]
)
def test_dimensions_without_a_kernel_are_refused(shape: tuple[int, int, int, int]) -> None:
    with pytest.raises(ShapeError, match="KV cache"):
        ops.KVCache(*shape, "f16")


def test_a_cache_larger_than_memory_can_address_is_refused() -> None:
    with pytest.raises(RequestError, match="no memory"):
        ops.KVCache(1000, 2**31 - 1, 2**20, 256, "f32")


@pytest.mark.parametrize("block", [-1, 2])
def test_a_block_that_does_not_exist_is_not_copied(block: int) -> None:
    with pytest.raises(ShapeError, match=f"block {block} does not exist"):
        ops.KVCache(1, 2, 1, 16, "f16").copy_block(0, block)
