"""Rotary embedding, seen through the keys of a float32 cache: bit-identical to the definition."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from kernels.attention_case import AttentionCase

from phlite import ops


@pytest.fixture(params=ops.supported_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = ops.isa_name()
    ops.select_isa(request.param)
    yield request.param
    ops.select_isa(before)


def stored_keys(case: AttentionCase) -> np.ndarray:
    cache = case.cache()
    case.step(cache, ops.ThreadPool(1), {0: (0, case.n_tokens[0])})
    return cache.positions(0, case.block_tables()[0], case.n_tokens[0])[0]


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("head_dim", "rotary_dim"), [(96, 96), (128, 96), (80, 32), (64, 64), (30, 30), (16, 2), (16, 0)]
)
def test_keys_turn_by_their_position(isa: str, head_dim: int, rotary_dim: int, interleaved: bool) -> None:
    case = AttentionCase(head_dim=head_dim, rotary_dim=rotary_dim, interleaved=interleaved, dtype="f32", n_tokens=(70,))
    assert np.array_equal(stored_keys(case), case.heads(0)[1])


def test_both_layouts_are_the_same_rotation_of_permuted_dims() -> None:
    halves = AttentionCase(head_dim=32, dtype="f32", n_tokens=(40,))
    pairs = AttentionCase(head_dim=32, dtype="f32", n_tokens=(40,), interleaved=True)
    order = np.arange(32).reshape(2, 16).T.reshape(-1)  # 0, 16, 1, 17, ...: half-split order as neighbours
    pairs.qkv[0][:] = halves.qkv[0].reshape(40, -1, 32)[:, :, order].reshape(40, -1)
    assert np.array_equal(stored_keys(pairs), stored_keys(halves)[:, :, order])


def test_dims_past_the_rotary_part_are_not_scaled_by_the_attention_factor() -> None:
    case = AttentionCase(head_dim=32, rotary_dim=16, dtype="f32", n_tokens=(5,))
    before = stored_keys(case)
    case.cos_sin[0][:] *= np.float32(2)
    after = stored_keys(case)
    assert np.array_equal(after[..., 16:], before[..., 16:])
    assert np.array_equal(after[..., :16], 2 * before[..., :16])
