"""Token embeddings, decoded row by row from their stored format."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phlite import ops
from phlite.gguf import Tensor

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Embedding:
    """The matrix [V, E] as it lies in the file; only rows that are looked up are read."""

    table: Tensor

    def __call__(self, token_ids: I32) -> F32:
        """Return float32[T, E], the rows of token_ids int32[T]; raises ShapeError for an id outside the table."""
        return ops.embedding(self.table.data, self.table.type, self.table.shape[1], token_ids)
