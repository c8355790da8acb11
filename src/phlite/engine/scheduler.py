"""Which tokens of which sequences the next step works on. Plain bookkeeping: no model, no arrays of logits.

Every decoding sequence gets its one token in every step, with guesses of what follows it while there is room for them.
What is left of max_batch_tokens goes to prompts, in chunks; while others decode, PREFILL_BESIDE_DECODE tokens at most,
so a long prompt delays them by no more than that. The oldest prompt gets at least half of the room, the rest goes to
the shortest, so neither waits for the other for long.

Admission is first come, first served, when the blocks for all known ids of a sequence are free, and one more for each
running sequence that may come to need it. When a decoding sequence needs a block and none is free, the youngest one
gives its blocks back and waits; its ids are encoded again later. Results do not depend on any of this, because logits
depend on the ids of a sequence alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from phlite.engine.beam_cache import Beam, most_blocks
from phlite.engine.blocks import BlockAllocator, n_blocks_for
from phlite.engine.lookup import MOST_ROWS
from phlite.engine.sequence import Sequence, SequenceState

__all__ = ["Chunk", "Scheduler"]

PREFILL_BESIDE_DECODE = 128


@dataclass(slots=True)
class Chunk:
    """Ids start .. end of one sequence, to be encoded in this step; the next token is wanted if end is its last id.

    n_guessed: the last ones of them are guesses (phlite.engine.lookup); the next token is wanted after each id from the
               last known one on
    beam:      the beam of the sequence that is meant, if it has come to its beams
    """

    sequence: Sequence
    start: int
    end: int
    wants_token: bool
    n_guessed: int = 0
    beam: Beam | None = None

    @property
    def lane(self) -> Beam | SequenceState:
        """Whose ids and blocks these are."""
        return self.sequence.state if self.beam is None else self.beam

    @property
    def seq_len(self) -> int:
        """Tokens of the sequence known now, or guessed."""
        return max(n_known(self.sequence), self.end)

    @property
    def n_logits(self) -> int:
        """Number of rows, the last ones, whose logits are wanted."""
        return 1 + self.n_guessed if self.wants_token else 0


class Scheduler:
    """Holds the waiting and the running sequences and the free blocks.

    rope_regime: the model's; a sequence whose regime changes as it grows is encoded again from its start
    """

    def __init__(
        self, rope_regime: Callable[[int], int], *, n_blocks: int, max_batch_tokens: int, max_sequences: int
    ) -> None:
        self.rope_regime = rope_regime
        self.max_batch_tokens = max_batch_tokens
        self.max_sequences = max_sequences
        self.blocks = BlockAllocator(n_blocks)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.copies: list[tuple[int, int]] = []

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the queue."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is, and free its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self.drop_cache(sequence)

    def reset(self, sequences: Iterable[Sequence]) -> None:
        """Start again with these sequences waiting in this order and an empty cache."""
        self.blocks = BlockAllocator(self.blocks.n_blocks)
        self.running = []
        self.waiting = deque(sequences)
        for sequence in self.waiting:
            sequence.state.n_cached = 0
            sequence.state.n_blocks = 0
            sequence.state.block_table.fill(-1)
            if sequence.state.group is not None:
                sequence.state.group.beams = []

    def schedule(self) -> list[Chunk]:
        """Return the chunks of the next step; empty only when there is no sequence at all.

        Before it, the blocks named in `copies` (from, to) are to be copied.
        """
        self.copies = []
        self.reserve_running()
        self.admit()
        decoding = [sequence for sequence in self.running if sequence.n_pending == 1]
        prefilling = [sequence for sequence in self.running if sequence.n_pending > 1]
        chunks = [chunk for sequence in self.running for chunk in beam_chunks(sequence)]
        n_rows = len(decoding) + sum(chunk.end - chunk.start for chunk in chunks)
        # Prompts keep at least half of what decoding leaves.
        room = min(MOST_ROWS - n_rows, (self.max_batch_tokens - n_rows) // (2 if prefilling else 1))
        for sequence in decoding:
            chunks.append(whole_chunk(sequence))
            self.guess(chunks[-1], room)
            room -= chunks[-1].n_guessed
        if prefilling:
            n_rows = sum(chunk.end - chunk.start for chunk in chunks)
            chunks += split_room(prefilling, self.prefill_room(n_rows))
        return chunks

    def reserve_running(self) -> None:
        """See that every running sequence has blocks for all of its ids, oldest first."""
        row = 0
        while row < len(self.running):
            sequence = self.running[row]
            self.follow_regime(sequence)
            if self.reserve(sequence):
                row += 1

    def reserve(self, sequence: Sequence) -> bool:
        """Get the missing blocks of a running sequence; False when it had to give up its own instead."""
        state, group = sequence.state, sequence.state.group
        has_beams = group is not None and bool(group.beams)
        if group is not None and has_beams:
            group.release_dropped(self.blocks)
            n_missing = group.n_missing()
        else:
            n_missing = n_blocks_for(sequence.n_ids) - state.n_blocks
        while n_missing > self.blocks.n_free:
            youngest = self.running.pop()
            self.drop_cache(youngest)
            self.waiting.appendleft(youngest)
            if youngest is sequence:
                return False
        if group is not None and has_beams:
            self.copies += group.follow(self.blocks)
        else:
            self.acquire(sequence, sequence.n_ids)
        return True

    def acquire(self, sequence: Sequence, n_ids: int) -> None:
        """Take the missing blocks for n_ids positions of a sequence; the caller has looked at n_free."""
        state = sequence.state
        while state.n_blocks < n_blocks_for(n_ids):
            state.block_table[state.n_blocks] = self.blocks.acquire()
            state.n_blocks += 1

    def admit(self) -> None:
        """Move waiting sequences to the running ones while there is room for all of their ids."""
        while self.waiting and len(self.running) < self.max_sequences:
            sequence = self.waiting[0]
            n_needed = most_blocks(sequence.state.n_prompt, n_known(sequence), sequence.params.num_beams)
            # One block for each running sequence that may grow stays free, or the newcomer would soon be thrown out.
            if n_needed + sum(map(may_grow, self.running)) > self.blocks.n_free:
                return
            self.running.append(self.waiting.popleft())
            self.follow_regime(sequence)
            self.reserve(sequence)

    def follow_regime(self, sequence: Sequence) -> None:
        """Forget what is cached when the known length moves the sequence to the other rotary table."""
        state = sequence.state
        regime = self.rope_regime(n_known(sequence))
        if regime != state.regime:
            state.regime = regime
            state.n_cached = 0
            if state.group is not None:
                self.drop_cache(sequence)  # beams share blocks, and none may write to another's

    def guess(self, chunk: Chunk, room: int) -> None:
        """Lengthen a chunk by guesses where the step has room for them and blocks are free; nobody gives any up."""
        sequence, state = chunk.sequence, chunk.sequence.state
        n_ids = sequence.n_ids
        # After the last guess one more token is drawn, and all logits must come from one rotary table.
        guess = state.guesser.guess(state.ids[:n_ids], min(room, state.max_ids - n_ids - 1))
        end = n_ids + guess.size
        if end == n_ids or n_blocks_for(end) - state.n_blocks > self.blocks.n_free:
            return
        if self.rope_regime(end) != state.regime:
            return
        self.acquire(sequence, end)
        state.ids[n_ids:end] = guess
        chunk.end, chunk.n_guessed = end, guess.size

    def prefill_room(self, n_rows: int) -> int:
        """Return how many prompt tokens may come beside n_rows of decoding: at least one, so that every prompt ends."""
        room = self.max_batch_tokens - n_rows
        if n_rows:
            room = min(room, PREFILL_BESIDE_DECODE)
        return max(room, 1)

    def drop_cache(self, sequence: Sequence) -> None:
        """Give the blocks of a sequence back."""
        state = sequence.state
        for row in range(state.n_blocks - 1, -1, -1):
            self.blocks.release(int(state.block_table[row]))
        state.block_table[: state.n_blocks] = -1
        state.n_blocks = 0
        state.n_cached = 0
        if state.group is not None:
            state.group.drop(self.blocks)


def n_known(sequence: Sequence) -> int:
    """Return the number of ids of a sequence, or of each of its beams."""
    return sequence.n_ids if sequence.state.group is None else sequence.state.group.n_ids


def may_grow(sequence: Sequence) -> bool:
    """Return whether a running sequence may come to need more blocks than it holds; its last id is not encoded."""
    state = sequence.state
    return state.group is not None or n_blocks_for(state.max_ids - 1) > state.n_blocks


def beam_chunks(sequence: Sequence) -> list[Chunk]:
    """Return the chunks of all beams of a sequence; empty while it has none."""
    group = sequence.state.group
    if group is None:
        return []
    group.rows.clear()
    return [Chunk(sequence, beam.n_cached, group.n_ids, wants_token=True, beam=beam) for beam in group.beams]


def whole_chunk(sequence: Sequence) -> Chunk:
    """Return the chunk of all pending ids."""
    return Chunk(sequence, sequence.state.n_cached, sequence.n_ids, wants_token=True)


def split_room(prefilling: list[Sequence], room: int) -> list[Chunk]:
    """Return chunks of `room` tokens together: half or more for the oldest prompt, the rest for the shortest first."""
    oldest, others = prefilling[0], sorted(prefilling[1:], key=lambda sequence: sequence.n_pending)
    shares = [(oldest, min(oldest.n_pending, room - room // 2))]
    room -= shares[0][1]
    for sequence in others:
        if room > 0:
            shares.append((sequence, min(sequence.n_pending, room)))
            room -= shares[-1][1]
    shares[0] = (oldest, min(oldest.n_pending, shares[0][1] + room))
    return [
        Chunk(sequence, sequence.state.n_cached, sequence.state.n_cached + n, wants_token=n == sequence.n_pending)
        for sequence, n in shares
    ]
