"""Which cache blocks are free. A block holds 64 positions of one sequence, in all layers."""

from __future__ import annotations

__all__ = ["BLOCK_SIZE", "BlockAllocator", "n_blocks_for"]

BLOCK_SIZE = 64


class BlockAllocator:
    """Hands out block numbers 0 .. n_blocks - 1 with reference counts: beams share the blocks of a common prefix.

    Freed blocks are used again first: a cache whose memory the system commits at first touch stays as small as its use.
    """

    def __init__(self, n_blocks: int) -> None:
        self.n_blocks = n_blocks
        self.free_blocks = list(range(n_blocks - 1, -1, -1))
        self.ref_counts = [0] * n_blocks

    @property
    def n_free(self) -> int:
        """Number of blocks that nobody holds."""
        return len(self.free_blocks)

    def acquire(self) -> int:
        """Return a free block, held once. The caller has looked at n_free."""
        block = self.free_blocks.pop()
        self.ref_counts[block] = 1
        return block

    def share(self, block: int) -> None:
        """Hold a block once more."""
        assert self.ref_counts[block] > 0, f"block {block} is free"
        self.ref_counts[block] += 1

    def release(self, block: int) -> None:
        """Give back one hold; the last one frees the block."""
        assert self.ref_counts[block] > 0, f"block {block} is free"
        self.ref_counts[block] -= 1
        if self.ref_counts[block] == 0:
            self.free_blocks.append(block)


def n_blocks_for(n_ids: int) -> int:
    """Return the number of blocks that n_ids positions need."""
    return -(-n_ids // BLOCK_SIZE)
