"""Speed of the attention kernels alone: decode in GB/s of cache read, prefill in GFLOP/s, per cache dtype and depth.

Layers are visited in turn, as in a model, so that the cache of one layer has left the processor's caches when its turn
comes again. Prints a table; --json prints one object per line instead. With --block-sparse each test is also measured
with a mask of local blocks and stripes, in turn with the dense one, and the ratio of their times is printed.

    python benchmarks/attention.py --threads 2 --depths 2048 3584 --prefill 512
    python benchmarks/attention.py --kv-heads 8 --head-dim 128 --depths 8000 --block-sparse 64 16 8    # Phi-3-small
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator

import numpy as np

from phlite import ops

BYTES_PER_VALUE = {"f16": 2.0, "f32": 4.0, "q8_0": 1.0 + 2.0 / 32}


def filled_cache(args: argparse.Namespace, dtype: str, n_positions: int) -> ops.KVCache:
    """Return a cache whose first n_positions hold random keys and values."""
    cache = ops.KVCache(args.layers, -(-n_positions // 64), args.kv_heads, args.head_dim, dtype)
    pool = ops.ThreadPool(args.threads)
    rng = np.random.default_rng(0)
    for start in range(0, n_positions, 512):
        n = min(512, n_positions - start)
        step = batch(args, start, n, n_positions)
        for layer_idx in range(args.layers):
            qkv = rng.standard_normal((n, (args.heads + 2 * args.kv_heads) * args.head_dim), np.float32)
            # A window of one key makes filling cheap.
            attend(args, cache, layer_idx, step, qkv, pool, sliding_window=1)
    return cache


def batch(args: argparse.Namespace, start: int, n: int, n_positions: int) -> ops.AttentionBatch:
    """Return the batch of n tokens of one sequence from position `start` on."""
    return ops.AttentionBatch(
        positions=np.arange(start, start + n, dtype=np.int32),
        seq_starts=np.array([0, n], np.int32),
        block_tables=np.arange(-(-n_positions // 64), dtype=np.int32)[None],
        cos_sin=np.tile(np.repeat(np.array([[1, 0]], np.float32), args.head_dim // 2, axis=1), (n, 1)),
    )


def attend(
    args: argparse.Namespace,
    cache: ops.KVCache,
    layer_idx: int,
    step: ops.AttentionBatch,
    qkv: np.ndarray,
    pool: ops.ThreadPool,
    sliding_window: int = 0,
    block_sparse: ops.BlockSparse | None = None,
) -> None:
    ops.attention(
        qkv,
        cache,
        layer_idx,
        step,
        n_heads=args.heads,
        softmax_scale=args.head_dim**-0.5,
        sliding_window=sliding_window,
        rope_interleaved=False,
        pool=pool,
        block_sparse=block_sparse,
    )


def seconds_per_layer(
    args: argparse.Namespace, cache: ops.KVCache, start: int, n: int, n_positions: int
) -> tuple[float, float | None]:
    """Return the median time of one layer's attention of n tokens at positions `start` ..., dense and block-sparse."""
    pool = ops.ThreadPool(args.threads)
    step = batch(args, start, n, n_positions)
    rng = np.random.default_rng(1)
    qkv = rng.standard_normal((n, (args.heads + 2 * args.kv_heads) * args.head_dim), np.float32)
    masks = [None, ops.BlockSparse(*args.block_sparse)] if args.block_sparse else [None]
    times: list[list[float]] = [[] for _ in masks]
    for _ in range(args.rounds + 1):
        for i, mask in enumerate(masks):
            for layer_idx in range(args.layers):
                x = qkv.copy()
                t = time.perf_counter()
                attend(args, cache, layer_idx, step, x, pool, block_sparse=mask)
                times[i].append(time.perf_counter() - t)
    medians = [float(np.median(of_mask[args.layers :])) for of_mask in times]
    return medians[0], medians[1] if args.block_sparse else None


def measure(args: argparse.Namespace) -> Iterator[dict[str, object]]:
    for dtype in args.dtypes:
        n_positions = max(args.depths) + max([1, *args.prefill])
        cache = filled_cache(args, dtype, n_positions)
        for depth in args.depths:
            common = {"kv_type": dtype, "depth": depth, "isa": ops.isa_name(), "n_threads": args.threads}
            s, sparse = seconds_per_layer(args, cache, depth, 1, n_positions)
            kv_bytes = 2 * (depth + 1) * args.kv_heads * args.head_dim * BYTES_PER_VALUE[dtype]
            yield {"test": "decode", **common, **times(s, sparse), "gb_per_s": kv_bytes / s / 1e9}
            for n in args.prefill:
                s, sparse = seconds_per_layer(args, cache, depth, n, n_positions)
                keys = n * depth + n * (n + 1) / 2
                flops = 4 * keys * args.heads * args.head_dim
                yield {"test": f"pp{n}", **common, **times(s, sparse), "gflop_per_s": flops / s / 1e9}


def times(s: float, sparse: float | None) -> dict[str, float]:
    dense = {"us_per_layer": s * 1e6}
    return dense if sparse is None else {**dense, "sparse_us_per_layer": sparse * 1e6, "speedup": s / sparse}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=ops.physical_core_count())
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=32)
    parser.add_argument("--head-dim", type=int, default=96)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--depths", type=int, nargs="+", default=[2048, 3584])
    parser.add_argument("--prefill", type=int, nargs="*", default=[128])
    parser.add_argument("--dtypes", nargs="+", default=["f16", "q8_0"])
    parser.add_argument("--block-sparse", type=int, nargs=3, metavar=("BLOCK", "LOCAL_BLOCKS", "STRIDE"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    for row in measure(args):
        if args.json:
            print(json.dumps(row), flush=True)
        else:
            speed = f"{row['gb_per_s']:8.1f} GB/s" if "gb_per_s" in row else f"{row['gflop_per_s']:8.1f} GFLOP/s"
            sparse = ""
            if "speedup" in row:
                sparse = f", sparse {row['sparse_us_per_layer']:8.0f} us/layer, {row['speedup']:.2f} times faster"
            print(
                f"{row['isa']:>10} {row['kv_type']:>5} {row['test']:>7} depth {row['depth']:6}"
                f" {row['us_per_layer']:10.0f} us/layer {speed}{sparse}",
                flush=True,
            )


if __name__ == "__main__":
    main()
