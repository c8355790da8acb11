"""What the engine asks of a model: one ragged batch in, logits out.

Shape letters: B sequences, T new tokens of all sequences together, R rows whose logits are wanted, V vocabulary rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from phlite.errors import ShapeError

if TYPE_CHECKING:
    from phlite.layers.linear import Linear
    from phlite.layers.lora import Product, RowAdapters
    from phlite.ops import KVCache

__all__ = ["Adaptable", "Batch", "CausalLM", "LoraTargets", "ModelConfig", "check_batch"]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Batch:
    """The new tokens of one step: prefill chunks and single decode tokens of B sequences, one after the other.

    token_ids:    int32[T], 0 <= id < vocab_size
    positions:    int32[T], absolute position of each token in its sequence; consecutive inside a sequence
    seq_starts:   int32[B + 1]; the tokens of sequence b are rows seq_starts[b] .. seq_starts[b + 1]
    block_tables: int32[B, max_blocks]; cache block that holds positions 64 * j .. 64 * j + 63 of sequence b; unused
                  entries are -1
    seq_lens:     int32[B], tokens of the sequence that are known now, whether or not all of them are in this step or
                  in the cache; they choose the rope regime, so every chunk of one prompt is rotated alike
    logit_rows:   int32[R], rows of token_ids after which the next token is wanted
    lora:         the adapters of the T rows; only for a model that is `Adaptable`
    """

    token_ids: I32
    positions: I32
    seq_starts: I32
    block_tables: I32
    seq_lens: I32
    logit_rows: I32
    lora: RowAdapters | None = None


class ModelConfig(Protocol):
    """The numbers of a model that the engine needs, by their Hugging Face names."""

    @property
    def vocab_size(self) -> int:
        """Rows of the output matrix, padding rows included."""

    @property
    def num_hidden_layers(self) -> int:
        """Number of decoder layers."""

    @property
    def max_position_embeddings(self) -> int:
        """Longest sequence in tokens for which the model is defined."""


class CausalLM(Protocol):
    """A loaded model. Thread-compatible: one forward at a time; it holds the thread pool that its operations use."""

    @property
    def config(self) -> ModelConfig:
        """The model's numbers."""

    @property
    def lm_head(self) -> Linear:
        """The last product, to the vocabulary; its `watch` is that of all products."""

    def rope_regime(self, seq_len: int) -> int:
        """Return which rotary table a sequence of seq_len tokens uses: 0 short, 1 long.

        Keys in the cache are already rotated. When the regime of a growing sequence changes, all of its tokens must be
        encoded again from position 0; constant 0 for models without LongRoPE.
        """

    def build_kv_cache(self, n_blocks: int, dtype: str = "f16") -> KVCache:
        """Return an empty cache of n_blocks blocks of 64 positions for all layers; dtype "f16", "q8_0" or "f32"."""

    def kv_bytes_per_token(self, dtype: str = "f16") -> int:
        """Return the bytes of cache that one position takes in all layers together."""

    def forward(self, batch: Batch, cache: KVCache) -> F32:
        """Write the batch's keys and values to the cache; return float32[R, V] logits of batch.logit_rows.

        Bit-identical for every number of threads, batch composition and split of a prompt into chunks.
        raises: ShapeError when the arrays of the batch contradict each other, the cache or the config
        """


@dataclass(frozen=True, slots=True)
class LoraTargets:
    """The products of a model that low-rank adapters may change.

    architecture: general.architecture of GGUF files of this model, and of adapters in GGUF form
    gguf_names:   Hugging Face name of a tensor -> its GGUF name, `*` standing for the layer number
    products:     by Hugging Face module name, such as "model.layers.0.self_attn.o_proj"
    """

    architecture: str
    gguf_names: Mapping[str, str]
    products: Mapping[str, Product]


@runtime_checkable
class Adaptable(Protocol):
    """A model whose forward pass takes `Batch.lora` into account."""

    def lora_targets(self) -> LoraTargets:
        """Return where adapters may add to a product."""


def check_batch(batch: Batch, config: ModelConfig) -> None:
    """Raise ShapeError unless the arrays have their shapes and dtypes and agree with each other and the model.

    What the operations check themselves is left to them: token ids, consecutive positions, blocks of the cache.
    """
    n_tokens, n_seqs = len(batch.token_ids), len(batch.seq_lens)
    _check_int32("token_ids", batch.token_ids, (n_tokens,))
    _check_int32("positions", batch.positions, (n_tokens,))
    _check_int32("seq_starts", batch.seq_starts, (n_seqs + 1,))
    _check_int32("block_tables", batch.block_tables, (n_seqs, *batch.block_tables.shape[1:2]))
    _check_int32("seq_lens", batch.seq_lens, (n_seqs,))
    _check_int32("logit_rows", batch.logit_rows, batch.logit_rows.shape[:1])
    # Lists: a step of one token has arrays of one element, on which numpy is slower.
    starts, rows = batch.seq_starts.tolist(), batch.logit_rows.tolist()
    if not n_tokens:
        raise ShapeError("batch: no tokens, expected at least one")
    if starts[0] != 0 or starts[-1] != n_tokens or any(b <= a for a, b in pairwise(starts)):
        raise ShapeError(f"batch: seq_starts {starts[:8]}, expected to rise from 0 to {n_tokens}")
    highest = int(batch.positions.max())
    if highest >= config.max_position_embeddings:
        raise ShapeError(f"batch: position {highest}, expected below the model's {config.max_position_embeddings}")
    last_positions = batch.positions[batch.seq_starts[1:] - 1].tolist()
    if any(n <= last for n, last in zip(batch.seq_lens.tolist(), last_positions, strict=True)):
        raise ShapeError("batch: a sequence's seq_lens is not above the position of its last token")
    if rows and (min(rows) < 0 or max(rows) >= n_tokens):
        raise ShapeError(f"batch: logit_rows from {min(rows)} to {max(rows)}, expected 0 to {n_tokens - 1}")
    if batch.lora is not None and batch.lora.n_rows != n_tokens:
        raise ShapeError(f"batch: lora for {batch.lora.n_rows} rows, expected {n_tokens}")


def _check_int32(name: str, array: I32, shape: tuple[int, ...]) -> None:
    if array.dtype != np.int32 or array.shape != shape:
        raise ShapeError(f"batch: {name} is {array.dtype}{list(array.shape)}, expected int32{list(shape)}")
