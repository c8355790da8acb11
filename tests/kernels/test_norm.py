"""RMS norm and LayerNorm, alone and before a product: every instruction set against the definition and each other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from kernels.matrix_case import floats_at_page_end, random_matrix

from phlite import ops
from phlite.errors import ShapeError
from phlite.gguf import GGMLType
from phlite.ops.reference import linear as reference

ISAS = ops.supported_isas()
WIDTHS = (1, 5, 15, 16, 17, 80, 1000, 2560, 4096)
EPS = 1e-5


@pytest.fixture(autouse=True)
def _best_isa_again() -> Iterator[None]:
    yield
    ops.select_isa(ISAS[0])


@pytest.fixture(scope="module")
def pool() -> ops.ThreadPool:
    return ops.ThreadPool(2)


def norm_case(n_cols: int, *, mean: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows float32[6, n_cols] around `mean`, weight and bias float32[n_cols]."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((6, n_cols), np.float32) + np.float32(mean)
    return x, rng.standard_normal(n_cols, np.float32), rng.standard_normal(n_cols, np.float32)


def rms_norm_bound(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Half the relative error of a sum of n squares in sixteen chains, and of five roundings after it."""
    return (x.shape[1] / 16 + 16) * 2.0**-24 * np.abs(reference.rms_norm(x, weight, EPS)) + 1e-38


def layer_norm_bound(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The mean's error moves every value alike; its square and the rounding of the squares change the scale."""
    n = x.shape[1]
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=1, keepdims=True)
    scale = 1 / np.sqrt((centred**2).mean(axis=1, keepdims=True) + EPS)
    mean_error = (n / 16 + 6) * 2.0**-24 * np.abs(wide).mean(axis=1, keepdims=True)
    # Each x - mean is rounded too: at most half an ulp of itself, of the mean where they cancel.
    moved = scale * (mean_error + 2.0**-24 * np.abs(centred))
    stretched = np.abs(centred) * scale * ((n / 16 + 12) * 2.0**-24 + (mean_error * scale) ** 2)
    return np.abs(weight) * (moved + stretched) + 2.0**-23 * (np.abs(weight * centred * scale) + np.abs(bias))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n_cols", WIDTHS)
def test_rms_norm_equals_the_definition(n_cols: int, isa: str) -> None:
    ops.select_isa(isa)
    x, weight, _ = norm_case(n_cols)
    error = np.abs(ops.norm(x, weight, EPS) - reference.rms_norm(x, weight, EPS))
    assert np.all(error <= rms_norm_bound(x, weight))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("mean", [0.0, 3.0, -1000.0])
@pytest.mark.parametrize("n_cols", WIDTHS)
def test_layer_norm_equals_the_definition_also_around_a_large_mean(n_cols: int, mean: float, isa: str) -> None:
    ops.select_isa(isa)
    x, weight, bias = norm_case(n_cols, mean=mean)
    error = np.abs(ops.norm(x, weight, EPS, bias) - reference.layer_norm(x, weight, bias, EPS))
    assert np.all(error <= layer_norm_bound(x, weight, bias))


def test_layer_norm_of_a_constant_row_is_the_bias(pool: ops.ThreadPool) -> None:
    """No variance: eps alone is under the root, and nothing is divided by zero."""
    _, weight, bias = norm_case(96)
    x = np.full((2, 96), 4.0, np.float32)
    assert np.array_equal(ops.norm(x, weight, EPS, bias, pool=pool), np.stack([bias, bias]))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("n_cols", WIDTHS)
def test_every_instruction_set_and_pool_gives_the_same_bits(n_cols: int, with_bias: bool) -> None:
    x, weight, bias = norm_case(n_cols, mean=0.5)
    results = []
    for isa in ISAS:
        ops.select_isa(isa)
        for pool in (None, *map(ops.ThreadPool, (1, 2, 7))):
            results.append(ops.norm(x, weight, EPS, bias if with_bias else None, pool=pool))
    assert all(np.array_equal(results[0], r) for r in results[1:])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("ggml_type", [GGMLType.Q4_K, GGMLType.Q8_0, GGMLType.F16], ids=lambda t: t.name)
def test_a_norm_before_a_product_has_the_bits_of_the_norm_alone(
    ggml_type: GGMLType, with_bias: bool, isa: str, pool: ops.ThreadPool
) -> None:
    ops.select_isa(isa)
    x, weight, bias = norm_case(512, mean=-2.0)
    given = bias if with_bias else None
    w = ops.pack_matrix([(random_matrix(ggml_type, 33, 512)[0], ggml_type, 33)], 512, pool=pool)
    expected = ops.linear(ops.norm(x, weight, EPS, given), w, pool=pool)
    fused = ops.linear(x, w, pool=pool, norm_weight=weight, norm_bias=given, eps=EPS)
    assert np.array_equal(fused, expected)
    assert np.array_equal(ops.linear(x[:1], w, pool=pool, norm_weight=weight, norm_bias=given, eps=EPS), expected[:1])


@pytest.mark.parametrize("isa", ISAS)
def test_nothing_past_the_last_column_is_read(isa: str) -> None:
    ops.select_isa(isa)
    x, weight, bias = norm_case(83)
    guarded = ops.norm(floats_at_page_end(x), floats_at_page_end(weight), EPS, floats_at_page_end(bias))
    assert np.array_equal(guarded, ops.norm(x, weight, EPS, bias))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_value_shows_in_its_whole_row_only(bad: float, isa: str) -> None:
    ops.select_isa(isa)
    x, weight, bias = norm_case(80)
    x[1, 70] = bad
    got = ops.norm(x, weight, EPS, bias)
    assert not np.isfinite(got[1]).any()
    assert np.isfinite(got[[0, 2]]).all()


def test_wrong_shapes_and_dtypes_name_what_was_got(pool: ops.ThreadPool) -> None:
    x, weight, bias = norm_case(64)
    w = ops.pack_matrix([(random_matrix(GGMLType.Q8_0, 16, 64)[0], GGMLType.Q8_0, 16)], 64, pool=pool)
    with pytest.raises(ShapeError, match=r"norm: norm_weight has shape \[1, 63\], expected \[1, 64\]"):
        ops.norm(x, weight[:63], EPS)
    with pytest.raises(ShapeError, match=r"norm: norm_bias has shape \[1, 63\]"):
        ops.norm(x, weight, EPS, bias[:63])
    with pytest.raises(ShapeError, match="norm: got x float64"):
        ops.norm(x.astype(np.float64), weight, EPS)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="norm_bias is given without norm_weight"):
        ops.linear(x, w, pool=pool, norm_bias=bias)
