"""SentencePiece-BPE as GGUF files describe it: pieces with scores, byte fallback, a space before each fragment.

The merging is written here instead of handed to the `tokenizers` library, because a GGUF file stores scores and no
merge list: the rule "best score first, then leftmost" is then applied as it stands, equal to llama.cpp by
construction, and a vocabulary of 32,000 pieces is ready in milliseconds (a merge list would first have to be derived
from all splits of all pieces).

source of the rules: llama.cpp, llama-vocab.cpp (llm_tokenizer_spm, tokenizer_st_partition)
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence

from phlite.errors import ModelFileError
from phlite.tokenizer.base import Tokenizer
from phlite.tokenizer.byte_spelling import spell_sentencepiece
from phlite.tokenizer.guard import unguard
from phlite.tokenizer.special_tokens import SpecialToken, SpecialTokenCutter
from phlite.tokenizer.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, GGUFVocabulary

__all__ = ["SentencePieceTokenizer"]

SPACE = "\u2581"

_SPACE_INSIDE_PIECE = re.compile(f"[^{SPACE}\n]{SPACE}")
_WORD = re.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+")
# Words repeat: the ids of this many are kept, and no longer ones than this.
_CACHED_WORDS = 8192
_CACHED_WORD_CHARS = 32
# Tokens that GGUF's converters leave without the strip flag they had, or that never had one.
_NEVER_STRIP = ("<unk>", "<s>", "<|endoftext|>")


class SentencePieceTokenizer(Tokenizer):
    """Encodes by merging the best-scored adjacent pair until none is a piece; see Tokenizer for the interface."""

    def __init__(self, vocabulary: GGUFVocabulary, *, special_tokens_strip: bool | None = None) -> None:
        """Build from a checked vocabulary.

        special_tokens_strip: whether special tokens swallow the white space after them, as those of current Phi-3
                              files do. None: as a file of our converter says; others do not store it, and llama.cpp's
                              rule decides, "phi-3" or "phi3" in general.name
        raises:               ModelFileError for byte tokens that are misspelt or missing
        """
        lstrip_ids, rstrip_ids = _strip_ids(vocabulary, special_tokens_strip)
        tokens, types = vocabulary.tokens, vocabulary.types
        adds_space = vocabulary.add_space_prefix is not False
        cut = [
            SpecialToken(i, tokens[i], lstrip=i in lstrip_ids, rstrip=i in rstrip_ids) for i in _ids_to_cut(vocabulary)
        ]
        super().__init__(
            vocab_size=len(tokens),
            special_tokens={t.text: t.token_id for t in cut if _is_guarded(vocabulary, t.token_id)},
            bos_id=vocabulary.bos_id,
            eos_id=vocabulary.eos_id,
            stop_ids=vocabulary.stop_ids,
            unprinted_ids=[i for i, kind in enumerate(types) if kind in (UNKNOWN, UNUSED)],
            adds_bos=vocabulary.add_bos if vocabulary.add_bos is not None else vocabulary.bos_id is not None,
            strips_leading_space=adds_space,
            chat_templates=vocabulary.chat_templates,
        )
        self._tokens = tokens
        self._types = types
        self._cutter = SpecialTokenCutter(cut)
        self._prefix = SPACE if adds_space else ""
        self._piece_ids = {text: i for i, (text, kind) in enumerate(zip(tokens, types, strict=True)) if kind == NORMAL}
        self._costs = [-score for score in vocabulary.scores]
        self._byte_ids = _ids_by_byte(vocabulary)
        # No piece of a real vocabulary goes on behind a space inside it, so no merge crosses from a word to the next,
        # and words can be merged apart (and remembered). Where one does, the whole fragment is merged at once.
        self._splits_words = _SPACE_INSIDE_PIECE.search("\n".join(self._piece_ids)) is None
        self._word_ids: dict[str, list[int]] = {}

    def token_text(self, token_id: int) -> str:
        """Return the piece as the vocabulary spells it; "" beyond vocab_size."""
        return self._tokens[token_id] if 0 <= token_id < self.vocab_size else ""

    def _spell(self, token_id: int) -> bytes:
        text = self._tokens[token_id]
        return spell_sentencepiece(text) if self._types[token_id] in (BYTE, NORMAL) else text.encode()

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._cutter.cut(text):
            if isinstance(part, SpecialToken):
                ids.append(part.token_id)
            else:
                self._encode_fragment(unguard(part), ids)
        return ids

    def _encode_fragment(self, fragment: str, ids: list[int]) -> None:
        """Append the ids of a text between special tokens; each such text gets the space prefix of its own."""
        if not fragment:
            return
        fragment = self._prefix + fragment.replace(" ", SPACE)
        if not self._splits_words:
            ids += self._merge(fragment)
            return
        cache = self._word_ids
        for word in _WORD.findall(fragment):
            word_ids = cache.get(word)
            if word_ids is None:
                word_ids = self._merge(word)
                if len(word) <= _CACHED_WORD_CHARS:
                    if len(cache) >= _CACHED_WORDS:
                        cache = self._word_ids = {}
                    cache[word] = word_ids
            ids += word_ids

    def _merge(self, word: str) -> list[int]:
        """Return the ids of a word: merge the adjacent pair with the best score, the leftmost of equals, until none.

        A symbol is the span from its first character to end[first]; its neighbour on the left begins at begin[first].
        Merging moves one end and forgets the symbol on the right, so a span that the heap still holds is stale when
        its middle has been forgotten or its end has moved. O(n log n) for n characters.
        """
        n_chars = len(word)
        end = list(range(1, n_chars + 1))
        begin = list(range(-1, n_chars))  # of the symbol that ends here; -1 before the first
        piece_ids, costs = self._piece_ids, self._costs
        heap = [
            (costs[piece_id], left, left + 2)
            for left in range(n_chars - 1)
            if (piece_id := piece_ids.get(word[left : left + 2])) is not None
        ]
        heapq.heapify(heap)
        while heap:
            _, left, right_end = heapq.heappop(heap)
            middle = end[left]
            if not 0 < middle < right_end or end[middle] != right_end:
                continue
            end[left], end[middle], begin[right_end] = right_end, 0, left
            before = begin[left]
            if before >= 0 and (piece_id := piece_ids.get(word[before:right_end])) is not None:
                heapq.heappush(heap, (costs[piece_id], before, right_end))
            if right_end < n_chars:
                after_end = end[right_end]
                if (piece_id := piece_ids.get(word[left:after_end])) is not None:
                    heapq.heappush(heap, (costs[piece_id], left, after_end))
        return self._ids_of_symbols(word, end)

    def _ids_of_symbols(self, word: str, end: Sequence[int]) -> list[int]:
        """Return the id of each symbol; a character that is no piece becomes the bytes of its UTF-8."""
        ids: list[int] = []
        left = 0
        while left < len(word):
            symbol = word[left : end[left]]
            piece_id = self._piece_ids.get(symbol)
            if piece_id is not None:
                ids.append(piece_id)
            else:
                ids += [self._byte_ids[byte] for byte in symbol.encode()]
            left = end[left]
        return ids


def _ids_to_cut(vocabulary: GGUFVocabulary) -> list[int]:
    """Return the ids of tokens matched before merging: control, user-defined, and the unknown token by its name.

    Padding rows (types unknown and unused) are never matched: text cannot mean them.
    """
    ids = {i for i, kind in enumerate(vocabulary.types) if kind in (CONTROL, USER_DEFINED)}
    if vocabulary.unknown_id is not None:
        ids.add(vocabulary.unknown_id)
    return [i for i in sorted(ids) if vocabulary.tokens[i]]


def _strip_ids(vocabulary: GGUFVocabulary, strip: bool | None) -> tuple[frozenset[int], frozenset[int]]:
    """Return the tokens that swallow white space before them, and behind them."""
    if strip is None and vocabulary.rstrip_ids is not None:
        return vocabulary.lstrip_ids or frozenset(), vocabulary.rstrip_ids
    if strip is None:
        strip = re.search("phi-?3", vocabulary.name.lower()) is not None
    ids = [i for i in _ids_to_cut(vocabulary) if strip and vocabulary.tokens[i] not in _NEVER_STRIP]
    return frozenset(), frozenset(ids)


def _is_guarded(vocabulary: GGUFVocabulary, token_id: int) -> bool:
    return vocabulary.is_control(token_id) or token_id == vocabulary.unknown_id


def _bytes_by_id(vocabulary: GGUFVocabulary) -> dict[int, int]:
    byte_of: dict[int, int] = {}
    for token_id, kind in enumerate(vocabulary.types):
        if kind == BYTE:
            spelling = vocabulary.tokens[token_id]
            data = spell_sentencepiece(spelling)
            if len(data) != 1 or len(spelling) != 6:
                raise ModelFileError(
                    f"{vocabulary.source}: tokenizer.ggml.tokens: byte token {token_id}: got "
                    f"{spelling[:40]!r}, expected the form '<0x0A>'"
                )
            byte_of[token_id] = data[0]
    return byte_of


def _ids_by_byte(vocabulary: GGUFVocabulary) -> list[int]:
    """Return the id of each byte 0 to 255; the unknown token stands in where there are no byte tokens at all."""
    byte_of = _bytes_by_id(vocabulary)
    if not byte_of and vocabulary.unknown_id is not None:
        return [vocabulary.unknown_id] * 256
    ids = {byte: token_id for token_id, byte in byte_of.items()}
    missing = [byte for byte in range(256) if byte not in ids]
    if missing:
        raise ModelFileError(
            f"{vocabulary.source}: tokenizer.ggml.tokens: no token for byte 0x{missing[0]:02X} and {len(missing) - 1} "
            "others, expected '<0x00>' to '<0xFF>' with token_type 6; text could not be encoded"
        )
    return [ids[byte] for byte in range(256)]
