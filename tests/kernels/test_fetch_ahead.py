"""Matrices so large that weights are asked for ahead: every set, asking in every way, gives the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from kernels.matrix_case import random_matrix, select_kernels

from phlite import _native, ops
from phlite.gguf import BLOCK_SIZES, GGMLType

# Planes of codes of every number that is asked for together, scales in front of the tile or not, a tile of floats.
FORMATS = [GGMLType[name] for name in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0", "F16")]
FETCHED_BYTES = 1 << 20  # kFetchedBytes of csrc/matmul/linear.cpp
# The first group of rows asks: of each size that some instruction set has, alone and with others behind it.
ROW_COUNTS = (1, 2, 3, 4, 5, 8, 13)


class Product(NamedTuple):
    w: ops.PackedMatrix
    x: np.ndarray
    expected: np.ndarray


@pytest.fixture(autouse=True)
def _best_isa_again() -> Iterator[None]:
    yield
    select_kernels(ops.supported_isas()[0])


@pytest.fixture(scope="module")
def pool() -> ops.ThreadPool:
    return ops.ThreadPool(2)


@pytest.fixture(scope="module", params=FORMATS, ids=lambda t: t.name)
def product(request: pytest.FixtureRequest, pool: ops.ThreadPool) -> Product:
    """A last tile that is not whole, a last slice that is not where the format allows it; no asking in `expected`."""
    ggml_type = request.param
    block, n_bytes = BLOCK_SIZES[ggml_type]
    n_cols = 2048 if block == 256 else 2080
    n_rows = FETCHED_BYTES // (n_cols // block * n_bytes) // 16 * 16 + 16 + 5
    data, _ = random_matrix(ggml_type, n_rows, n_cols)
    w = ops.pack_matrix([(data, ggml_type, n_rows)], n_cols, pool=pool)
    assert w.n_bytes >= FETCHED_BYTES
    x = np.random.default_rng(1).standard_normal((max(ROW_COUNTS), n_cols), np.float32)
    select_kernels("scalar/zen4")
    return Product(w, x, ops.linear(x, w, pool=pool))


@pytest.mark.parametrize("tuning", _native.tuning_names())
@pytest.mark.parametrize("isa", ops.supported_isas())
def test_asking_ahead_changes_no_bit(product: Product, isa: str, tuning: str, pool: ops.ThreadPool) -> None:
    select_kernels(f"{isa}/{tuning}")
    for n in ROW_COUNTS:
        got = ops.linear(product.x[:n], product.w, pool=pool)
        assert np.array_equal(got, product.expected[:n]), f"{n} rows"
