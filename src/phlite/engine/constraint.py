"""What the engine asks of constrained output: which ids may come next. Grammars and text stay above the engine."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from phlite.errors import RequestError

__all__ = ["TokenConstraint", "allowed_tokens", "must_end", "only_token"]


class TokenConstraint(Protocol):
    """The way of one sequence through a constraint. Methods raise PhliteError when there is no way on."""

    @property
    def is_complete(self) -> bool:
        """Whether the sequence may end here."""

    def mask(self) -> NDArray[np.uint32]:
        """Return the ids that may come next: uint32[ceil(V / 32)], bit i % 32 of word i // 32 for id i.

        End tokens do not count: the engine allows them where the constraint is complete, and nowhere else.
        """

    def accept(self, token_id: int) -> None:
        """Go on by one token. Raises for one that is not allowed."""

    def rollback(self, n_tokens: int) -> None:
        """Take the last n_tokens accepted ones back."""

    def clone(self) -> TokenConstraint:
        """Return an independent copy of the state."""


def allowed_tokens(constraint: TokenConstraint, vocab_size: int, stop_ids: frozenset[int]) -> NDArray[np.bool_]:
    """Return which ids the next token may be: bool[V]. Stop ids are among them exactly when the text may end."""
    bits = np.unpackbits(constraint.mask().astype("<u4").view(np.uint8), count=vocab_size, bitorder="little")
    allowed = bits.view(np.bool_)
    allowed[[token_id for token_id in stop_ids if token_id < vocab_size]] = constraint.is_complete
    if not allowed.any():
        raise RequestError(
            "constraint: the text is unfinished, and no token of the vocabulary, or no end token, may follow;"
            " stop_token_ids and ignore_eos say how an answer can end"
        )
    return allowed


def must_end(constraint: TokenConstraint) -> bool:
    """Return whether the text is complete and nothing may follow it."""
    return constraint.is_complete and not constraint.mask().any()


def only_token(constraint: TokenConstraint) -> int | None:
    """Return the one id that may come next; None where there are several, or where the text may end instead."""
    if constraint.is_complete:
        return None
    words = constraint.mask()
    (places,) = words.nonzero()
    word = int(words[places[0]]) if places.size == 1 else 0
    return int(places[0]) * 32 + word.bit_length() - 1 if word.bit_count() == 1 else None
