"""The quantisers beside llama.cpp's own on the same tensors: the error is never larger, with and without importance."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from phlite import ops
from phlite.gguf import GGMLType, tensor_bytes

FORMATS = sorted(ops.QUANTIZABLE)

Quantizer = Callable[[np.ndarray, GGMLType, "np.ndarray | None"], np.ndarray]


@pytest.fixture(scope="module")
def llama_cpp_quantize() -> Quantizer:
    """Return ggml_quantize_chunk as a function of (x, type, importance)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        llama_cpp = pytest.importorskip("llama_cpp", reason="the oracle needs llama-cpp-python")
    folder = Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(str(next(path for path in sorted(folder.iterdir()) if "ggml-base" in path.name)))
    function = library.ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def quantize(x: np.ndarray, kind: GGMLType, importance: np.ndarray | None) -> np.ndarray:
        out = np.zeros(tensor_bytes(kind, x.shape), np.uint8)
        weights = None if importance is None else importance.ctypes.data
        assert function(int(kind), x.ctypes.data, out.ctypes.data, 0, *x.shape, weights) == out.nbytes
        return out

    return quantize


def gaussian(rng: np.random.Generator) -> np.ndarray:
    return (rng.standard_normal((24, 1536)) * 0.02).astype(np.float32)


def heavy_tailed(rng: np.random.Generator) -> np.ndarray:
    return (rng.standard_t(3.5, (24, 1536)) * 0.02).astype(np.float32)


def outlier_columns(rng: np.random.Generator) -> np.ndarray:
    x = gaussian(rng)
    x[:, rng.choice(1536, 15, replace=False)] *= 20
    return x


def root_mean_square_error(x: np.ndarray, data: np.ndarray, kind: GGMLType, weights: np.ndarray | float) -> float:
    return float(np.sqrt(np.mean(weights * (ops.dequantize(data, kind, x.shape).astype(np.float64) - x) ** 2)))


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("make", [gaussian, heavy_tailed, outlier_columns])
@pytest.mark.parametrize("kind", FORMATS, ids=lambda t: t.name)
def test_the_error_is_at_most_llama_cpps(kind, make, weighted, llama_cpp_quantize: Quantizer, pool: ops.ThreadPool):
    rng = np.random.default_rng(71)
    x = make(rng)
    importance = np.exp(rng.standard_normal(1536)).astype(np.float32) if weighted else None
    ours = ops.quantize(x, kind, importance=importance, pool=pool)
    theirs = llama_cpp_quantize(x, kind, importance)
    weights = 1.0 if importance is None else importance.astype(np.float64)
    assert root_mean_square_error(x, ours, kind, weights) <= root_mean_square_error(x, theirs, kind, weights)
