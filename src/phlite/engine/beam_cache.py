"""Where the keys and values of beams lie: common prefixes in shared blocks, the end of each in blocks of its own.

Beams of one step continue beams of the step before. The first that continues a beam takes its blocks over; others share
the full ones and copy the one that is not full. Beams that nobody continues give theirs back first.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from phlite.engine.beam_search import BeamSearch
from phlite.engine.blocks import BLOCK_SIZE, BlockAllocator, n_blocks_for

__all__ = ["Beam", "BeamGroup", "most_blocks"]


@dataclass(eq=False, slots=True)
class Beam:
    """One beam in the cache; its fields mean what those of SequenceState do."""

    ids: NDArray[np.int32]
    block_table: NDArray[np.int32]
    n_blocks: int = 0
    n_cached: int = 0

    def release(self, blocks: BlockAllocator) -> None:
        """Give the blocks back."""
        for row in range(self.n_blocks - 1, -1, -1):
            blocks.release(int(self.block_table[row]))
        self.n_blocks = 0


@dataclass(eq=False, slots=True)
class BeamGroup:
    """The beams of one sequence and their search.

    beams:     in the cache, as they were before the newest step while is_behind
    is_behind: the search has advanced since; `follow` brings the beams up to it
    rows:      logits of this step's beams so far
    """

    search: BeamSearch
    beams: list[Beam] = field(default_factory=list)
    is_behind: bool = False
    rows: list[NDArray[np.float32]] = field(default_factory=list)

    @property
    def n_ids(self) -> int:
        """Length of each beam, prompt included."""
        return self.search.n_ids

    def start_from(self, prompt: Beam) -> None:
        """Let all beams begin where the prompt ends, whose blocks this beam holds."""
        self.search = replace(self.search, parents=(0,) * len(self.search.parents))
        self.beams, self.is_behind = [prompt], True

    def release_dropped(self, blocks: BlockAllocator) -> None:
        """Give back the blocks of beams that nobody continues."""
        if self.is_behind:
            for row, beam in enumerate(self.beams):
                if row not in self.search.parents:
                    beam.release(blocks)

    def n_missing(self) -> int:
        """Return how many free blocks `follow` takes."""
        n_needed, continued = n_blocks_for(self.n_ids), set()
        n_missing = 0
        for parent in self.parents():
            beam = self.beams[parent]
            n_kept = beam.n_blocks if parent not in continued else beam.n_cached // BLOCK_SIZE
            n_missing += n_needed - n_kept
            continued.add(parent)
        return n_missing

    def follow(self, blocks: BlockAllocator) -> list[tuple[int, int]]:
        """Bring the beams up to the search, with blocks for all of their ids; return the blocks to copy, (from, to)."""
        copies: list[tuple[int, int]] = []
        following: list[Beam] = []
        continued: set[int] = set()
        for row, parent in enumerate(self.parents()):
            old = self.beams[parent]
            beam = Beam(self.search.ids[row], np.full_like(old.block_table, -1), n_cached=old.n_cached)
            n_kept = old.n_blocks if parent not in continued else old.n_cached // BLOCK_SIZE
            beam.block_table[:n_kept] = old.block_table[:n_kept]
            beam.n_blocks = n_kept
            if parent in continued:
                for block in old.block_table[:n_kept].tolist():
                    blocks.share(block)
            while beam.n_blocks < n_blocks_for(self.n_ids):
                block = blocks.acquire()
                if beam.n_blocks * BLOCK_SIZE < beam.n_cached:
                    copies.append((int(old.block_table[beam.n_blocks]), block))
                beam.block_table[beam.n_blocks] = block
                beam.n_blocks += 1
            following.append(beam)
            continued.add(parent)
        self.beams, self.is_behind = following, False
        return copies

    def parents(self) -> tuple[int, ...]:
        """Return for each beam of the search the beam in the cache that it is, or continues."""
        return self.search.parents if self.is_behind else tuple(range(len(self.beams)))

    def drop(self, blocks: BlockAllocator) -> None:
        """Give all blocks back; the beams are encoded again from the prompt on."""
        for beam in self.beams:
            beam.release(blocks)
        self.beams, self.is_behind = [], False


def most_blocks(n_prompt: int, n_ids: int, n_beams: int) -> int:
    """Return the blocks of n_beams beams of n_ids ids each that share nothing but full blocks of their prompt."""
    n_shared = n_prompt // BLOCK_SIZE
    return n_shared + n_beams * (n_blocks_for(n_ids) - n_shared)
