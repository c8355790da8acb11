"""A look at the inputs of a model's products, for statistics over a text such as an importance matrix."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


class InputWatch:
    """Shared by all products of one model; while `see` is None, which it is but for such statistics, nothing is done.

    see: called before each product with the names of the tensors that are multiplied, as in the file (`NAME[e]` for
         expert e of a stack), and with what they are multiplied by, float32[R, K], norms applied
    """

    __slots__ = ("see",)

    def __init__(self) -> None:
        self.see: Callable[[tuple[str, ...], F32], None] | None = None
