"""What one forward pass means to a beam search: rows of logits are gathered until all beams have theirs."""

from __future__ import annotations

import numpy as np

from phlite.engine.beam_cache import Beam
from phlite.engine.beam_search import BeamSearch
from phlite.engine.sampling import F32
from phlite.engine.scheduler import Chunk

__all__ = ["take_beam"]


def take_beam(chunk: Chunk, logits: F32) -> BeamSearch | None:
    """Take over a chunk of a prompt or of one beam; return the search if this made it one token longer.

    The state is changed so that an interrupt between any two lines leaves a search that can be encoded again.
    logits: float32[0 or 1, V]
    raises: what a caller's logits_function raises
    """
    state, group = chunk.sequence.state, chunk.sequence.state.group
    assert group is not None
    chunk.lane.n_cached = chunk.end
    if chunk.beam is not None:
        group.rows.append(logits[0])
        if len(group.rows) < len(group.beams):
            return None
        group.search = group.search.advanced(np.stack(group.rows), state.steps)
        group.is_behind = True
        return group.search
    if chunk.end < state.n_prompt:
        return None
    is_first = group.n_ids == state.n_prompt
    if is_first:
        # All beams are the prompt: one row serves them, and only the first has a score to lose.
        rows = np.repeat(logits, len(group.search.scores), axis=0)
        group.search = group.search.advanced(rows, state.steps)
    group.start_from(Beam(state.ids, state.block_table.copy(), state.n_blocks, state.n_cached))
    state.n_blocks = 0
    return group.search if is_first else None
