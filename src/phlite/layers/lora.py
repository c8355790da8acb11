"""Low-rank adapters: what they add to the products of a model, row by row of a batch.

A product y = W x of the base model becomes y = W x + scale · alpha / r · B (A x) with A of r rows and B of r columns;
with several adapters the terms add up. W stays as it is, in whatever format; A and B are floats.
source: Hu et al. 2021, arXiv 2106.09685
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from phlite import ops
from phlite.layers.norm import Normed

if TYPE_CHECKING:
    from phlite.layers.linear import Linear

__all__ = [
    "Adapter",
    "AdapterRows",
    "LowRank",
    "Product",
    "RowAdapters",
    "product_parts",
    "row_adapters",
    "take_rows",
]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Product:
    """A module of the checkpoint as rows of one packed matrix: the whole of it, or q of stacked q, k and v.

    linear:  the product
    rows:    int32[n], where the module's rows lie in it, in the order of the model's file
    hf_rows: the same in the order of the Hugging Face checkpoint; both are the same but where a converter permuted
    """

    linear: Linear
    rows: I32
    hf_rows: I32


@dataclass(frozen=True, slots=True)
class LowRank:
    """What one adapter adds to one product: B (scaling · (A x)).

    a, b:    packed [r, K] and [N_pre, r]
    scaling: float32[r], alpha / r of the adapter; different values where several modules share the product
    """

    a: ops.PackedMatrix
    b: ops.PackedMatrix
    scaling: F32


@dataclass(frozen=True, eq=False, slots=True)
class Adapter:
    """One adapter, ready to run. deltas: by the name of the product, `Linear.name`."""

    name: str
    deltas: Mapping[str, LowRank]

    @property
    def n_bytes(self) -> int:
        """Bytes of its packed matrices."""
        return sum(delta.a.n_bytes + delta.b.n_bytes for delta in self.deltas.values())


@dataclass(frozen=True, slots=True)
class AdapterRows:
    """The rows of a batch that go through one adapter. rows: int32[n], rising, or None for all; scales: float32[n]."""

    adapter: Adapter
    rows: I32 | None
    scales: F32


@dataclass(frozen=True, slots=True)
class RowAdapters:
    """The adapters of a batch of n_rows rows, always in one order, so that sums over them have one order too."""

    n_rows: int
    uses: tuple[AdapterRows, ...]

    def take(self, rows: I32) -> RowAdapters:
        """Return the adapters of these rows, int32[R], of the batch."""
        taken = []
        for use in self.uses:
            scales = np.zeros(self.n_rows, np.float32)
            scales[slice(None) if use.rows is None else use.rows] = use.scales
            taken.append((use.adapter, scales[rows]))
        return row_adapters(len(rows), taken)

    def addend(self, linear: Linear, x: F32 | Normed, rows: I32 | None) -> F32 | None:
        """Return float32[R, N_pre], what the adapters add to a product before its activation; None where nothing.

        x:    the product's own input, float32[T, K] or its norm
        rows: the rows of x that the n_rows rows here are; None: all of them
        """
        total: F32 | None = None
        for use in self.uses:
            delta = use.adapter.deltas.get(linear.name)
            if delta is None:
                continue
            of_x = use.rows if rows is None else rows if use.rows is None else rows[use.rows]
            t = narrow(x, delta.a, of_x, linear.pool)
            t *= use.scales[:, None] * delta.scaling
            if use.rows is None:
                total = ops.linear(t, delta.b, pool=linear.pool, residual=total)
            else:
                if total is None:
                    # -0, not 0: adding it changes no bit, so that a row without adapters has the same bits beside
                    # rows that have some.
                    total = np.full((self.n_rows, delta.b.n_rows), -0.0, np.float32)
                total[use.rows] = ops.linear(t, delta.b, pool=linear.pool, residual=total[use.rows])
        return total


def take_rows(lora: RowAdapters | None, rows: I32 | None) -> RowAdapters | None:
    """Return the adapters of the rows int32[R] of a batch, of all rows for None; None where there are no adapters."""
    return lora if lora is None or rows is None else lora.take(rows)


def row_adapters(n_rows: int, scales_of: Sequence[tuple[Adapter, F32]]) -> RowAdapters:
    """Return the adapters of a batch from the scale that each has for every row, float32[n_rows], 0 for none."""
    uses = []
    for adapter, scales in scales_of:
        rows = np.flatnonzero(scales).astype(np.int32)
        if len(rows) == n_rows and n_rows:
            uses.append(AdapterRows(adapter, None, scales))
        elif len(rows):
            uses.append(AdapterRows(adapter, rows, scales[rows]))
    return RowAdapters(n_rows, tuple(uses))


def narrow(x: F32 | Normed, a: ops.PackedMatrix, rows: I32 | None, pool: ops.ThreadPool) -> F32:
    """Return A x, float32[R, r], of the wanted rows of x."""
    if isinstance(x, Normed):
        return ops.linear(x.x, a, pool=pool, norm_weight=x.weight, norm_bias=x.bias, eps=x.eps, rows=rows)
    return ops.linear(x, a, pool=pool, rows=rows)


def product_parts(
    linear: Linear, prefix: str, whole: str, parts: Mapping[str, int] | None = None, *, hf_rows: I32 | None = None
) -> dict[str, Product]:
    """Return the modules that an adapter may name for one product.

    whole:   what the checkpoint calls all of its rows, such as "qkv_proj"
    parts:   what it calls stretches of them where they are modules of their own, in order: name -> number of rows
    hf_rows: int32[N_pre], where each row of the checkpoint's matrix lies in the product, if not in its own place
    """
    rows = np.arange(linear.weight.n_rows, dtype=np.int32)
    hf_rows = rows if hf_rows is None else hf_rows
    products = {f"{prefix}.{whole}" if prefix else whole: Product(linear, rows, hf_rows)}
    first = 0
    for name, n_rows in (parts or {}).items():
        stretch = slice(first, first + n_rows)
        products[f"{prefix}.{name}"] = Product(linear, rows[stretch], hf_rows[stretch])
        first += n_rows
    return products
