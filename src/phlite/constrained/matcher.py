"""One answer's way through a grammar: which tokens may come next, and whether the text so far is complete."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from phlite.constrained.vocabulary import GrammarVocabulary
from phlite.errors import RequestError

if TYPE_CHECKING:
    import llguidance

__all__ = ["GrammarMatcher"]

U32 = NDArray[np.uint32]


class GrammarMatcher:
    """The state of one sequence. Not for two threads at once; `clone` gives each its own.

    Where forced text is spelt in one way by the model's tokenizer, that way alone is allowed.
    """

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary: GrammarVocabulary) -> None:
        self.matcher = matcher
        self.vocabulary = vocabulary
        self.known_mask: U32 | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the text may end here."""
        return self.matcher.is_accepting()

    def mask(self) -> U32:
        """Return the ids that may come next: uint32[ceil(V / 32)], bit i % 32 of word i // 32 for id i; not a copy.

        No end token is among them; all zero where the text can only end, or cannot go on with this vocabulary.
        raises: RequestError when the grammar has become too complex to go on
        """
        if self.known_mask is None:
            # One bit more than the vocabulary has: the library's own end token, which is cut off here.
            words = np.zeros(self.vocabulary.vocab_size // 32 + 1, np.uint32)
            self.matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
            # After an error the library allows its end token: that must not pass for an end.
            self.check()
            self.known_mask = words[: self.vocabulary.printable.size] & self.vocabulary.printable
        return self.known_mask

    def accept(self, token_id: int) -> None:
        """Go on by a token. raises: RequestError for one that the constraint does not allow; the state is then lost."""
        self.known_mask = None
        if not self.matcher.consume_token(token_id) or self.matcher.is_error():
            self.check()
            raise RequestError(f"constraint: token {token_id} is not allowed here")

    def rollback(self, n_tokens: int) -> None:
        """Take the last n_tokens back. raises: RequestError when there were not as many."""
        self.known_mask = None
        if n_tokens and not self.matcher.rollback(n_tokens):
            raise RequestError(f"constraint: cannot take {n_tokens} tokens back: {first_line(self.matcher)}")

    def clone(self) -> GrammarMatcher:
        """Return an independent copy of the state."""
        return GrammarMatcher(self.matcher.deep_copy(), self.vocabulary)

    def check(self) -> None:
        """Raise RequestError when the library has given up."""
        if self.matcher.is_error():
            raise RequestError(
                f"constraint: {self.matcher.stop_reason()}: {first_line(self.matcher)}; the answer ends here, since no"
                " text may come unconstrained; a simpler schema or grammar may help"
            )


def first_line(matcher: llguidance.LLMatcher) -> str:
    """Return the library's message without its dump of the parser's state."""
    lines = matcher.get_error().strip().splitlines()
    return lines[0][:300] if lines else "no message"
