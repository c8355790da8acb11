"""Many operations in one parallel region: noted down first, then run together."""

from __future__ import annotations

import sys
import threading
from types import TracebackType

import numpy as np
import numpy.typing as npt

from phlite._native import ThreadPool

__all__ = ["Deferred", "empty"]

F32 = npt.NDArray[np.float32]

_entered: dict[ThreadPool, Deferred] = {}


def _count_references(results: list[F32]) -> list[int]:
    return [sys.getrefcount(result) for result in results]


# Of a result that only the list has; what the counting itself adds differs between versions of Python.
_UNUSED = _count_references([np.empty((1, 1), np.float32)])[0]


class Deferred:
    """Between entering and leaving, this thread's operations on `pool` are noted down; they run, in order, at the end.

        region = ops.Deferred(pool)
        with region:
            y = ops.linear(x, w, pool=pool)
            z = ops.linear(y, v, pool=pool)

    One region for many of them: threads need not be woken for each, the interpreter does not run between products,
    which push its code and data out of the caches, and a thread that is done with one operation fetches the weights of
    the next while it waits. Every 0.1 s they let the interpreter in, so that Ctrl-C is heard. Results have the same
    bits as without.

    Inside, a result may only be passed on to further operations (`linear`, `attention`, `mix`) of the same pool: its
    values exist when the block has ended. Shapes and dtypes are checked at once. The memory of a result that is dropped
    inside is used for later ones, since operations run in order, and kept for the next block of the same shapes. When
    an exception leaves the block, what is noted down is dropped. Blocks of one pool do not nest: RuntimeError.
    """

    def __init__(self, pool: ThreadPool) -> None:
        self.pool = pool
        self.thread = 0
        self.results: dict[tuple[int, int], list[F32]] = {}
        self.shapes: set[tuple[int, int]] = set()  # of this block's results

    def __enter__(self) -> None:
        self.drop_interrupted()
        if self.pool in _entered:
            raise RuntimeError("operations of this thread pool are deferred already")
        self.thread = threading.get_ident()
        _entered[self.pool] = self
        self.pool.defer()
        self.shapes.clear()
        for results in self.results.values():
            for result in results:
                self.pool.add_lasting(result)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.pool.settle()
        finally:
            self._stop()
        self.results = {shape: self.results[shape] for shape in self.shapes}
        for shape, results in self.results.items():  # what the caller took along is his
            counts = _count_references(results)
            self.results[shape] = [result for result, n in zip(results, counts, strict=True) if n == _UNUSED]

    def drop_interrupted(self) -> None:
        """End a block that an interrupt (Ctrl-C) kept from ending, and drop what was noted down in it."""
        if _entered.get(self.pool) is self:
            self._stop()

    def _stop(self) -> None:
        _entered.pop(self.pool, None)
        self.pool.stop_deferring()

    def empty(self, n_rows: int, n_cols: int) -> F32:
        """Return float32[n_rows, n_cols] for a result, of any content, that nobody else has."""
        results = self.results.setdefault((n_rows, n_cols), [])
        self.shapes.add((n_rows, n_cols))  # afterwards: an interrupt in between must find no shape without results
        counts = _count_references(results)
        if _UNUSED in counts:
            return results[counts.index(_UNUSED)]
        result = np.empty((n_rows, n_cols), np.float32)
        self.pool.add_lasting(result)
        results.append(result)
        return result


def empty(n_rows: int, n_cols: int, pool: ThreadPool) -> F32:
    """Return float32[n_rows, n_cols] for a result of an operation on `pool`, of any content."""
    region = _entered.get(pool)
    if region is None or region.thread != threading.get_ident():
        return np.empty((n_rows, n_cols), np.float32)
    return region.empty(n_rows, n_cols)
