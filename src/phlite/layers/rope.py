"""Rotary position tables: inverse frequencies, LongRoPE factors, and the choice between short and long lists.

Source: Su et al. 2021, arXiv 2104.09864 (RoPE); Ding et al. 2024, arXiv 2402.13753 (LongRoPE); the arithmetic follows
transformers 5.x modeling_rope_utils._compute_longrope_parameters and modeling_phi3.Phi3RotaryEmbedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

_PAGE = 256
"""Positions computed at a time. Always this many, so a row has the same bits however the table grew."""


def inverse_frequencies(theta: float, rotary_dim: int, factors: Sequence[float] | None = None) -> F32:
    """Return float32[rotary_dim / 2], 1 / (factors[i] · theta^(2i / rotary_dim)) in radians per position."""
    # Each step is rounded to float32, as in transformers: at position 100 000 one rounding more or less is seen.
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    powers = (theta ** exponents.astype(np.float64)).astype(np.float32)
    stretch = np.ones(rotary_dim // 2, np.float32) if factors is None else np.asarray(factors, np.float32)
    return np.float32(1.0) / (stretch * powers)


def longrope_attention_factor(scale: float, original_max_position_embeddings: int) -> float:
    """Return sqrt(1 + ln(scale) / ln(original length)), the m that multiplies cos and sin; 1 for scale <= 1."""
    if scale <= 1.0:
        return 1.0
    return math.sqrt(1.0 + math.log(scale) / math.log(original_max_position_embeddings))


class RotaryTable:
    """Rows [cos | sin] of every position asked for so far, for one list of factors."""

    def __init__(self, inv_freq: F32, attention_factor: float) -> None:
        self._inv_freq = inv_freq
        # A float32 as in transformers' product and in GGUF files, so a model is the same from either kind of file.
        self._attention_factor = float(np.float32(attention_factor))
        self._rows: F32 = np.empty((0, 2 * len(inv_freq)), np.float32)

    def rows(self, positions: I32) -> F32:
        """Return float32[T, rotary_dim]: m · cos in the first half, m · sin in the second, of positions int32[T]."""
        n_missing = int(positions.max(initial=-1)) + 1 - len(self._rows)
        if n_missing > 0:
            start = len(self._rows)
            self._rows = np.concatenate(
                [self._rows, *(self._page(first) for first in range(start, start + n_missing, _PAGE))]
            )
        return self._rows[positions]

    def _page(self, first: int) -> F32:
        # The angle is rounded to float32 as transformers does; its cosine is then exact to the last bit.
        positions = np.arange(first, first + _PAGE, dtype=np.float32)
        angles = (positions[:, None] * self._inv_freq).astype(np.float64)
        both = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * self._attention_factor
        return both.astype(np.float32)


class RotaryEmbedding:
    """Rotary rows of tokens by their position and by the length of their sequence.

    Regime 0 uses the short factors (or none), regime 1 the long ones: every position of a sequence of more than
    original_max_position_embeddings tokens. Without factors, or with equal lists, there is regime 0 only.

    attention_factor:      m, multiplies cosines and sines
    long_attention_factor: the same for regime 1; None: attention_factor
    """

    def __init__(
        self,
        *,
        theta: float,
        rotary_dim: int,
        short_factor: Sequence[float] | None = None,
        long_factor: Sequence[float] | None = None,
        original_max_position_embeddings: int = 0,
        attention_factor: float = 1.0,
        long_attention_factor: float | None = None,
    ) -> None:
        self._switch_len = original_max_position_embeddings
        regimes = [(None if short_factor is None else tuple(short_factor), attention_factor)]
        if long_factor is not None:
            of_long = attention_factor if long_attention_factor is None else long_attention_factor
            regimes.append((tuple(long_factor), of_long))
        self._tables = [
            RotaryTable(inverse_frequencies(theta, rotary_dim, factors), factor)
            for factors, factor in dict.fromkeys(regimes)  # equal ones are one table
        ]

    def regime(self, seq_len: int) -> int:
        """Return the regime of a sequence of seq_len tokens, 0 or 1."""
        return int(len(self._tables) > 1 and seq_len > self._switch_len)

    def cos_sin(self, positions: I32, seq_starts: I32, seq_lens: I32) -> F32:
        """Return float32[T, rotary_dim], the rows of a ragged batch.

        positions:  int32[T]
        seq_starts: int32[B + 1], rows seq_starts[b] .. seq_starts[b + 1] belong to sequence b
        seq_lens:   int32[B], tokens of each sequence, which choose its regime
        """
        regimes = [self.regime(seq_len) for seq_len in seq_lens.tolist()]
        if len(set(regimes)) == 1:
            return self._tables[regimes[0]].rows(positions)
        is_long_token = np.repeat(np.array(regimes, np.bool_), np.diff(seq_starts))
        rows = self._tables[0].rows(np.where(is_long_token, 0, positions))
        rows[is_long_token] = self._tables[1].rows(positions[is_long_token])
        return rows
