"""The quantisers: errors against simpler ones that we did not write, bytes equal on every instruction set and split."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import gguf
import numpy as np
import pytest

from phlite import _native, ops
from phlite.errors import RequestError, ShapeError
from phlite.gguf import BLOCK_SIZES, GGMLType, tensor_bytes

FORMATS = sorted(ops.QUANTIZABLE)
BLOCK_FORMATS = [t for t in FORMATS if BLOCK_SIZES[t][0] > 1]
OF_GGUF_PACKAGE = [GGMLType[name] for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")]
ISAS = ops.supported_isas()

# Bits of a code and of what a group of codes shares: the error of a uniform code is at most a step of range / 2^bits.
CODE_BITS = dict.fromkeys(("Q4_0", "Q4_1", "Q4_K", "IQ4_NL", "IQ4_XS"), 4) | dict.fromkeys(("Q5_0", "Q5_1", "Q5_K"), 5)
CODE_BITS |= {"Q2_K": 2, "Q3_K": 3, "Q6_K": 6, "Q8_0": 8}


@pytest.fixture(autouse=True)
def _best_isa_again() -> Iterator[None]:
    yield
    ops.select_isa(ISAS[0])


@pytest.fixture(scope="module")
def pool() -> ops.ThreadPool:
    return ops.ThreadPool(2)


def gaussian(n_rows: int, n_cols: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((n_rows, n_cols)) * 0.02).astype(np.float32)


def heavy_tailed(n_rows: int, n_cols: int) -> np.ndarray:
    return (np.random.default_rng(1).standard_t(3.5, (n_rows, n_cols)) * 0.02).astype(np.float32)


def outlier_columns(n_rows: int, n_cols: int) -> np.ndarray:
    x = gaussian(n_rows, n_cols, 2)
    x[:, :: n_cols // 7] *= 20
    return x


TENSORS = {"gaussian": gaussian, "heavy-tailed": heavy_tailed, "outlier columns": outlier_columns}


def rmse(x: np.ndarray, data: np.ndarray, kind: GGMLType, weights: np.ndarray | float = 1.0) -> float:
    error = ops.dequantize(data, kind, x.shape).astype(np.float64) - x
    return float(np.sqrt(np.mean(weights * error**2)))


@pytest.mark.parametrize("tensor", TENSORS)
@pytest.mark.parametrize("kind", OF_GGUF_PACKAGE, ids=lambda t: t.name)
def test_the_error_is_below_the_gguf_packages(kind: GGMLType, tensor: str, pool: ops.ThreadPool) -> None:
    x = TENSORS[tensor](16, 1024)
    theirs = gguf.quants.quantize(x, gguf.GGMLQuantizationType(kind)).reshape(-1)
    assert rmse(x, ops.quantize(x, kind, pool=pool), kind) < rmse(x, theirs, kind)


@pytest.mark.parametrize("kind", [GGMLType.F16, GGMLType.BF16], ids=lambda t: t.name)
def test_floats_round_as_in_the_gguf_package(kind: GGMLType, pool: ops.ThreadPool) -> None:
    x = np.concatenate([heavy_tailed(7, 1001), heavy_tailed(7, 1001) * np.float32(1e-6)])
    expected = gguf.quants.quantize(x, gguf.GGMLQuantizationType(kind))
    assert np.array_equal(ops.quantize(x, kind, pool=pool), expected.reshape(-1).view(np.uint8))


@pytest.mark.parametrize("kind", BLOCK_FORMATS, ids=lambda t: t.name)
def test_every_value_is_within_a_step_of_its_group(kind: GGMLType, pool: ops.ThreadPool) -> None:
    x = np.random.default_rng(3).uniform(-1, 1, (8, 512)).astype(np.float32)
    values = ops.dequantize(ops.quantize(x, kind, pool=pool), kind, x.shape)
    # A uniform distribution has nothing to gain from cutting off the ends; scales of few bits cost up to a step more.
    assert np.abs(values - x).max() < 2 * 2.0 / 2 ** CODE_BITS[kind.name]


@pytest.mark.parametrize("isa", ISAS[1:])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("kind", FORMATS, ids=lambda t: t.name)
def test_bytes_are_the_same_on_every_instruction_set(
    kind: GGMLType, weighted: bool, isa: str, pool: ops.ThreadPool
) -> None:
    # Three superblocks a row: panels cross rows, and the last panel of the formats with groups of 32 is half empty.
    x = np.concatenate([make(3, 768) for make in TENSORS.values()])
    x[1, :64], x[2, 5:300], x[3] = 0, 1e-7, x[3] * 1e4
    importance = np.random.default_rng(4).uniform(0, 2, 768).astype(np.float32) ** 3 if weighted else None
    expected = ops.quantize(x, kind, importance=importance, pool=pool)
    ops.select_isa(isa)
    assert np.array_equal(ops.quantize(x, kind, importance=importance, pool=pool), expected)


@pytest.mark.parametrize("kind", FORMATS, ids=lambda t: t.name)
def test_bytes_are_the_same_for_every_number_of_threads_and_split_of_rows(kind: GGMLType) -> None:
    x = gaussian(45, 768)
    importance = np.random.default_rng(5).uniform(0.1, 2, 768).astype(np.float32)
    expected = ops.quantize(x, kind, importance=importance, pool=ops.ThreadPool(1))
    for n_threads in (2, 7):
        assert np.array_equal(ops.quantize(x, kind, importance=importance, pool=ops.ThreadPool(n_threads)), expected)
    pool = ops.ThreadPool(1)
    rows = [ops.quantize(x[i : i + 1], kind, importance=importance, pool=pool) for i in range(len(x))]
    assert np.array_equal(np.concatenate(rows), expected)


@pytest.mark.parametrize("kind", FORMATS, ids=lambda t: t.name)
@pytest.mark.parametrize("source", [GGMLType.F16, GGMLType.BF16], ids=lambda t: t.name)
def test_halves_are_quantised_as_the_floats_they_are(kind: GGMLType, source: GGMLType, pool: ops.ThreadPool) -> None:
    data = ops.quantize(gaussian(5, 768), source, pool=pool)
    x = ops.dequantize(data, source, (5, 768))
    expected = ops.quantize(x, kind, pool=pool)
    shifted = np.concatenate([np.zeros(1, np.uint8), data])[1:]
    for given in (data, shifted):
        assert np.array_equal(ops.quantize_bytes(given, source, (5, 768), kind, pool=pool), expected)


@pytest.mark.parametrize("kind", FORMATS, ids=lambda t: t.name)
def test_floats_at_an_odd_address_are_read(kind: GGMLType, pool: ops.ThreadPool) -> None:
    x = gaussian(5, 256)
    shifted = np.concatenate([np.zeros(3, np.uint8), x.reshape(-1).view(np.uint8)])[3:]
    got = ops.quantize_bytes(shifted, GGMLType.F32, (5, 256), kind, pool=pool)
    assert np.array_equal(got, ops.quantize(x, kind, pool=pool))


@pytest.mark.parametrize("kind", BLOCK_FORMATS, ids=lambda t: t.name)
def test_importance_lowers_the_weighted_error(kind: GGMLType, pool: ops.ThreadPool) -> None:
    x = heavy_tailed(16, 768)
    importance = np.exp(np.random.default_rng(6).standard_normal(768) * 1.5).astype(np.float32)
    plain = rmse(x, ops.quantize(x, kind, pool=pool), kind, importance)
    weighted = rmse(x, ops.quantize(x, kind, importance=importance, pool=pool), kind, importance)
    # Eight bits with one scale have little to give away.
    assert weighted < (1.0 if kind is GGMLType.Q8_0 else 0.985) * plain


@pytest.mark.parametrize("kind", BLOCK_FORMATS, ids=lambda t: t.name)
def test_only_ratios_of_importance_count(kind: GGMLType, pool: ops.ThreadPool) -> None:
    x = gaussian(4, 512)
    importance = np.random.default_rng(7).uniform(0.1, 2, 512).astype(np.float32)
    expected = ops.quantize(x, kind, importance=importance, pool=pool)
    assert np.array_equal(ops.quantize(x, kind, importance=importance * np.float32(2**-40), pool=pool), expected)


@pytest.mark.parametrize("kind", BLOCK_FORMATS, ids=lambda t: t.name)
@pytest.mark.parametrize("value", [0.0, -0.0, 0.75, -0.75])
def test_constant_rows_come_back(kind: GGMLType, value: float, pool: ops.ThreadPool) -> None:
    x = np.full((3, 512), value, np.float32)
    got = ops.dequantize(ops.quantize(x, kind, pool=pool), kind, x.shape)
    # Scales of 4 to 8 bits and halves: a constant needs one product that is right.
    assert np.abs(got - x).max() <= 1e-3 * abs(value)


@pytest.mark.parametrize("kind", BLOCK_FORMATS, ids=lambda t: t.name)
@pytest.mark.parametrize("size", [1e-7, 1e-12, 1e-30, 1e-45])
def test_values_below_the_smallest_scale_do_no_harm(kind: GGMLType, size: float, pool: ops.ThreadPool) -> None:
    x = gaussian(2, 512) * np.float32(50 * size)
    got = ops.dequantize(ops.quantize(x, kind, pool=pool), kind, x.shape)
    assert np.abs(got - x).max() <= 1.5 * np.abs(x).max()


@pytest.mark.parametrize("kind", BLOCK_FORMATS, ids=lambda t: t.name)
def test_one_large_value_leaves_the_other_groups_alone(kind: GGMLType, pool: ops.ThreadPool) -> None:
    x = gaussian(1, 512)
    x[0, 300] = 900.0
    got = ops.dequantize(ops.quantize(x, kind, pool=pool), kind, x.shape)
    assert abs(got[0, 300] - 900) < 2
    assert np.abs(got - x)[0, :256].max() < 0.06


def at_page_end(data: np.ndarray) -> np.ndarray:
    """A copy of bytes whose end is the end of a mapping: reading behind it ends the process."""
    memory = mmap.mmap(-1, -(-data.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE)
    view = np.frombuffer(memory, np.uint8)[-data.nbytes :]
    view[:] = data
    return view


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", FORMATS, ids=lambda t: t.name)
def test_nothing_behind_the_last_row_is_touched(kind: GGMLType, isa: str, pool: ops.ThreadPool) -> None:
    ops.select_isa(isa)
    x = gaussian(3, 768 if BLOCK_SIZES[kind][0] == 256 else 96 if BLOCK_SIZES[kind][0] == 32 else 37)
    n_bytes = tensor_bytes(kind, x.shape)
    out = at_page_end(np.zeros(n_bytes, np.uint8))
    _native.quantize(at_page_end(x.reshape(-1).view(np.uint8)), 0, x.shape[1], None, int(kind), out, pool)
    assert np.array_equal(out, ops.quantize(x, kind, pool=pool))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", FORMATS, ids=lambda t: t.name)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3.4e38])
def test_values_that_no_block_can_hold_are_refused(kind: GGMLType, bad: float, isa: str, pool: ops.ThreadPool) -> None:
    ops.select_isa(isa)
    for place in (0, 511, 77):
        x = gaussian(3, 512)
        x[1, place] = bad
        with pytest.raises(RequestError, match="NaN, infinite or too large"):
            ops.quantize(x, kind, pool=pool)


def test_a_half_holds_up_to_65519(pool: ops.ThreadPool) -> None:
    x = np.array([[65504, 65519.996, -65519.996]], np.float32)
    assert ops.dequantize(ops.quantize(x, GGMLType.F16, pool=pool), GGMLType.F16, x.shape).tolist() == [
        [65504, 65504, -65504]
    ]
    with pytest.raises(RequestError, match="BF16"):
        ops.quantize(np.array([[1, 65520]], np.float32), GGMLType.F16, pool=pool)


def test_no_rows_give_no_bytes(pool: ops.ThreadPool) -> None:
    assert ops.quantize(np.zeros((0, 256), np.float32), GGMLType.Q4_K, pool=pool).size == 0


@pytest.mark.parametrize(
    ("x", "kind"),
    [
        (np.zeros((2, 128), np.float32), GGMLType.Q4_K),
        (np.zeros((2, 0), np.float32), GGMLType.Q4_0),
        (np.zeros(256, np.float32), GGMLType.Q4_0),
        (np.zeros((2, 256), np.float64), GGMLType.Q4_0),
        (np.zeros((2, 512), np.float32)[:, ::2], GGMLType.Q4_0),
    ],
)
def test_wrong_arrays_are_refused(x: np.ndarray, kind: GGMLType, pool: ops.ThreadPool) -> None:
    with pytest.raises(ShapeError, match="quantize"):
        ops.quantize(x, kind, pool=pool)


@pytest.mark.parametrize(
    ("importance", "error"),
    [
        (np.ones(255, np.float32), ShapeError),
        (np.ones(256), ShapeError),
        (np.full(256, -1, np.float32), RequestError),
        (np.full(256, np.nan, np.float32), RequestError),
        (np.zeros(256, np.float32), RequestError),
    ],
)
def test_wrong_importance_is_refused(importance: np.ndarray, error: type[Exception], pool: ops.ThreadPool) -> None:
    with pytest.raises(error, match="importance"):
        ops.quantize(np.zeros((2, 256), np.float32), GGMLType.Q4_0, importance=importance, pool=pool)


def test_quantised_sources_and_float32_targets_are_refused(pool: ops.ThreadPool) -> None:
    with pytest.raises(RequestError, match="dequantise it"):
        ops.quantize_bytes(np.zeros(34, np.uint8), GGMLType.Q8_0, (1, 32), GGMLType.Q4_0, pool=pool)
    with pytest.raises(RequestError, match="F32 is not written"):
        ops.quantize(np.zeros((1, 32), np.float32), GGMLType.F32, pool=pool)
    with pytest.raises(ShapeError, match="the 128 contiguous bytes"):
        ops.quantize_bytes(np.zeros(34, np.uint8), GGMLType.F32, (1, 32), GGMLType.Q4_0, pool=pool)


@pytest.mark.parametrize(
    ("n_bytes", "x_type", "n_cols", "kind", "n_out"),
    [
        *[(128, 8, 32, 2, 18), (128, 0, 32, 9, 18), (128, 0, 0, 2, 18), (128, 0, 16, 2, 18)],
        *[(127, 0, 32, 2, 18), (128, 0, 32, 2, 17), (128, 0, 32, -1, 18), (128, 0, -32, 2, 18)],
    ],
)
def test_native_code_refuses_sizes_that_do_not_fit_by_itself(
    n_bytes: int, x_type: int, n_cols: int, kind: int, n_out: int, pool: ops.ThreadPool
) -> None:
    with pytest.raises(ValueError, match=r"source|type|columns|out"):
        _native.quantize(np.zeros(n_bytes, np.uint8), x_type, n_cols, None, kind, np.zeros(n_out, np.uint8), pool)
