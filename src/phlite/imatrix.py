"""Importance matrices from a text: the mean square of every input of every product, seen while the text runs through.

The text's tokens are cut into windows side by side, each encoded by itself, as llama.cpp's tool of the name does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import numpy as np
from numpy.typing import NDArray

from phlite.convert.importance import Importance, ImportanceMatrix
from phlite.engine.blocks import BLOCK_SIZE
from phlite.errors import ModelFileError
from phlite.models.base import CausalLM
from phlite.perplexity import LOGIT_BYTES, Windows, batch_of_columns

__all__ = ["InputSums", "watch_windows"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

_EXPERT: Final = re.compile(r"(.+)\[(\d+)\]")


class InputSums:
    """Sums of squares of what the tensors of a model were multiplied by.

    shapes: of the tensors, row-major, by name in the file; stacks of experts have three dimensions
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes
        self._sums: dict[str, F64] = {}
        self._counts: dict[str, NDArray[np.int64]] = {}

    def see(self, names: tuple[str, ...], x: F32) -> None:
        """Add the rows of x, float32[R, K], to each of the tensors; `NAME[e]` is expert e of a stack."""
        squares = np.square(x, dtype=np.float64).sum(axis=0)
        if not np.isfinite(squares).all():
            raise ModelFileError(f"inputs of {names[0]!r} are not finite; the model's weights are damaged")
        for name in names:
            expert = _EXPERT.fullmatch(name)
            base, matrix_idx = (expert[1], int(expert[2])) if expert else (name, 0)
            if base not in self._sums:
                n_matrices = self._shapes[base][0] if expert else 1
                self._sums[base] = np.zeros((n_matrices, len(squares)), np.float64)
                self._counts[base] = np.zeros(n_matrices, np.int64)
            self._sums[base][matrix_idx] += squares
            self._counts[base][matrix_idx] += len(x)

    def matrix(self, *, source: str, dataset: str, n_windows: int, n_ctx: int) -> ImportanceMatrix:
        """Return what was seen as an importance matrix."""
        entries = {
            name: Importance(sums.astype(np.float32), self._counts[name].astype(np.float32))
            for name, sums in self._sums.items()
        }
        return ImportanceMatrix(entries, source=source, datasets=(dataset,), n_chunks=n_windows, chunk_size=n_ctx)


def watch_windows(model: CausalLM, windows: Windows, sums: InputSums, *, kv_type: str = "f16") -> Iterator[int]:
    """Run every window through the model, adding its products' inputs to `sums`; yield the number done after each.

    raises: ModelFileError where an input is not finite
    """
    n_windows, n_ctx = windows.token_ids.shape
    cache = model.build_kv_cache(-(-n_ctx // BLOCK_SIZE), kv_type)
    # All positions are wanted, since the last layer leaves out the rest; so many at once as their logits allow.
    step = max(min(LOGIT_BYTES // (4 * model.config.vocab_size), n_ctx), 1)
    with _watching(model, sums):
        for i in range(n_windows):
            for start in range(0, n_ctx, step):
                end = min(start + step, n_ctx)
                model.forward(
                    batch_of_columns(windows.token_ids[i : i + 1], start, end, wants_logits=True, lora=()), cache
                )
            yield i + 1


@contextmanager
def _watching(model: CausalLM, sums: InputSums) -> Iterator[None]:
    watch = model.lm_head.watch
    assert watch is not None, "a model from a file has a watch"
    watch.see = sums.see
    try:
        yield
    finally:
        watch.see = None
