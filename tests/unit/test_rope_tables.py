"""Rotary tables: frequencies, LongRoPE's lists and attention factor, and who is rotated by which."""

import math

import numpy as np
import pytest
from tiny_models import LONG_FACTOR, SHORT_FACTOR

from phlite.layers.rope import RotaryEmbedding, inverse_frequencies, longrope_attention_factor


def positions(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def one_sequence(rope: RotaryEmbedding, at: np.ndarray, seq_len: int) -> np.ndarray:
    return rope.cos_sin(at, np.array([0, len(at)], np.int32), np.array([seq_len], np.int32))


@pytest.fixture
def longrope() -> RotaryEmbedding:
    return RotaryEmbedding(
        theta=10000.0,
        rotary_dim=96,
        short_factor=SHORT_FACTOR,
        long_factor=LONG_FACTOR,
        original_max_position_embeddings=4096,
        attention_factor=1.1902380714238083,
    )


def test_frequencies_fall_from_one_by_powers_of_theta():
    inv_freq = inverse_frequencies(10000.0, 96)
    exact = [10000.0 ** (-i / 48) for i in range(48)]
    np.testing.assert_allclose(inv_freq, exact, rtol=3e-7)


def test_factors_divide_the_frequencies():
    # Multiplying instead is a bug that other engines have had.
    np.testing.assert_allclose(
        inverse_frequencies(10000.0, 96, LONG_FACTOR), inverse_frequencies(10000.0, 96) / LONG_FACTOR, rtol=3e-7
    )


@pytest.mark.parametrize(
    ("scale", "original", "expected"),
    [(32.0, 4096, 1.1902380714238083), (16.0, 8192, 1.1435437497937313), (1.0, 4096, 1.0), (0.5, 4096, 1.0)],
)
def test_attention_factor_of_published_contexts(scale: float, original: int, expected: float):
    assert longrope_attention_factor(scale, original) == expected


def test_each_list_may_have_its_own_attention_factor():
    lists = [1.0] * 4
    rope = RotaryEmbedding(
        theta=10000.0,
        rotary_dim=8,
        short_factor=lists,
        long_factor=lists,
        original_max_position_embeddings=32,
        attention_factor=1.25,
        long_attention_factor=1.5,
    )
    assert [rope.regime(n) for n in (32, 33)] == [0, 1]
    short, long = one_sequence(rope, positions(7), 32), one_sequence(rope, positions(7), 33)
    np.testing.assert_allclose(long, short * 1.2, rtol=1e-6)


def test_rows_hold_cosines_then_sines_times_the_attention_factor():
    rope = RotaryEmbedding(theta=10000.0, rotary_dim=8, attention_factor=1.25)
    row = one_sequence(rope, positions(7), 8)[0]
    angles = [7 * 10000.0 ** (-i / 4) for i in range(4)]
    expected = [1.25 * math.cos(a) for a in angles] + [1.25 * math.sin(a) for a in angles]
    np.testing.assert_allclose(row, expected, rtol=1e-6, atol=1e-7)


def test_short_list_is_used_up_to_the_original_length(longrope: RotaryEmbedding):
    expected = RotaryEmbedding(
        theta=10000.0, rotary_dim=96, short_factor=SHORT_FACTOR, attention_factor=1.1902380714238083
    )
    at = positions(0, 1, 4095)
    np.testing.assert_array_equal(one_sequence(longrope, at, 4096), one_sequence(expected, at, 4096))
    assert longrope.regime(4096) == 0


def test_long_list_is_used_at_every_position_of_a_longer_sequence(longrope: RotaryEmbedding):
    expected = RotaryEmbedding(
        theta=10000.0, rotary_dim=96, short_factor=LONG_FACTOR, attention_factor=1.1902380714238083
    )
    at = positions(0, 1, 4095, 4096)
    np.testing.assert_array_equal(one_sequence(longrope, at, 4097), one_sequence(expected, at, 4097))
    assert longrope.regime(4097) == 1


def test_each_sequence_of_a_batch_has_its_own_regime(longrope: RotaryEmbedding):
    at = positions(10, 11, 4500, 4501, 12)
    mixed = longrope.cos_sin(at, np.array([0, 2, 4, 5], np.int32), np.array([12, 4502, 13], np.int32))
    alone = np.concatenate(
        [
            one_sequence(longrope, at[:2], 12),
            one_sequence(longrope, at[2:4], 4502),
            one_sequence(longrope, at[4:], 13),
        ]
    )
    np.testing.assert_array_equal(mixed, alone)


def test_without_factors_there_is_one_regime():
    rope = RotaryEmbedding(theta=250000.0, rotary_dim=128, original_max_position_embeddings=16384)
    assert rope.regime(1) == rope.regime(10**9) == 0


def test_equal_lists_need_no_second_encoding():
    rope = RotaryEmbedding(
        theta=10000.0,
        rotary_dim=96,
        short_factor=SHORT_FACTOR,
        long_factor=SHORT_FACTOR,
        original_max_position_embeddings=4096,
    )
    assert rope.regime(5000) == 0


def test_a_row_has_the_same_bits_however_the_table_grew():
    at_once = RotaryEmbedding(theta=10000.0, rotary_dim=96)
    by_steps = RotaryEmbedding(theta=10000.0, rotary_dim=96)
    at = np.arange(1500, dtype=np.int32)
    expected = one_sequence(at_once, at, 1500)
    got = [one_sequence(by_steps, at[i : i + 1], i + 1) for i in range(1500)]
    np.testing.assert_array_equal(np.concatenate(got), expected)


def test_building_computes_no_table():
    rope = RotaryEmbedding(theta=10000.0, rotary_dim=96)
    one_sequence(rope, positions(300), 301)
    assert len(rope._tables[0]._rows) == 512  # two pages, not the whole context


def test_rows_of_a_table_are_copies():
    rope = RotaryEmbedding(theta=10000.0, rotary_dim=96)
    one_sequence(rope, positions(3), 4)[:] = 0.0
    assert one_sequence(rope, positions(0), 1)[0, 0] == 1.0
    assert one_sequence(rope, positions(3), 4).any()
