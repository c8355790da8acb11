"""What becomes of a product: bias, addend, activation, residual; every instruction set against the definition."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import numpy as np
import pytest
from kernels.matrix_case import KERNELS, floats_at_page_end, random_matrix, select_kernels

from phlite import ops
from phlite.errors import ShapeError
from phlite.gguf import GGMLType
from phlite.ops.reference import linear as reference

ISAS = ops.supported_isas()
ACTIVATIONS: tuple[ops.Activation, ...] = get_args(ops.Activation)
GATED = ("swiglu", "gegelu")
LIMIT = 20.0


@pytest.fixture(autouse=True)
def _best_isa_again() -> Iterator[None]:
    yield
    select_kernels(ISAS[0])


@pytest.fixture(scope="module")
def pool() -> ops.ThreadPool:
    return ops.ThreadPool(2)


def pack(data: np.ndarray, ggml_type: GGMLType, n_rows: int, n_cols: int, activation: ops.Activation, **kwargs):
    limit = LIMIT if activation == "gegelu" else None
    return ops.pack_matrix([(data, ggml_type, n_rows)], n_cols, activation=activation, gegelu_limit=limit, **kwargs)


def definition(pre: np.ndarray, activation: ops.Activation) -> tuple[np.ndarray, np.ndarray]:
    """The activation of float32[T, N_pre] in float64, and how far the kernels may be from it (kernels.h)."""
    wide = pre.astype(np.float64)
    if activation == "none":
        return wide, np.zeros_like(wide)
    if activation == "gelu_tanh":
        z = 2 * np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
        value, size = reference.gelu_tanh(wide), np.abs(wide)
    elif activation == "swiglu":
        gate, up = np.split(wide, 2, axis=-1)
        z, value, size = gate, reference.swiglu(wide), np.abs(gate * up)
    else:
        gate, up = np.minimum(wide[:, 0::2], LIMIT), np.clip(wide[:, 1::2], -LIMIT, LIMIT)
        z, value, size = 1.702 * gate, reference.gegelu(wide, LIMIT), np.abs(gate * (up + 1))
    # tanh of the definition loses the digits of tiny values; the logistic function does not.
    logistic = np.exp(np.minimum(z, 0)) / (1 + np.exp(-np.abs(z)))
    bound = (np.abs(z) + 4) * 2.0**-22 * logistic * size + np.exp(-86) * size + 2.0**-52 * size + 1e-37
    if activation == "gegelu":  # the sum up + 1 is rounded before the product
        bound += 2.0**-24 * np.abs(gate) * logistic * (np.abs(up) + 1)
    return value, bound


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_given_values_equal_the_definition(
    activation: ops.Activation, isa: str, pool: ops.ThreadPool
) -> None:
    """The unit matrix passes values through unchanged, so what is measured is the activation alone."""
    ops.select_isa(isa)
    n = 256
    rng = np.random.default_rng(0)
    x = np.stack(
        [
            np.linspace(-100, 100, n),
            rng.standard_normal(n),
            rng.standard_normal(n) * 1e-6,
            rng.standard_normal(n) * 8,
            rng.standard_normal(n) * 1e-30,
            np.zeros(n),
        ]
    ).astype(np.float32)
    w = pack(np.eye(n, dtype=np.float32).view(np.uint8).reshape(-1), GGMLType.F32, n, n, activation, pool=pool)
    expected, bound = definition(x, activation)
    assert np.all(np.abs(ops.linear(x, w, pool=pool) - expected) <= bound)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", ["gelu_tanh", "swiglu", "gegelu"])
def test_huge_values_neither_overflow_nor_lose_their_sign(
    activation: ops.Activation, isa: str, pool: ops.ThreadPool
) -> None:
    ops.select_isa(isa)
    w = pack(np.eye(2, dtype=np.float32).view(np.uint8).reshape(-1), GGMLType.F32, 2, 2, activation, pool=pool)
    got = ops.linear(np.array([[1e19, 1.0], [-1e19, 1.0], [3e38, 1.0], [-3e38, 1.0]], np.float32), w, pool=pool)
    top = {"gelu_tanh": (1e19, 3e38), "swiglu": (1e19, 3e38), "gegelu": (40.0, 40.0)}[activation]
    np.testing.assert_allclose(got[[0, 2], 0], top, rtol=1e-6)
    assert np.all(np.abs(got[[1, 3], 0]) < 20)  # exp stops at exp(87), 6e37


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", ["gelu_tanh", "swiglu", "gegelu"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_stays_so(
    bad: float, activation: ops.Activation, isa: str, pool: ops.ThreadPool
) -> None:
    ops.select_isa(isa)
    w = pack(np.eye(4, dtype=np.float32).view(np.uint8).reshape(-1), GGMLType.F32, 4, 4, activation, pool=pool)
    bias = np.array([bad, 1, 1, 1], np.float32)
    got = ops.linear(np.ones((1, 4), np.float32), w, pool=pool, bias=bias)[0]
    assert not np.isfinite(got[0])
    assert np.isfinite(got[1:]).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n_rows", [2, 10, 34, 80])
@pytest.mark.parametrize("ggml_type", [GGMLType.F32, GGMLType.Q8_0, GGMLType.Q4_K], ids=lambda t: t.name)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bias_addend_activation_and_residual_follow_the_product_in_this_order(
    activation: ops.Activation, ggml_type: GGMLType, n_rows: int, isa: str, pool: ops.ThreadPool
) -> None:
    ops.select_isa(isa)
    data, _ = random_matrix(ggml_type, n_rows, 256, seed=n_rows)
    rng = np.random.default_rng(1)
    x, bias = rng.standard_normal((60, 256), np.float32), rng.standard_normal(n_rows, np.float32)
    addend = rng.standard_normal((52, n_rows), np.float32)
    rows = np.array([59, 0, 3, 3, *range(7, 55)], np.int32)
    product = ops.linear(x, pack(data, ggml_type, n_rows, 256, "none", pool=pool), pool=pool)
    # Sums of float32 in the order of the contract: these bits are exact, only the activation may differ.
    expected, bound = definition((product[rows] + bias) + addend, activation)

    w = pack(data, ggml_type, n_rows, 256, activation, pool=pool)
    got = ops.linear(x, w, pool=pool, rows=rows, bias=bias, addend=addend)
    assert got.shape == (52, n_rows // 2 if activation in GATED else n_rows)
    assert np.all(np.abs(got - expected) <= bound)
    residual = rng.standard_normal((60, got.shape[1]), np.float32)
    with_residual = ops.linear(x, w, pool=pool, rows=rows, bias=bias, addend=addend, residual=residual)
    assert np.array_equal(with_residual, residual[rows] + got)
    alone = ops.linear(x[59:], w, pool=pool, bias=bias, addend=addend[:1])
    assert np.array_equal(alone, got[:1])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_instruction_sets_and_threads_do_not_change_a_bit(activation: ops.Activation) -> None:
    data, _ = random_matrix(GGMLType.Q4_K, 1000, 512)
    rng = np.random.default_rng(2)
    x, bias = rng.standard_normal((62, 512), np.float32), rng.standard_normal(1000, np.float32)
    norm_weight, norm_bias = rng.standard_normal((2, 512), np.float32)
    addend = rng.standard_normal((62, 1000), np.float32)
    results = []
    for kernels in KERNELS:
        select_kernels(kernels)
        for n_threads in (1, 2, 7):
            pool = ops.ThreadPool(n_threads)
            w = pack(data, GGMLType.Q4_K, 1000, 512, activation, pool=pool)
            given = {"norm_weight": norm_weight, "norm_bias": norm_bias, "eps": 1e-5, "bias": bias, "pool": pool}
            results.append(ops.linear(x, w, addend=addend, **given))
            for m in (1, 5):
                part = ops.linear(x[:m], w, addend=addend[:m], **given)
                assert np.array_equal(part, results[0][:m]), (kernels, n_threads, m)
    assert all(np.array_equal(results[0], r) for r in results[1:])


def test_gate_and_up_rows_of_different_formats_are_stacked(pool: ops.ThreadPool) -> None:
    (gate, _), (up, _) = random_matrix(GGMLType.Q4_K, 40, 256), random_matrix(GGMLType.Q6_K, 40, 256, seed=1)
    x = np.random.default_rng(3).standard_normal((3, 256), np.float32)
    halves = [(gate, GGMLType.Q4_K, 40), (up, GGMLType.Q6_K, 40)]
    w = ops.pack_matrix(halves, 256, activation="swiglu", pool=pool)
    expected, bound = definition(ops.linear(x, ops.pack_matrix(halves, 256, pool=pool), pool=pool), "swiglu")
    assert np.all(np.abs(ops.linear(x, w, pool=pool) - expected) <= bound)
    uneven = [halves[0], (random_matrix(GGMLType.Q6_K, 12, 256)[0], GGMLType.Q6_K, 12)]
    with pytest.raises(ShapeError, match="split in different places"):
        ops.pack_matrix(uneven, 256, activation="swiglu", pool=pool)


def test_gegelu_without_a_limit_clamps_nothing(pool: ops.ThreadPool) -> None:
    data = np.eye(2, dtype=np.float32).view(np.uint8).reshape(-1)
    w = ops.pack_matrix([(data, GGMLType.F32, 2)], 2, activation="gegelu", pool=pool)
    assert ops.linear(np.array([[50.0, 99.0]], np.float32), w, pool=pool)[0, 0] == 5000.0


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nothing_past_the_last_byte_is_read(activation: ops.Activation, isa: str, pool: ops.ThreadPool) -> None:
    ops.select_isa(isa)
    data, _ = random_matrix(GGMLType.F32, 38, 64)
    rng = np.random.default_rng(4)
    x, bias = rng.standard_normal((3, 64), np.float32), rng.standard_normal(38, np.float32)
    addend = rng.standard_normal((3, 38), np.float32)
    w = pack(data, GGMLType.F32, 38, 64, activation, pool=pool)
    expected = ops.linear(x, w, pool=pool, bias=bias, addend=addend)
    guarded = ops.linear(x, w, pool=pool, bias=floats_at_page_end(bias), addend=floats_at_page_end(addend))
    assert np.array_equal(guarded, expected)


def test_wrong_shapes_and_options_name_what_was_got(pool: ops.ThreadPool) -> None:
    data, _ = random_matrix(GGMLType.Q8_0, 16, 64)
    part, x = [(data, GGMLType.Q8_0, 16)], np.zeros((2, 64), np.float32)
    w = ops.pack_matrix(part, 64, activation="swiglu", pool=pool)
    with pytest.raises(ShapeError, match=r"bias has shape \[1, 8\], expected \[1, 16\]"):
        ops.linear(x, w, pool=pool, bias=np.zeros(8, np.float32))
    with pytest.raises(ShapeError, match=r"addend has shape \[2, 8\], expected \[2, 16\]"):
        ops.linear(x, w, pool=pool, addend=np.zeros((2, 8), np.float32))
    with pytest.raises(ShapeError, match="addend float64"):
        ops.linear(x, w, pool=pool, addend=np.zeros((2, 16)))  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="activation 'relu', expected 'none', 'swiglu'"):
        ops.pack_matrix(part, 64, activation="relu", pool=pool)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="gegelu_limit is given with activation 'swiglu'"):
        ops.pack_matrix(part, 64, activation="swiglu", gegelu_limit=20.0, pool=pool)
    for limit in (0.0, -1.0, np.nan):
        with pytest.raises(ShapeError, match="gegelu_limit must be above 0"):
            ops.pack_matrix(part, 64, activation="gegelu", gegelu_limit=limit, pool=pool)
