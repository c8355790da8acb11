"""Errors and times of the quantisers beside llama.cpp's, on Gaussian, heavy-tailed and outlier-column weights.

Both run on the same tensors with the same threads, in turn, several rounds; times are medians, and the ratio is the
median of each round's. The error is the root mean square one, weighted by the importance where there is one. Prints a
table; --json prints one object per line instead.

    python benchmarks/quantize.py --threads 2 --rounds 5
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import llama_cpp
import numpy as np

from phlite import ops
from phlite.gguf import GGMLType, tensor_bytes

FORMATS = [
    *("F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K", "Q2_K")
]
LLAMA_CPP_CHUNK = 32 * 512  # elements that its file quantiser hands to a thread at once


def make_tensors(n_rows: int, n_cols: int) -> dict[str, np.ndarray]:
    """Return weights of standard deviation 0.02: normal, Student's t with 3.5 degrees of freedom, 1 % columns x 20."""
    rng = np.random.default_rng(0)
    gaussian = (rng.standard_normal((n_rows, n_cols)) * 0.02).astype(np.float32)
    outliers = gaussian.copy()
    outliers[:, rng.choice(n_cols, n_cols // 100, replace=False)] *= 20
    heavy = (rng.standard_t(3.5, (n_rows, n_cols)) * 0.02).astype(np.float32)
    return {"gaussian": gaussian, "heavy": heavy, "outliers": outliers}


def llama_cpp_quantizer(n_threads: int) -> Callable[[np.ndarray, GGMLType, np.ndarray | None], np.ndarray]:
    """Return ggml_quantize_chunk over all threads, in the chunks of llama.cpp's file quantiser."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(str(next(path for path in sorted(folder.iterdir()) if "ggml-base" in path.name)))
    chunk = library.ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    threads = ThreadPoolExecutor(n_threads)

    def quantize(x: np.ndarray, kind: GGMLType, importance: np.ndarray | None) -> np.ndarray:
        out = np.empty(tensor_bytes(kind, x.shape), np.uint8)
        n_rows, n_cols = x.shape
        weights = None if importance is None else importance.ctypes.data
        # A call from Python costs more than one of llama.cpp's own, so the chunks are larger here.
        step = max(64 * LLAMA_CPP_CHUNK // n_cols, 1)

        def run(start: int) -> None:
            chunk(kind, x.ctypes.data, out.ctypes.data, start * n_cols, min(step, n_rows - start), n_cols, weights)

        list(threads.map(run, range(0, n_rows, step)))
        return out

    return quantize


def error(x: np.ndarray, data: np.ndarray, kind: GGMLType, importance: np.ndarray | None) -> float:
    weights = 1.0 if importance is None else importance
    return float(np.sqrt(np.mean(weights * np.square(ops.dequantize(data, kind, x.shape) - x, dtype=np.float64))))


def timed(call: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    data = call()
    return time.perf_counter() - start, data


def measure(args: argparse.Namespace, name: str, weighted: bool) -> dict[str, object]:
    """Return error ratios per kind of weights, the time ratio and both speeds for one format."""
    kind, pool, theirs = GGMLType[name], ops.ThreadPool(args.threads), llama_cpp_quantizer(args.threads)
    tensors = make_tensors(args.rows, args.cols)
    importance = np.exp(np.random.default_rng(1).standard_normal(args.cols)).astype(np.float32) if weighted else None
    ratios = {}
    for what, x in tensors.items():
        ours_error = error(x, ops.quantize(x, kind, importance=importance, pool=pool), kind, importance)
        ratios[what] = ours_error / error(x, theirs(x, kind, importance), kind, importance)
    x = np.concatenate([tensors["gaussian"]] * args.repeat)
    times = []
    for _ in range(args.rounds):
        ours_s, _ = timed(lambda: ops.quantize(x, kind, importance=importance, pool=pool))
        theirs_s, _ = timed(lambda: theirs(x, kind, importance))
        times.append((ours_s, theirs_s))
    both = np.median(np.array(times), axis=0)
    return {
        "format": name,
        "importance": weighted,
        "error_ratio": ratios,
        "time_ratio": float(np.median([ours / llama for ours, llama in times])),
        "million_per_s": float(x.size / both[0] / 1e6),
        "llama_cpp_million_per_s": float(x.size / both[1] / 1e6),
    }


def main() -> None:
    """Measure every format, without and with importance."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--cols", type=int, default=3072)
    parser.add_argument("--repeat", type=int, default=1, help="times the rows are stacked for the timing")
    parser.add_argument("--threads", type=int, default=ops.physical_core_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not args.json:
        print(f"{'format':<9}{'gaussian':>9}{'heavy':>8}{'outliers':>9}{'time':>7}{'M/s':>7}{'llama.cpp':>10}")
    for name in args.formats:
        for weighted in (False, True) if name not in ("F16", "BF16") else (False,):
            row = measure(args, name, weighted)
            if args.json:
                print(json.dumps(row), flush=True)
                continue
            ratios = row["error_ratio"]
            assert isinstance(ratios, dict)
            print(
                f"{name + ('+i' if weighted else ''):<9}{ratios['gaussian']:>9.4f}{ratios['heavy']:>8.4f}"
                f"{ratios['outliers']:>9.4f}{row['time_ratio']:>7.3f}{row['million_per_s']:>7.0f}"
                f"{row['llama_cpp_million_per_s']:>10.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
