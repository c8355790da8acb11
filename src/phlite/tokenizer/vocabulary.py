"""The `tokenizer.*` keys of a GGUF file, checked: types, lengths, ids in range, nothing unknown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Final, Protocol, TypeVar, runtime_checkable

from phlite.errors import ModelFileError, UnsupportedModelError
from phlite.tokenizer.special_tokens import is_marker

__all__ = [
    "BYTE",
    "CONTROL",
    "NORMAL",
    "STOP_KEY",
    "STRIP_KEYS",
    "UNKNOWN",
    "UNUSED",
    "USER_DEFINED",
    "GGUFVocabulary",
    "read_vocabulary",
]

# Values of tokenizer.ggml.token_type.
NORMAL: Final = 1
UNKNOWN: Final = 2
CONTROL: Final = 3
USER_DEFINED: Final = 4
UNUSED: Final = 5
BYTE: Final = 6

_PREFIX = "tokenizer.ggml."
_STOP_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_USED_KEYS = {
    *("model", "pre", "tokens", "scores", "token_type", "merges", "bos_token_id", "unknown_token_id"),
    *("add_bos_token", "add_space_prefix", *_STOP_KEYS),
}
# Known keys that say nothing about how Phi's text becomes ids.
_IDLE_KEYS = {
    *("padding_token_id", "seperator_token_id", "separator_token_id", "cls_token_id", "mask_token_id"),
    *("prefix_token_id", "suffix_token_id", "middle_token_id", "token_type_count", "add_sep_token"),
    *(f"fim_{part}_token_id" for part in ("pre", "suf", "mid", "pad", "rep", "sep")),
}
# Keys whose other value would change ids in a way that no Phi model needs.
_FIXED_KEYS = {"remove_extra_whitespaces": False, "add_eos_token": False, "escape_whitespaces": True}

# Keys of phlite's own converter, for what GGUF has no key for; other programs skip them.
STRIP_KEYS: Final = {"lstrip": "phlite.tokenizer.lstrip_token_ids", "rstrip": "phlite.tokenizer.rstrip_token_ids"}
STOP_KEY: Final = "phlite.tokenizer.stop_token_ids"

_T = TypeVar("_T", bound="int | float | str | bool")


@runtime_checkable
class _Array(Protocol):
    """An array of numbers as the GGUF reader gives it: numpy's."""

    def tolist(self) -> object: ...


@dataclass(frozen=True)
class GGUFVocabulary:
    """A vocabulary as its file describes it; every id is in range, every list has one entry per token.

    model:     "llama" (SentencePiece) or "gpt2" (byte-level BPE)
    pre:       name of the byte-level pre-tokenizer, "" if the file names none
    types:     token_type of each token; scores: higher merges first (SentencePiece only, else empty)
    merges:    "left right" in order of priority (byte-level only, else empty)
    add_bos, add_space_prefix: None if the file does not say
    stop_ids:  end tokens that the file names
    lstrip_ids, rstrip_ids: tokens that swallow the white space before, behind them; None if the file does not say
    source:    name of the file, for messages
    name, architecture: general.name and general.architecture, "" if missing
    """

    source: str
    name: str
    architecture: str
    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    bos_id: int | None
    eos_id: int | None
    unknown_id: int | None
    stop_ids: frozenset[int]
    lstrip_ids: frozenset[int] | None
    rstrip_ids: frozenset[int] | None
    add_bos: bool | None
    add_space_prefix: bool | None
    chat_templates: dict[str, str]

    def is_control(self, token_id: int) -> bool:
        """Return whether the token is a control token: so typed, or user-defined and spelt like mark-up."""
        kind = self.types[token_id]
        return kind == CONTROL or (kind == USER_DEFINED and is_marker(self.tokens[token_id]))


def read_vocabulary(metadata: Mapping[str, object], *, source: str = "model file") -> GGUFVocabulary:
    """Return the checked vocabulary of a GGUF file's metadata.

    raises: ModelFileError for a missing key, a wrong type, unequal lengths, an id outside the vocabulary, a duplicate
            piece or a score that is no number; UnsupportedModelError for another kind of vocabulary or an unknown key
    """
    keys = _Keys(metadata, source)
    model = keys.one("model", str)
    if model not in ("llama", "gpt2"):
        raise UnsupportedModelError(
            f"{source}: {_PREFIX}model: got {model[:80]!r}, expected 'llama' (SentencePiece) or 'gpt2' (byte-level BPE)"
        )
    keys.check_known()
    tokens = keys.many("tokens", str)
    n_tokens = len(tokens)
    if not n_tokens:
        raise keys.wrong("tokens", "an empty list", "at least one token")
    types = keys.many("token_type", int, length=n_tokens)
    if not set(types) <= {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE}:
        raise keys.wrong("token_type", f"types {sorted(set(types))[:10]}", "1 to 6 each")
    scores = keys.many("scores", float, length=n_tokens) if model == "llama" else []
    if not all(map(isfinite, scores)):
        raise keys.wrong("scores", "a score that is infinite or no number", "finite numbers")
    _check_distinct(keys, tokens, types)
    eos_id = keys.token_id("eos_token_id", n_tokens)
    bos_id = keys.token_id("bos_token_id", n_tokens)
    add_bos = keys.optional("add_bos_token", bool)
    if add_bos and bos_id is None:
        raise keys.wrong("add_bos_token", "true without a bos_token_id", "the id to add")
    return GGUFVocabulary(
        source=source,
        name=keys.general("general.name"),
        architecture=keys.general("general.architecture"),
        model=model,
        pre=keys.optional("pre", str) or "",
        tokens=tokens,
        types=types,
        scores=scores,
        merges=keys.many("merges", str) if model == "gpt2" else [],
        bos_id=bos_id,
        eos_id=eos_id,
        unknown_id=keys.token_id("unknown_token_id", n_tokens),
        stop_ids=frozenset(i for key in _STOP_KEYS if (i := keys.token_id(key, n_tokens)) is not None)
        | (keys.token_ids(STOP_KEY, n_tokens) or frozenset()),
        lstrip_ids=keys.token_ids(STRIP_KEYS["lstrip"], n_tokens),
        rstrip_ids=keys.token_ids(STRIP_KEYS["rstrip"], n_tokens),
        add_bos=add_bos,
        add_space_prefix=keys.optional("add_space_prefix", bool),
        chat_templates=keys.chat_templates(),
    )


class _Keys:
    """Typed access to the metadata with one form of message."""

    def __init__(self, metadata: Mapping[str, object], source: str) -> None:
        self._metadata = metadata
        self._source = source

    def wrong(self, key: str, got: str, expected: str) -> ModelFileError:
        return ModelFileError(f"{self._source}: {_PREFIX}{key}: got {got}, expected {expected}")

    def one(self, key: str, kind: type[_T]) -> _T:
        value = self.optional(key, kind)
        if value is None:
            raise self.wrong(key, "no such key", f"a {kind.__name__}")
        return value

    def optional(self, key: str, kind: type[_T]) -> _T | None:
        """Return a single value, None where the file has none."""
        value = self._metadata.get(_PREFIX + key)
        if value is not None and type(value) is not kind:
            raise self.wrong(key, _describe(value), f"a {kind.__name__}")
        return value

    def many(self, key: str, kind: type[_T], *, length: int | None = None) -> list[_T]:
        if _PREFIX + key not in self._metadata:
            raise self.wrong(key, "no such key", f"a list of {kind.__name__}")
        value = self._metadata[_PREFIX + key]
        values = value.tolist() if isinstance(value, _Array) else value
        if not isinstance(values, (list, tuple)):
            raise self.wrong(key, _describe(value), f"a list of {kind.__name__}")
        if kind is float and set(map(type, values)) <= {int, float}:
            values = list(map(float, values))
        if not set(map(type, values)) <= {kind}:
            other = next(v for v in values if type(v) is not kind)
            raise self.wrong(key, f"{_describe(other)} in it", f"a list of {kind.__name__}")
        if length is not None and len(values) != length:
            raise self.wrong(key, f"{len(values)} entries", f"{length}, one for each of {_PREFIX}tokens")
        return values if isinstance(values, list) else list(values)

    def token_id(self, key: str, n_tokens: int) -> int | None:
        token_id = self.optional(key, int)
        if token_id is not None and not 0 <= token_id < n_tokens:
            raise self.wrong(key, str(token_id), f"an id of the vocabulary, 0 to {n_tokens - 1}")
        return token_id

    def token_ids(self, name: str, n_tokens: int) -> frozenset[int] | None:
        """Return a list of ids by the key's full name, None where the file has none."""
        if name not in self._metadata:
            return None
        value = self._metadata[name]
        ids = value.tolist() if isinstance(value, _Array) else value
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < n_tokens for i in ids):
            raise ModelFileError(f"{self._source}: {name}: expected ids of the vocabulary, 0 to {n_tokens - 1}")
        return frozenset(ids)

    def general(self, key: str) -> str:
        value = self._metadata.get(key, "")
        if not isinstance(value, str):
            raise ModelFileError(f"{self._source}: {key}: got {_describe(value)}, expected a str")
        return value

    def check_known(self) -> None:
        """Raise for a key of the vocabulary that is unknown or has a value that is not implemented."""
        for name in self._metadata:
            if not name.startswith(_PREFIX):
                continue
            key = name.removeprefix(_PREFIX)
            if key in _FIXED_KEYS and (value := self.one(key, bool)) is not _FIXED_KEYS[key]:
                raise UnsupportedModelError(
                    f"{self._source}: {name}: got {value}, expected {_FIXED_KEYS[key]}; no Phi model needs the other"
                )
            if key not in _USED_KEYS and key not in _IDLE_KEYS and key not in _FIXED_KEYS:
                raise UnsupportedModelError(f"{self._source}: {name}: unknown key, the text may need it to become ids")

    def chat_templates(self) -> dict[str, str]:
        """Return the templates by name; a file's plain tokenizer.chat_template is "default"."""
        templates: dict[str, str] = {}
        for name, value in self._metadata.items():
            if name == "tokenizer.chat_template" or name.startswith("tokenizer.chat_template."):
                if not isinstance(value, str):
                    raise ModelFileError(f"{self._source}: {name}: got {_describe(value)}, expected a str")
                templates[name.removeprefix("tokenizer.chat_template").removeprefix(".") or "default"] = value
        return templates


def _check_distinct(keys: _Keys, tokens: list[str], types: list[int]) -> None:
    """Raise where two tokens that text can become are spelt alike: one of them could never be meant."""
    if len(set(tokens)) == len(tokens):
        return
    seen: dict[str, int] = {}
    for token_id, (text, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind in (NORMAL, CONTROL, USER_DEFINED, BYTE):
            if text in seen:
                raise keys.wrong("tokens", f"{text[:40]!r} as {seen[text]} and as {token_id}", "distinct tokens")
            seen[text] = token_id


def _describe(value: object) -> str:
    text = repr(value) if isinstance(value, (str, int, float)) else ""
    return f"{type(value).__name__} {text[:60]}".strip()
