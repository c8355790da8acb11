"""What every tokenizer of the package does: text to ids and back, whatever kind of vocabulary it has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

from phlite.errors import RequestError
from phlite.tokenizer.guard import SpecialTextGuard
from phlite.tokenizer.special_tokens import stop_ids_by_text
from phlite.tokenizer.stream import TextStream

__all__ = ["Tokenizer"]


class Tokenizer(ABC):
    """A vocabulary and its rules. Immutable to its users, safe to share between threads.

    vocab_size:     number of ids the vocabulary names; a model may have more rows, which decode to nothing
    bos_id, eos_id: begin and end of text as the file gives them, or None
    stop_ids:       ids that end an answer and are never printed
    special_tokens: text to id of the control tokens, the ones that parse_special and templates produce
    adds_bos:       whether bos_id goes before a text unless the caller says otherwise
    chat_templates: name to Jinja source of the templates that the file brings; "default" is the usual one
    strips_leading_space: whether decoding drops one space at the beginning of a text
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        special_tokens: Mapping[str, int],
        bos_id: int | None,
        eos_id: int | None,
        stop_ids: Iterable[int] = (),
        unprinted_ids: Iterable[int] = (),
        adds_bos: bool = False,
        strips_leading_space: bool = False,
        chat_templates: Mapping[str, str] | None = None,
    ) -> None:
        """Take the properties over.

        stop_ids:             what the file names by id; those known by text are added
        unprinted_ids:        ids beside the special tokens' that decode to nothing (padding rows, unknown)
        strips_leading_space: encoding prefixes a space, so decoding drops one at the start
        """
        self.vocab_size = vocab_size
        self.special_tokens = dict(special_tokens)
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.stop_ids = stop_ids_by_text(special_tokens) | frozenset(stop_ids)
        self.adds_bos = adds_bos
        self.chat_templates = dict(chat_templates or {})
        self.strips_leading_space = strips_leading_space
        self._unprinted = frozenset(special_tokens.values()) | self.stop_ids | frozenset(unprinted_ids)
        self._guard = SpecialTextGuard(special_tokens)
        self._bytes_of: dict[int, bytes] = {}

    def encode(self, text: str, *, parse_special: bool = False, add_bos: bool | None = None) -> list[int]:
        """Return the ids of a text.

        parse_special: the text is trusted, and special tokens spelt in it become control tokens; otherwise they are
                       plain text
        add_bos:       put bos_id first; None does what the vocabulary's file says
        raises:        RequestError for a lone surrogate (text that was not UTF-8), or add_bos=True without a bos_id
        """
        self._check_text(text)
        ids = self._encode(self._guard.escape(text) if parse_special else self._guard.guard(text))
        return [self._bos(), *ids] if self._wants_bos(add_bos) else ids

    def encode_prompt(self, rendered: str) -> list[int]:
        """Return the ids of a rendered chat prompt: the template's special tokens count, guarded ones do not.

        bos_id comes first exactly once where the vocabulary adds it, also if the template writes it too.
        raises: RequestError for a lone surrogate
        """
        self._check_text(rendered)
        ids = self._encode(rendered)
        if self._wants_bos(None) and ids[:1] != [self.bos_id]:
            return [self._bos(), *ids]
        return ids

    def encode_continuation(self, text: str) -> list[int]:
        """Return the ids of a text that goes on in the middle of another one: no bos_id, no space before it.

        raises: RequestError for a lone surrogate
        """
        if not self.strips_leading_space:
            return self.encode(text, add_bos=False)
        # Behind a line end no space is put; no piece of these vocabularies holds a line end and more.
        head = self.encode("\n", add_bos=False)
        return self.encode("\n" + text, add_bos=False)[len(head) :]

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Return the text of whole ids; bytes that are no UTF-8 become U+FFFD.

        skip_special: leave special tokens out; otherwise they show as their text
        raises:       RequestError for a negative id
        """
        of = self._printed_bytes if skip_special else self.token_bytes
        text = b"".join(map(of, ids)).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.strips_leading_space else text

    def stream(self, *, stop: Sequence[str] = (), continues_text: bool = False) -> TextStream:
        """Return an incremental decoder for one generated sequence, which prints no special token.

        stop:           strings that end the text
        continues_text: the sequence goes on in the middle of a text, so a leading space belongs to it
        raises:         RequestError for an empty stop string
        """
        strips = self.strips_leading_space and not continues_text
        return TextStream(self._printed_bytes, stop=stop, strips_leading_space=strips)

    def is_special(self, token_id: int) -> bool:
        """Return whether the token is never printed."""
        return token_id in self._unprinted

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of UTF-8, perhaps part of a character, that the token spells; b"" beyond vocab_size.

        raises: RequestError for a negative id
        """
        data = self._bytes_of.get(token_id)
        if data is None:
            if token_id < 0:
                raise RequestError(f"token id: got {token_id}, expected 0 or more")
            data = self._spell(token_id) if token_id < self.vocab_size else b""
            self._bytes_of[token_id] = data
        return data

    @abstractmethod
    def token_text(self, token_id: int) -> str:
        """Return the vocabulary's own spelling of the token, such as "▁Hello"; "" beyond vocab_size."""

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Return the ids of a text whose special spellings count unless guarded, without bos_id."""

    @abstractmethod
    def _spell(self, token_id: int) -> bytes:
        """Return the bytes of a token with 0 <= token_id < vocab_size."""

    def _printed_bytes(self, token_id: int) -> bytes:
        return b"" if token_id in self._unprinted else self.token_bytes(token_id)

    def _wants_bos(self, add_bos: bool | None) -> bool:
        return self.adds_bos if add_bos is None else add_bos

    def _bos(self) -> int:
        if self.bos_id is None:
            raise RequestError("add_bos: this vocabulary has no begin-of-text token; leave add_bos out")
        return self.bos_id

    @staticmethod
    def _check_text(text: str) -> None:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(
                f"text: character {error.start} is the lone surrogate {text[error.start]!r}; the text was not UTF-8 "
                "where it was read, decode it with errors='replace' there"
            ) from None
