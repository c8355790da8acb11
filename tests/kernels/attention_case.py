"""Random attention problems: sequences, their place in a cache, the native result and the exact one with its bound."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from phlite import ops
from phlite.ops.reference import attention as reference

EPS = 2.0**-24
LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class AttentionCase:
    """One layer's shape and options, and the tokens of its sequences (all tokens, from position 0)."""

    n_heads: int = 2
    n_kv_heads: int = 2
    head_dim: int = 96
    dtype: str = "f16"
    sliding_window: int = 0
    block_sparse: ops.BlockSparse | None = None
    rotary_dim: int | None = None
    interleaved: bool = False
    n_tokens: tuple[int, ...] = (150,)
    seed: int = 1
    magnitude: float = 1.5
    qkv: list[np.ndarray] = field(default_factory=list)
    cos_sin: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        rot = self.head_dim if self.rotary_dim is None else self.rotary_dim
        for seq, n in enumerate(self.n_tokens):
            # A stream per sequence: a sequence has the same values whoever its neighbours are.
            rng = np.random.default_rng([self.seed, seq, n])
            n_cols = (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
            self.qkv.append(rng.standard_normal((n, n_cols), np.float32) * np.float32(self.magnitude))
            angles = np.arange(n)[:, None] * 10000.0 ** (-np.arange(0, rot, 2) / max(rot, 1))
            self.cos_sin.append(np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))

    @property
    def n_blocks(self) -> int:
        return sum(-(-n // 64) for n in self.n_tokens)

    def block_tables(self) -> np.ndarray:
        """Shuffled block ids, -1 behind the last block of a sequence."""
        ids = iter(np.random.default_rng(self.seed).permutation(self.n_blocks))
        tables = np.full((len(self.n_tokens), max(-(-n // 64) for n in self.n_tokens)), -1, np.int32)
        for seq, n in enumerate(self.n_tokens):
            for j in range(-(-n // 64)):
                tables[seq, j] = next(ids)
        return tables

    def cache(self) -> ops.KVCache:
        return ops.KVCache(1, self.n_blocks, self.n_kv_heads, self.head_dim, self.dtype)

    def step(
        self, cache: ops.KVCache, pool: ops.ThreadPool, chunks: dict[int, tuple[int, int]]
    ) -> dict[int, np.ndarray]:
        """Run the tokens start .. stop of some sequences in one call; return their rows, float32[n, Hq * D]."""
        seqs = list(chunks)
        parts = [slice(*chunks[s]) for s in seqs]
        lengths = [p.stop - p.start for p in parts]
        batch = ops.AttentionBatch(
            positions=np.concatenate([np.arange(p.start, p.stop, dtype=np.int32) for p in parts]),
            seq_starts=np.cumsum([0, *lengths]).astype(np.int32),
            block_tables=self.block_tables()[seqs],
            cos_sin=np.concatenate([self.cos_sin[s][p] for s, p in zip(seqs, parts, strict=True)]),
        )
        out = ops.attention(
            np.concatenate([self.qkv[s][p] for s, p in zip(seqs, parts, strict=True)]),
            cache,
            0,
            batch,
            n_heads=self.n_heads,
            softmax_scale=self.head_dim**-0.5,
            sliding_window=self.sliding_window,
            rope_interleaved=self.interleaved,
            pool=pool,
            block_sparse=self.block_sparse,
        )
        return dict(zip(seqs, np.split(out, np.cumsum(lengths)[:-1]), strict=True))

    def whole(self, n_threads: int = 1) -> list[np.ndarray]:
        """All tokens of all sequences in one call."""
        rows = self.step(self.cache(), ops.ThreadPool(n_threads), {s: (0, n) for s, n in enumerate(self.n_tokens)})
        return [rows[s] for s in range(len(self.n_tokens))]

    def heads(self, seq: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rotated q and k, and v of a sequence, float32[T, H, D] each."""
        h = self.qkv[seq].reshape(self.n_tokens[seq], -1, self.head_dim)
        q, k, v = np.split(h, [self.n_heads, self.n_heads + self.n_kv_heads], axis=1)
        cos_sin = self.cos_sin[seq]
        return (
            reference.rope(q, cos_sin, interleaved=self.interleaved),
            reference.rope(k, cos_sin, interleaved=self.interleaved),
            v,
        )

    def exact(self, seq: int) -> np.ndarray:
        """float64[T, Hq * D]: attention over the rounded keys and values in double precision."""
        q, k, v = self.heads(seq)
        # The kernel's queries carry softmax_scale * log2(e) before they are rounded to int8.
        scale = np.float32(np.float64(np.float32(self.head_dim**-0.5)) * LOG2_E)
        rounded = reference.round_query(q * scale, self.dtype) / LOG2_E
        positions = np.arange(self.n_tokens[seq], dtype=np.int32)
        out = reference.attend(
            rounded,
            reference.round_kv(k, self.dtype),
            reference.round_kv(v, self.dtype),
            positions,
            softmax_scale=1.0,
            sliding_window=self.sliding_window,
            block_sparse=self.block_sparse,
        )
        return out.reshape(self.n_tokens[seq], -1)

    def bound(self, seq: int) -> float:
        """Largest error of an element that float32 sums explain (first order, worst case over the sequence).

        A score (in powers of two) is a chain of D products: off by (D + 3) eps sum |q k|. p = 2^(s - m) is off by that
        twice (s and m), times ln 2, and by 2 ulp. Then sum(p v) / sum(p): twice the relative error of p, and n + 16
        roundings of the sums of n keys, each relative to max |v|. q8_0 rounds p v_scale to int16: half a step of
        max p / 32767 for each of the 64 keys of a tile, whose values reach 127 steps of a scale rounded up to bfloat16.
        """
        q, k, v = self.heads(seq)
        k, v = reference.round_kv(k, self.dtype), reference.round_kv(v, self.dtype)
        norms = np.linalg.norm(q, axis=-1).max() * np.linalg.norm(k, axis=-1).max()  # sum |q k| <= |q| |k|
        score = (self.head_dim + 3) * EPS * norms * self.head_dim**-0.5 * LOG2_E
        relative_p = 2 * score * np.log(2) + 4 * EPS
        n_keys = self.n_tokens[seq] if self.sliding_window == 0 else min(self.n_tokens[seq], self.sliding_window)
        weights = 64 * 0.5 / 32767 * 1.02 if self.dtype == "q8_0" else 0.0
        return float((2 * relative_p + (n_keys + 16) * EPS + weights) * np.abs(v).max())
