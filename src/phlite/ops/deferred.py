"""Many operations in one parallel region: noted down first, then run together."""

from __future__ import annotations

from types import TracebackType

from phlite.ops.linear import ThreadPool

__all__ = ["deferred"]


class deferred:  # noqa: N801  (used like a function: `with ops.deferred(pool):`)
    """Between entering and leaving, this thread's operations on `pool` are noted down; they run, in order, at the end.

        with ops.deferred(pool):
            y = ops.linear(x, w, pool=pool)
            z = ops.linear(y, v, pool=pool)

    One region for all of them: threads need not be woken for each, the interpreter does not run between products, which
    push its code and data out of the caches, and a thread that is done with one operation fetches the weights of the
    next while it waits. Results have the same bits as without.

    Inside, a result may only be passed on to further operations (`linear`, `attention`, `mix`) of the same pool: its
    values exist when the block has ended. Shapes and dtypes are checked at once. When an exception leaves the block,
    what is noted down is dropped. Blocks of one pool do not nest: RuntimeError.
    """

    def __init__(self, pool: ThreadPool) -> None:
        self.pool = pool

    def __enter__(self) -> None:
        self.pool.defer()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.pool.settle()
        finally:
            self.pool.stop_deferring()
