"""Texts among the sampling parameters as the token ids that spell them: bad words and the breakers of DRY."""

from __future__ import annotations

from dataclasses import replace

from phlite.engine.params import SamplingParams
from phlite.errors import RequestError
from phlite.tokenizer import Tokenizer

__all__ = ["Speller"]

# Written before a word, they show how it is spelt at the start of a text, after a space and inside a word.
BEGINNINGS = ("", " ", "\n")


class Speller:
    """Spells texts with one tokenizer, and remembers the breakers, for which it looks through the whole vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ids_by_text: dict[str, tuple[int, ...]] = {}

    def spelt(self, params: SamplingParams) -> SamplingParams:
        """Return the parameters with ids in place of the texts that name tokens.

        raises: RequestError for a text that no token spells
        """
        changes: dict[str, object] = {}
        if any(isinstance(word, str) for word in params.bad_words):
            changes["bad_words"] = [
                spelling
                for word in params.bad_words
                for spelling in (self.spellings(word) if isinstance(word, str) else [word])
            ]
        if params.dry_multiplier and any(isinstance(breaker, str) for breaker in params.dry_breakers):
            changes["dry_breakers"] = sorted(
                {
                    token_id
                    for breaker in params.dry_breakers
                    for token_id in (self.containing(breaker) if isinstance(breaker, str) else [breaker])
                }
            )
        return replace(params, **changes) if changes else params  # type: ignore[arg-type]

    def spellings(self, word: str) -> list[tuple[int, ...]]:
        """Return the sequences of ids that the tokenizer writes for a word, with and without a space before it."""
        wanted = (word.encode(), b" " + word.encode())
        found: dict[tuple[int, ...], None] = {}
        for beginning in BEGINNINGS:
            ids = self.tokenizer.encode(beginning + word, add_bos=False)
            # The shortest end that spells the word: what stands before it spells the beginning.
            for first in range(len(ids) - 1, -1, -1):
                if b"".join(map(self.tokenizer.token_bytes, ids[first:])) in wanted:
                    found[tuple(ids[first:])] = None
                    break
        if not found:
            raise RequestError(f"bad_words: the tokenizer has no ids that spell {word!r}; give them as ids")
        return list(found)

    def containing(self, text: str) -> tuple[int, ...]:
        """Return the ids of all tokens whose own text contains this one."""
        if text not in self.ids_by_text:
            data, tokenizer = text.encode(), self.tokenizer
            self.ids_by_text[text] = tuple(i for i in range(tokenizer.vocab_size) if data in tokenizer.token_bytes(i))
        return self.ids_by_text[text]
