"""A model's vocabulary as the grammar library takes it: the bytes of each token, and which tokens text may have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from phlite.errors import BackendUnavailableError

if TYPE_CHECKING:
    import llguidance

__all__ = ["GrammarVocabulary", "import_llguidance"]

U32 = NDArray[np.uint32]

LONGEST_FORCED_CHARS = 512


class GrammarVocabulary:
    """The token trie of one model, made once and shared by all grammars.

    The library's own end token is one id beyond the model's: ends are the engine's business.

    printable: uint32[ceil(V / 32)], bit i % 32 of word i // 32 is set where token i is text
    """

    def __init__(self, token_bytes: Sequence[bytes], encode: Callable[[str], list[int]]) -> None:
        """Build the trie; takes about 5 us per token.

        token_bytes: bytes of UTF-8 of each of the model's V ids; b"" for those that are never text
        encode:      ids of a text that goes on in the middle of another one
        raises:      BackendUnavailableError without the library
        """
        library = import_llguidance()
        self.vocab_size = len(token_bytes)
        self.token_bytes = token_bytes
        self.encode = encode
        # 0xFF, which UTF-8 never has, marks special tokens for the library; so a token with it cannot be text.
        is_text = np.array([bool(data) and b"\xff" not in data for data in token_bytes], np.bool_)
        self.printable = pack_bits(is_text)
        self.special_token_ids: list[int] = []
        self.tokens = [
            data if text else b"\xff[%d]" % i for i, (data, text) in enumerate(zip(token_bytes, is_text, strict=True))
        ]
        self.tokens.append(b"\xff[end]")
        self.eos_token_id = self.vocab_size
        self.bos_token_id = None
        self.is_tokenizer_wrapper = True
        self.trie: llguidance.LLTokenizer = library.LLTokenizer(self)
        self.tokens = []  # the trie has copied them

    def __call__(self, text: str | bytes) -> list[int]:
        """Return ids that spell a forced text, for the library, which needs them to spell it exactly.

        They are the tokenizer's own, but those of the longest pieces where its own spell something else (U+2581 becomes
        a space in SentencePiece), and behind the first LONGEST_FORCED_CHARS, since each step asks again.
        """
        words = text if isinstance(text, str) else text.decode("utf-8", "replace")
        near, far = words[:LONGEST_FORCED_CHARS], words[LONGEST_FORCED_CHARS:]
        ids = self.encode(near)
        if b"".join(self.token_bytes[i] for i in ids) != near.encode():
            ids = self.trie.greedy_tokenize(near)
        return ids + self.trie.greedy_tokenize(far) if far else ids


def pack_bits(flags: NDArray[np.bool_]) -> U32:
    """Return bool[V] as uint32[ceil(V / 32)], bit i % 32 of word i // 32 for entry i."""
    n_words = -(-flags.size // 32)
    padded = np.zeros(n_words * 32, np.bool_)
    padded[: flags.size] = flags
    return np.packbits(padded, bitorder="little").view("<u4").astype(np.uint32)


def import_llguidance() -> ModuleType:
    """Return the library, or raise BackendUnavailableError that says how to install it."""
    try:
        import llguidance
    except ImportError as error:
        raise BackendUnavailableError(
            f"constrained output needs the package llguidance, which is not installed ({error});"
            ' install it with: pip install "phlite[constrained]"'
        ) from None
    return llguidance
