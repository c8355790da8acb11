"""Lay the chunks of one step out as the arrays that the model takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from phlite.engine.scheduler import Chunk
from phlite.layers.lora import Adapter, RowAdapters, row_adapters
from phlite.models.base import Batch

__all__ = ["BatchBuilder"]


class BatchBuilder:
    """Builds batches for sequences of up to n_ctx tokens. One sequence alone is not copied."""

    def __init__(self, n_ctx: int) -> None:
        self.all_positions = np.arange(n_ctx, dtype=np.int32)

    def build(self, chunks: list[Chunk]) -> Batch:
        """Return the ragged batch of the chunks, in their order (layout: phlite.models.base.Batch)."""
        if len(chunks) == 1:
            return self.build_one(chunks[0])
        lanes = [chunk.lane for chunk in chunks]
        seq_starts = np.zeros(len(chunks) + 1, np.int32)
        np.cumsum([chunk.end - chunk.start for chunk in chunks], out=seq_starts[1:])
        token_ids = [lane.ids[chunk.start : chunk.end] for lane, chunk in zip(lanes, chunks, strict=True)]
        positions = [self.all_positions[chunk.start : chunk.end] for chunk in chunks]
        block_tables = np.full((len(chunks), max(lane.n_blocks for lane in lanes)), -1, np.int32)
        for row, lane in enumerate(lanes):
            block_tables[row, : lane.n_blocks] = lane.block_table[: lane.n_blocks]
        return Batch(
            token_ids=np.concatenate(token_ids),
            positions=np.concatenate(positions),
            seq_starts=seq_starts,
            block_tables=block_tables,
            seq_lens=np.array([chunk.seq_len for chunk in chunks], np.int32),
            logit_rows=np.array(
                [
                    row
                    for end, chunk in zip(seq_starts[1:].tolist(), chunks, strict=True)
                    for row in range(end - chunk.n_logits, end)
                ],
                np.int32,
            ),
            lora=self.adapters_of(chunks),
        )

    def build_one(self, chunk: Chunk) -> Batch:
        """Return the batch of one sequence: views of what it holds, where others are put together."""
        lane, n_rows = chunk.lane, chunk.end - chunk.start
        return Batch(
            token_ids=lane.ids[chunk.start : chunk.end],
            positions=self.all_positions[chunk.start : chunk.end],
            seq_starts=np.array([0, n_rows], np.int32),
            block_tables=lane.block_table[None, : lane.n_blocks],
            seq_lens=np.array([chunk.seq_len], np.int32),
            logit_rows=np.arange(n_rows - chunk.n_logits, n_rows, dtype=np.int32),
            lora=self.adapters_of([chunk]) if chunk.sequence.state.lora else None,
        )

    def adapters_of(self, chunks: list[Chunk]) -> RowAdapters | None:
        """Return the adapters of the chunks' rows, in the order of their names; None where no row has any."""
        if not any(chunk.sequence.state.lora for chunk in chunks):
            return None
        ends = np.cumsum([chunk.end - chunk.start for chunk in chunks]).tolist()
        scales_of: dict[Adapter, NDArray[np.float32]] = {}
        for chunk, end in zip(chunks, ends, strict=True):
            for use in chunk.sequence.state.lora:
                scales = scales_of.setdefault(use.adapter, np.zeros(ends[-1], np.float32))
                scales[end - (chunk.end - chunk.start) : end] = use.scale
        in_order = sorted(scales_of.items(), key=lambda item: item[0].name)
        return row_adapters(ends[-1], in_order)
