"""The machine's two limits, and the shortest time in which a test could be done within them.

Decode reads every weight and every key and value once per step; a prompt needs every weight once and each of its tokens
one 8-bit multiply-add per weight. The longer of the two times is the limit. Left out: the arithmetic of attention,
everything between the matrix products, and the row of the embedding table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from engines.base import PROMPT_OF_A_BATCH

KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32, "f32": 4.0}


@dataclass(frozen=True)
class Test:
    """One thing to measure. kind: "prefill", "decode" or "batch"; n tokens (per sequence) after `depth` others."""

    kind: str
    n: int
    depth: int = 0
    n_sequences: int = 1

    @property
    def name(self) -> str:
        """As in the table: "pp128", "tg64@d2048", "tg64 x8"."""
        prefix = "pp" if self.kind == "prefill" else "tg"
        depth = f"@d{self.depth}" if self.depth else ""
        sequences = f" x{self.n_sequences}" if self.kind == "batch" else ""
        return f"{prefix}{self.n}{depth}{sequences}"

    @property
    def n_tokens(self) -> int:
        """Tokens that count for the speed."""
        return self.n * self.n_sequences


@dataclass(frozen=True)
class Limits:
    """bytes_per_s read by all threads; macs_per_s 8-bit multiply-adds, 0 on machines without a byte dot product."""

    bytes_per_s: float
    macs_per_s: float

    def mean(self, other: Limits) -> Limits:
        """The mean of what was measured before and after a test."""
        return Limits((self.bytes_per_s + other.bytes_per_s) / 2, (self.macs_per_s + other.macs_per_s) / 2)


class Machine:
    """Measures the limits with phlite's own kernels and as many threads as the engines have."""

    def __init__(self, n_threads: int) -> None:
        from phlite import ops

        self.pool = ops.ThreadPool(n_threads)

    def measure(self) -> Limits:
        """Measure both; about a third of a second."""
        from phlite import ops

        return Limits(ops.measure_read_bandwidth(self.pool), ops.measure_int8_peak(self.pool))


@dataclass(frozen=True)
class Work:
    """What one token of a dense model costs.

    weight_bytes: of all matrices but the embedding table
    layer_macs:   multiply-adds per token in the layers; head_macs: in the output matrix
    kv_bytes:     of cache that one position takes, for the cache's type
    window:       positions that a token attends to at most
    """

    weight_bytes: int
    layer_macs: int
    head_macs: int
    kv_bytes: float
    window: float

    @classmethod
    def of(cls, path: str, kv: str) -> Work:
        """Read it from the header of a GGUF file."""
        from phlite.gguf import load_gguf

        with load_gguf(path) as file:
            key = file.metadata.get_str("general.architecture") + "."
            n_layers, hidden = (file.metadata.get_int(key + name) for name in ("block_count", "embedding_length"))
            n_heads = file.metadata.get_int(key + "attention.head_count")
            n_kv_heads = file.metadata.get_int(key + "attention.head_count_kv", n_heads)
            window = file.metadata.get_int(key + "attention.sliding_window", 0)
            matrices = {name: tensor for name, tensor in file.tensors.items() if len(tensor.shape) == 2}
            head_name = "output.weight" if "output.weight" in matrices else "token_embd.weight"
            head_macs = matrices[head_name].n_elements
            if head_name != "token_embd.weight":
                del matrices["token_embd.weight"]
            return cls(
                weight_bytes=sum(tensor.data.nbytes for tensor in matrices.values()),
                layer_macs=sum(tensor.n_elements for tensor in matrices.values()) - head_macs,
                head_macs=head_macs,
                kv_bytes=2 * n_layers * n_kv_heads * (hidden // n_heads) * KV_BYTES[kv],
                window=window or math.inf,
            )

    def tokens_per_s(self, test: Test, limits: Limits) -> float | None:
        """Return the speed that the limits allow; None where the arithmetic limit is needed and unknown."""
        if test.kind == "prefill":
            n_bytes = self.weight_bytes + self.kv_bytes * min(test.depth, self.window)
            macs, n_tokens = test.n * self.layer_macs + self.head_macs, test.n
        else:
            before = PROMPT_OF_A_BATCH if test.kind == "batch" else max(test.depth, 1)
            n_bytes = self.weight_bytes + test.n_sequences * self.kv_bytes * min(before + test.n / 2, self.window)
            macs, n_tokens = test.n_sequences * (self.layer_macs + self.head_macs), test.n_sequences
        if not limits.macs_per_s and n_tokens > 1:
            return None
        arithmetic_s = macs / limits.macs_per_s if limits.macs_per_s else 0.0
        return n_tokens / max(n_bytes / limits.bytes_per_s, arithmetic_s)
