"""A tokenizer that the `tokenizers` library runs, with the package's guard against special tokens in users' text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from tokenizers import Tokenizer as Engine
from tokenizers import normalizers

from phlite.errors import ModelFileError, RequestError, UnsupportedModelError
from phlite.tokenizer.base import Tokenizer
from phlite.tokenizer.guard import ESCAPES, GUARD
from phlite.tokenizer.special_tokens import is_marker

__all__ = ["LibraryTokenizer", "build_engine"]


class LibraryTokenizer(Tokenizer):
    """Encodes with an engine of the `tokenizers` library; decodes like every other tokenizer of the package."""

    def __init__(
        self,
        engine: Engine,
        *,
        source: str,
        vocab_size: int,
        spell: Callable[[str], bytes],
        bos_id: int | None,
        eos_id: int | None,
        stop_ids: Iterable[int] = (),
        unprinted_ids: Iterable[int] = (),
        adds_bos: bool = False,
        strips_leading_space: bool = False,
        chat_templates: Mapping[str, str] | None = None,
    ) -> None:
        """Take over an engine, which nobody else uses afterwards.

        source: name of the file, for messages
        spell:  from a piece's text in the vocabulary to the bytes it stands for
        raises: UnsupportedModelError for a control token that is looked up in normalised text, where it is not safe
        """
        added = engine.get_added_tokens_decoder()
        control = {t.content: i for i, t in added.items() if t.content and (t.special or is_marker(t.content))}
        for token in added.values():
            if token.normalized and token.content in control:
                raise UnsupportedModelError(
                    f"{source}: added_tokens: {token.content!r}: got normalized true, expected false for a control "
                    "token; with it, a user's text could hold the token"
                )
        super().__init__(
            vocab_size=vocab_size,
            special_tokens=control,
            bos_id=bos_id,
            eos_id=eos_id,
            stop_ids=stop_ids,
            unprinted_ids=unprinted_ids,
            adds_bos=adds_bos,
            strips_leading_space=strips_leading_space,
            chat_templates=chat_templates,
        )
        self._engine = engine
        self._source = source
        self._spell_piece = spell
        self._added = {token_id: token.content for token_id, token in added.items()}
        # The library cuts out control tokens first (they are not normalized), then normalises what is left: that is
        # the moment to drop the guards.
        drops = [normalizers.Replace(GUARD, ""), *(normalizers.Replace(*escape) for escape in ESCAPES)]
        own = [engine.normalizer] if engine.normalizer is not None else []
        engine.normalizer = normalizers.Sequence([*drops, *own])

    def token_text(self, token_id: int) -> str:
        """Return the piece as the vocabulary spells it; "" beyond vocab_size."""
        return self._engine.id_to_token(token_id) or "" if token_id >= 0 else ""

    def _spell(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        return self._spell_piece(self.token_text(token_id))

    def _encode(self, text: str) -> list[int]:
        try:
            return list(self._engine.encode(text, add_special_tokens=False).ids)
        except BaseException as error:
            if not _is_panic(error):
                raise
            raise RequestError(
                f"text of {len(text)} characters: the pre-tokenizer of {self._source} gave up on it: {error}"
            ) from None


def build_engine(build: Callable[[], Engine], *, source: str) -> Engine:
    """Return what build returns; raises ModelFileError where the library refuses its input or panics."""
    try:
        return build()
    except BaseException as error:
        # The library raises bare Exception for bad input, and BaseException where its Rust code panics.
        if type(error) is not Exception and not isinstance(error, (ValueError, TypeError)) and not _is_panic(error):
            raise
        raise ModelFileError(f"{source}: the tokenizer cannot be built: {error}") from None


def _is_panic(error: BaseException) -> bool:
    # pyo3 gives panics no importable class, and derives them from BaseException.
    return type(error).__name__ == "PanicException"
