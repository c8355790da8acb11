"""Matrix products: every instruction set and block format against the NumPy definition, and against each other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from kernels.matrix_case import KERNELS, at_page_end, floats_at_page_end, random_matrix, select_kernels

from phlite import ops
from phlite.errors import ShapeError
from phlite.gguf import BLOCK_SIZES, GGMLType
from phlite.ops.reference import formats as reference_formats
from phlite.ops.reference import linear as reference

FORMATS = list(GGMLType)
QUANTISED = [t for t in FORMATS if BLOCK_SIZES[t][0] > 1]
ISAS = ops.supported_isas()
FLOATS = [t for t in FORMATS if BLOCK_SIZES[t][0] == 1]
# Around the register tiles of 1, 2, 4, 6, 8 and 12 rows, and some that multiply two tiles at once and unpack slices for
# all rows (from 48 on; floats from 24 on).
ROW_COUNTS = (1, 2, 3, 4, 6, 7, 8, 11, 12, 13, 14, 23, 24, 27, 47, 48, 63)
MANY_ROWS = 63


@pytest.fixture(autouse=True)
def _best_isa_again() -> Iterator[None]:
    yield
    select_kernels(ISAS[0])


@pytest.fixture(scope="module")
def pool() -> ops.ThreadPool:
    return ops.ThreadPool(2)


def error_bound(x: np.ndarray, weights: np.ndarray, ggml_type: GGMLType) -> np.ndarray:
    """Float32 rounding of the kernels: one chain of n multiply-adds per output, every term at most |x| |w|.

    Quantised formats keep exact integers inside a block and add one or two terms per block; a term passes through at
    most four roundings (int32 to float, scale, scale, sum). Where mins or offsets cancel, the terms are larger than
    their difference: |w| is replaced by the largest weight of the matrix.
    """
    block = BLOCK_SIZES[ggml_type][0]
    n_terms = weights.shape[1] if block == 1 else 2 * weights.shape[1] // block
    magnitude = np.abs(weights) if block == 1 else np.full_like(weights, 4 * np.abs(weights).max())
    return (n_terms + 4) * 2.0**-24 * (np.abs(x).astype(np.float64) @ magnitude.T.astype(np.float64)) + 1e-30


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("ggml_type", FORMATS, ids=lambda t: t.name)
def test_product_equals_the_definition(ggml_type: GGMLType, kernels: str, pool: ops.ThreadPool) -> None:
    select_kernels(kernels)
    n_rows, n_cols = 40, 768
    data, weights = random_matrix(ggml_type, n_rows, n_cols)
    x = np.random.default_rng(1).standard_normal((MANY_ROWS, n_cols), np.float32)
    w = ops.pack_matrix([(data, ggml_type, n_rows)], n_cols, pool=pool)
    error = np.abs(ops.linear(x, w, pool=pool) - reference.linear(x, weights, ggml_type))
    assert np.all(error <= error_bound(x, weights, ggml_type))


@pytest.mark.parametrize("ggml_type", FORMATS, ids=lambda t: t.name)
def test_every_instruction_set_gives_the_same_bits(ggml_type: GGMLType, pool: ops.ThreadPool) -> None:
    data, _ = random_matrix(ggml_type, 33, 512)
    x = np.random.default_rng(2).standard_normal((MANY_ROWS, 512), np.float32)
    norm = np.random.default_rng(3).standard_normal(512, np.float32)
    results = []
    for kernels in KERNELS:
        select_kernels(kernels)
        w = ops.pack_matrix([(data, ggml_type, 33)], 512, pool=pool)
        results.append(ops.linear(x, w, pool=pool, norm_weight=norm, eps=1e-5))
    for kernels, result in zip(KERNELS, results, strict=True):
        assert np.array_equal(result, results[-1]), kernels


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("ggml_type", FORMATS, ids=lambda t: t.name)
def test_a_row_does_not_depend_on_the_rows_beside_it(ggml_type: GGMLType, kernels: str, pool: ops.ThreadPool) -> None:
    select_kernels(kernels)
    data, _ = random_matrix(ggml_type, 20, 512)
    w = ops.pack_matrix([(data, ggml_type, 20)], 512, pool=pool)
    x = np.random.default_rng(4).standard_normal((max(ROW_COUNTS), 512), np.float32)
    whole = ops.linear(x, w, pool=pool)
    for n in ROW_COUNTS:
        assert np.array_equal(ops.linear(x[:n].copy(), w, pool=pool), whole[:n]), f"{n} rows"


@pytest.mark.parametrize("ggml_type", [GGMLType.Q4_K, GGMLType.Q8_0, GGMLType.F16], ids=lambda t: t.name)
def test_threads_do_not_change_a_bit(ggml_type: GGMLType) -> None:
    data, _ = random_matrix(ggml_type, 1000, 512)
    x = np.random.default_rng(5).standard_normal((MANY_ROWS, 512), np.float32)
    results = []
    for n_threads in (1, 2, 7):
        pool = ops.ThreadPool(n_threads)
        w = ops.pack_matrix([(data, ggml_type, 1000)], 512, pool=pool)
        results += [ops.linear(x, w, pool=pool), ops.linear(x[:1].copy(), w, pool=pool)]
    assert all(np.array_equal(results[0], r) for r in results[2::2])
    assert all(np.array_equal(results[1], r) for r in results[3::2])


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("ggml_type", QUANTISED, ids=lambda t: t.name)
def test_largest_codes_and_scales_do_not_overflow(ggml_type: GGMLType, kernels: str, pool: ops.ThreadPool) -> None:
    """All bits set gives the largest codes and scales; the activations have one sign, so nothing cancels."""
    select_kernels(kernels)
    n_cols = 1024
    elements, n_bytes = BLOCK_SIZES[ggml_type]
    data = np.full(16 * n_cols // elements * n_bytes, 0xFF, np.uint8)
    blocks = data.view(reference_formats.BLOCK_DTYPES[ggml_type])
    for name in ("d", "dmin", "m"):
        if name in (blocks.dtype.names or ()):
            blocks[name] = np.float16(0.25)
    weights = reference_formats.dequantize(data, ggml_type, (16, n_cols))
    w = ops.pack_matrix([(data, ggml_type, 16)], n_cols, pool=pool)
    for sign in (1, -1):
        x = np.full((3, n_cols), sign, np.float32)
        error = np.abs(ops.linear(x, w, pool=pool) - reference.linear(x, weights, ggml_type))
        assert np.all(error <= error_bound(x, weights, ggml_type) * 64)


@pytest.mark.parametrize("n_large", [0, 7, 8, 9, 15, 16, 17, 18, 32])
@pytest.mark.parametrize("ggml_type", [t for t in FORMATS if BLOCK_SIZES[t][0] == 256], ids=lambda t: t.name)
def test_sums_around_sixteen_bits(ggml_type: GGMLType, n_large: int, pool: ops.ThreadPool) -> None:
    """Kernels that keep the sums of a group, or of two groups, in 16 bits must notice those that do not fit.

    Rows of weights have all codes smallest or all largest; of 32 activations n_large are largest, all of one sign.
    """
    n_rows, n_cols = 32, 512
    data, _ = random_matrix(ggml_type, n_rows, n_cols)
    blocks = data.view(reference_formats.BLOCK_DTYPES[ggml_type]).reshape(n_rows, -1)
    for name in {"qs", "ql", "qh", "hmask"} & set(blocks.dtype.names or ()):
        blocks[name][::2] = 0
        blocks[name][1::2] = 0xFF
    x = np.full((MANY_ROWS, n_cols // 32, 32), 0.01, np.float32)
    from_both_ends = np.stack([np.arange(0, 32, 2), np.arange(31, 0, -2)], axis=1).reshape(-1)
    x[:, :, from_both_ends[:n_large]] = 1
    x[::3] *= -1
    x[4, 3] *= -1
    x = x.reshape(MANY_ROWS, n_cols)
    results = []
    for kernels in KERNELS:
        select_kernels(kernels)
        w = ops.pack_matrix([(data, ggml_type, n_rows)], n_cols, pool=pool)
        results.append(ops.linear(x, w, pool=pool))
    for kernels, result in zip(KERNELS, results, strict=True):
        assert np.array_equal(result, results[-1]), kernels


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("n_cols", [32, 96, 224, 288])
@pytest.mark.parametrize("ggml_type", [t for t in FORMATS if BLOCK_SIZES[t][0] == 32], ids=lambda t: t.name)
def test_columns_that_are_no_multiple_of_256(
    ggml_type: GGMLType, n_cols: int, kernels: str, pool: ops.ThreadPool
) -> None:
    select_kernels(kernels)
    data, weights = random_matrix(ggml_type, 17, n_cols)
    w = ops.pack_matrix([(data, ggml_type, 17)], n_cols, pool=pool)
    for n_rows in (9, MANY_ROWS):
        x = np.random.default_rng(6).standard_normal((n_rows, n_cols), np.float32)
        error = np.abs(ops.linear(x, w, pool=pool) - reference.linear(x, weights, ggml_type))
        assert np.all(error <= error_bound(x, weights, ggml_type)), f"{n_rows} rows"


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("n_cols", [1, 7, 80, 1000])
@pytest.mark.parametrize("ggml_type", FLOATS, ids=lambda t: t.name)
def test_floats_of_any_width(ggml_type: GGMLType, n_cols: int, kernels: str, pool: ops.ThreadPool) -> None:
    select_kernels(kernels)
    data, weights = random_matrix(ggml_type, 17, n_cols)
    w = ops.pack_matrix([(data, ggml_type, 17)], n_cols, pool=pool)
    for n_rows in (3, MANY_ROWS):
        x = np.random.default_rng(6).standard_normal((n_rows, n_cols), np.float32)
        error = np.abs(ops.linear(x, w, pool=pool) - reference.linear(x, weights, ggml_type))
        assert np.all(error <= error_bound(x, weights, ggml_type)), f"{n_rows} rows"


@pytest.mark.parametrize("n_cols", [1, 7, 80, 1000])
def test_norm_of_any_width(n_cols: int, pool: ops.ThreadPool) -> None:
    data, weights = random_matrix(GGMLType.F32, 5, n_cols)
    x = np.random.default_rng(7).standard_normal((3, n_cols), np.float32)
    norm = np.ones(n_cols, np.float32)
    w = ops.pack_matrix([(data, GGMLType.F32, 5)], n_cols, pool=pool)
    expected = reference.rms_norm(x, norm, 1e-5) @ weights.T
    np.testing.assert_allclose(ops.linear(x, w, pool=pool, norm_weight=norm, eps=1e-5), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kernels", KERNELS)
def test_norm_residual_and_wanted_rows(kernels: str, pool: ops.ThreadPool) -> None:
    select_kernels(kernels)
    data, weights = random_matrix(GGMLType.F32, 40, 96)
    rng = np.random.default_rng(8)
    x, residual = rng.standard_normal((50, 96), np.float32), rng.standard_normal((50, 40), np.float32)
    norm, rows = rng.standard_normal(96, np.float32), np.arange(49, -1, -1, dtype=np.int32)
    w = ops.pack_matrix([(data, GGMLType.F32, 40)], 96, pool=pool)
    got = ops.linear(x, w, pool=pool, norm_weight=norm, eps=1e-5, residual=residual, rows=rows)
    expected = residual[rows] + reference.rms_norm(x[rows], norm, 1e-5) @ weights.T
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("ggml_type", [GGMLType.Q4_K, GGMLType.Q6_K, GGMLType.Q8_0, GGMLType.F16], ids=lambda t: t.name)
def test_a_residual_is_added_after_the_product(ggml_type: GGMLType, kernels: str, pool: ops.ThreadPool) -> None:
    """Two whole tiles go straight to the output, two at once where rows are many; the last one is not whole."""
    select_kernels(kernels)
    data, _ = random_matrix(ggml_type, 56, 256)
    w = ops.pack_matrix([(data, ggml_type, 56)], 256, pool=pool)
    rng = np.random.default_rng(15)
    x, residual = rng.standard_normal((MANY_ROWS, 256), np.float32), rng.standard_normal((MANY_ROWS, 56), np.float32)
    for n in (1, 13, MANY_ROWS):
        expected = residual[:n] + ops.linear(x[:n], w, pool=pool)
        out = residual[:n].copy()
        assert np.array_equal(ops.linear(x[:n], w, pool=pool, residual=out), expected), f"{n} rows"
        assert np.array_equal(ops.linear(x[:n], w, pool=pool, residual=out, out=out), expected), f"{n} rows in place"


def test_out_may_be_the_residual(pool: ops.ThreadPool) -> None:
    data, _ = random_matrix(GGMLType.Q8_0, 64, 64)
    x = np.random.default_rng(9).standard_normal((MANY_ROWS, 64), np.float32)
    w = ops.pack_matrix([(data, GGMLType.Q8_0, 64)], 64, pool=pool)
    expected = ops.linear(x, w, pool=pool, residual=x)
    assert np.array_equal(ops.linear(x, w, pool=pool, residual=x, out=x), expected)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("n_inner", [16, 24, 40])
def test_swiglu_of_gate_and_up_rows(n_inner: int, kernels: str, pool: ops.ThreadPool) -> None:
    select_kernels(kernels)
    data, weights = random_matrix(GGMLType.F32, 2 * n_inner, 64)
    x = np.random.default_rng(10).standard_normal((MANY_ROWS, 64), np.float32)
    x[0] *= 100  # gates far below and above zero: exp must neither overflow nor lose the sign
    w = ops.pack_matrix([(data, GGMLType.F32, 2 * n_inner)], 64, activation="swiglu", pool=pool)
    expected = reference.swiglu(x.astype(np.float64) @ weights.T.astype(np.float64))
    got = ops.linear(x, w, pool=pool)
    assert got.shape == (MANY_ROWS, n_inner)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_parts_of_different_formats_are_stacked(pool: ops.ThreadPool) -> None:
    parts = [(GGMLType.Q4_K, 20), (GGMLType.Q6_K, 8), (GGMLType.Q8_0, 17), (GGMLType.F16, 3)]
    matrices = [random_matrix(t, n, 256, seed=n) for t, n in parts]
    x = np.random.default_rng(11).standard_normal((MANY_ROWS, 256), np.float32)
    w = ops.pack_matrix([(d, t, n) for (t, n), (d, _) in zip(parts, matrices, strict=True)], 256, pool=pool)
    alone = [
        ops.linear(x, ops.pack_matrix([(d, t, n)], 256, pool=pool), pool=pool)
        for (t, n), (d, _) in zip(parts, matrices, strict=True)
    ]
    assert np.array_equal(ops.linear(x, w, pool=pool), np.concatenate(alone, axis=1))


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("ggml_type", [GGMLType.Q4_K, GGMLType.Q8_0, GGMLType.F16], ids=lambda t: t.name)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_activation_shows_in_its_row_only(
    ggml_type: GGMLType, kernels: str, bad: float, pool: ops.ThreadPool
) -> None:
    select_kernels(kernels)
    data, _ = random_matrix(ggml_type, 16, 256)
    x = np.random.default_rng(12).standard_normal((3, 256), np.float32)
    x[1, 100] = bad
    w = ops.pack_matrix([(data, ggml_type, 16)], 256, pool=pool)
    got = ops.linear(x, w, pool=pool)
    assert not np.isfinite(got[1]).any()
    assert np.isfinite(got[[0, 2]]).all()


@pytest.mark.parametrize("kernels", KERNELS)
def test_zero_and_tiny_rows_give_zero(kernels: str, pool: ops.ThreadPool) -> None:
    select_kernels(kernels)
    data, _ = random_matrix(GGMLType.Q4_K, 16, 256)
    x = np.zeros((2, 256), np.float32)
    x[1] = 1e-42
    w = ops.pack_matrix([(data, GGMLType.Q4_K, 16)], 256, pool=pool)
    assert np.abs(ops.linear(x, w, pool=pool)).max() < 1e-38


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("ggml_type", FORMATS, ids=lambda t: t.name)
def test_nothing_past_the_last_byte_is_read(ggml_type: GGMLType, kernels: str, pool: ops.ThreadPool) -> None:
    """Weights and activations end at the end of a page whose successor cannot be read."""
    select_kernels(kernels)
    data, _ = random_matrix(ggml_type, 19, 256)
    x = np.random.default_rng(13).standard_normal((3, 256), np.float32)
    w = ops.pack_matrix([(at_page_end(data), ggml_type, 19)], 256, pool=pool)
    guarded = floats_at_page_end(x)
    expected = ops.linear(x, ops.pack_matrix([(data, ggml_type, 19)], 256, pool=pool), pool=pool)
    assert np.array_equal(ops.linear(guarded, w, pool=pool), expected)


def test_wrong_shapes_and_dtypes_name_what_was_got(pool: ops.ThreadPool) -> None:
    data, _ = random_matrix(GGMLType.Q8_0, 16, 64)
    w = ops.pack_matrix([(data, GGMLType.Q8_0, 16)], 64, pool=pool)
    with pytest.raises(ShapeError, match=r"x has shape \[2, 32\], expected \[2, 64\]"):
        ops.linear(np.zeros((2, 32), np.float32), w, pool=pool)
    with pytest.raises(ShapeError, match="float64"):
        ops.linear(np.zeros((2, 64)), w, pool=pool)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"rows\[0\] = 5 of 2"):
        ops.linear(np.zeros((2, 64), np.float32), w, pool=pool, rows=np.array([5], np.int32))
    with pytest.raises(ShapeError, match="residual"):
        ops.linear(np.zeros((2, 64), np.float32), w, pool=pool, residual=np.zeros((2, 15), np.float32))


def test_matrices_that_do_not_fit_their_bytes_are_refused(pool: ops.ThreadPool) -> None:
    data, _ = random_matrix(GGMLType.Q4_K, 16, 256)
    with pytest.raises(ShapeError, match="multiple of 256"):
        ops.pack_matrix([(data, GGMLType.Q4_K, 16)], 128, pool=pool)
    with pytest.raises(ShapeError, match="bytes"):
        ops.pack_matrix([(data[:-1], GGMLType.Q4_K, 16)], 256, pool=pool)
    with pytest.raises(ShapeError, match="block format 99"):
        ops.pack_matrix([(data, 99, 16)], 256, pool=pool)
    with pytest.raises(ShapeError, match="even number"):
        ops.pack_matrix([(data[: 15 * 144], GGMLType.Q4_K, 15)], 256, activation="swiglu", pool=pool)


def test_more_threads_than_cores_do_not_hang(pool: ops.ThreadPool) -> None:
    many = ops.ThreadPool(64)
    data, _ = random_matrix(GGMLType.Q8_0, 256, 64)
    w = ops.pack_matrix([(data, GGMLType.Q8_0, 256)], 64, pool=many)
    x = np.random.default_rng(14).standard_normal((1, 64), np.float32)
    expected = ops.linear(x, w, pool=pool)
    for _ in range(20):
        assert np.array_equal(ops.linear(x, w, pool=many), expected)
