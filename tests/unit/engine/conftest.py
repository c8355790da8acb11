"""A small model whose logits depend on every id, position, cache slot and rope regime: a mixed-up batch shows."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest

from phlite.engine import Engine
from phlite.llm import LLM
from phlite.models.base import Batch
from phlite.tokenizer import Tokenizer

VOCAB_SIZE = 61
BLOCK_SIZE = 64
MASK = 2**61 - 1


@dataclass(frozen=True)
class FakeConfig:
    vocab_size: int = VOCAB_SIZE
    num_hidden_layers: int = 1
    max_position_embeddings: int = 1024


class FakeCache(list[int]):
    """The key of each position, block after block."""

    def copy_block(self, src: int, dst: int) -> None:
        self[dst * BLOCK_SIZE : (dst + 1) * BLOCK_SIZE] = self[src * BLOCK_SIZE : (src + 1) * BLOCK_SIZE]


@dataclass
class FakeModel:
    """Hashes all keys of a sequence, read through its block table, into logits. The regime changes after `short`."""

    config: FakeConfig = field(default_factory=FakeConfig)
    short: int = 10**9
    batches: list[Batch] = field(default_factory=list)
    fail_at: dict[int, BaseException] = field(default_factory=dict)

    def rope_regime(self, seq_len: int) -> int:
        return int(seq_len > self.short)

    def build_kv_cache(self, n_blocks: int, dtype: str = "f16") -> FakeCache:
        return FakeCache([-1] * (n_blocks * BLOCK_SIZE))

    def kv_bytes_per_token(self, dtype: str = "f16") -> int:
        return 8

    def key(self, token_id: int, position: int, regime: int) -> int:
        return (token_id * 1_000_003 + position * 7919 + regime * 104_729 + 1) % MASK

    def logits(self, state: int) -> np.ndarray:
        rows = np.arange(1, VOCAB_SIZE + 1, dtype=np.float64)
        return (4 * np.sin(rows * (state % 100_003))).astype(np.float32)

    def forward(self, batch: Batch, cache: list[int]) -> np.ndarray:
        self.batches.append(batch)
        error = self.fail_at.pop(len(self.batches), None)
        if error is not None:
            raise error
        states = {}
        for b in range(len(batch.seq_lens)):
            regime = self.rope_regime(int(batch.seq_lens[b]))
            for row in range(batch.seq_starts[b], batch.seq_starts[b + 1]):
                position = int(batch.positions[row])
                table = batch.block_tables[b]
                slot = int(table[position // BLOCK_SIZE]) * BLOCK_SIZE + position % BLOCK_SIZE
                assert slot >= 0, "a position without a block"
                cache[slot] = self.key(int(batch.token_ids[row]), position, regime)
                if row in batch.logit_rows:
                    state = 17
                    for past in range(position + 1):
                        state = (state * 31 + cache[int(table[past // BLOCK_SIZE]) * BLOCK_SIZE + past % 64]) % MASK
                    states[row] = state
        logits = [self.logits(states[row]) for row in batch.logit_rows.tolist()]
        return np.stack(logits) if logits else np.empty((0, VOCAB_SIZE), np.float32)

    def expected_logits(self, ids: list[int]) -> np.ndarray:
        """What the model says after these ids, computed without cache, batch or chunks."""
        regime, state = self.rope_regime(len(ids)), 17
        for position, token_id in enumerate(ids):
            state = (state * 31 + self.key(token_id, position, regime)) % MASK
        return self.logits(state)

    def expected_greedy(self, prompt: list[int], n: int) -> list[int]:
        ids = list(prompt)
        for _ in range(n):
            ids.append(int(self.expected_logits(ids).argmax()))
        return ids[len(prompt) :]


@pytest.fixture
def fake_model():
    """The class itself: tests build the model they need."""
    return FakeModel


@pytest.fixture
def prompt():
    """A function (length, salt) -> ids."""

    def build(length: int, salt: int = 0) -> list[int]:
        return [(i * i + 3 * i + salt * 11) % VOCAB_SIZE for i in range(length)]

    return build


@pytest.fixture
def assert_all_freed():
    """A function that fails unless nothing of any sequence is left in the engine."""

    def check(engine: Engine) -> None:
        assert not engine.has_unfinished
        assert not engine.scheduler.running
        assert not engine.scheduler.waiting
        assert engine.scheduler.blocks.n_free == engine.scheduler.blocks.n_blocks

    return check


class LetterTokenizer(Tokenizer):
    """Ids 0..51 are letters, 52 a space, 53..56 the four bytes of one emoji; 57..60 are special."""

    LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ "
    SPECIAL: ClassVar[dict[str, int]] = {"<|user|>": 57, "<|assistant|>": 58, "<|endoftext|>": 59, "<|end|>": 60}

    def __init__(self) -> None:
        super().__init__(
            vocab_size=VOCAB_SIZE, special_tokens=self.SPECIAL, bos_id=None, eos_id=59, strips_leading_space=True
        )

    def token_text(self, token_id: int) -> str:
        return self._spell(token_id).decode("latin-1")

    def _encode(self, text: str) -> list[int]:
        ids = []
        for part in re.split("(" + "|".join(map(re.escape, self.SPECIAL)) + ")", text):
            if part in self.SPECIAL:
                ids.append(self.SPECIAL[part])
            else:
                ids += [self.LETTERS.find(letter) if letter in self.LETTERS else 52 for letter in part]
        return ids

    def _spell(self, token_id: int) -> bytes:
        if token_id <= 52:
            return self.LETTERS[token_id].encode()
        if token_id <= 56:
            return "🏒".encode()[token_id - 53 : token_id - 52]
        return next(text for text, i in self.SPECIAL.items() if i == token_id).encode()


class PlainChat:
    """Renders turns the way Phi-3's template does."""

    def render(self, messages) -> str:
        turns = "".join(f"<|{message['role']}|>{message['content']}<|end|>" for message in messages)
        return turns + "<|assistant|>"


@pytest.fixture
def build_llm(fake_model):
    """A function (model, options of Engine) -> LLM over the fake model."""

    def build(model=None, eos_ids=(), **options) -> LLM:
        engine = Engine(model or fake_model(), eos_ids=eos_ids, **options)
        return LLM(engine, LetterTokenizer(), PlainChat(), name="fake", load_ms=3.0)

    return build
