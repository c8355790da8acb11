"""Checks the parts of a tokenizer.json before the `tokenizers` library sees it, and says how its pieces are spelt."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from phlite.errors import ModelFileError, UnsupportedModelError
from phlite.tokenizer.byte_spelling import spell_byte_level, spell_sentencepiece

__all__ = ["Pipeline", "check_pipeline"]

# What Phi tokenizers are made of: normalizers, pre-tokenizers, post-processors and decoders.
_PARTS: Final[dict[str, frozenset[str]]] = {
    "normalizer": frozenset(["Sequence", "Prepend", "Replace", "NFC"]),
    "pre_tokenizer": frozenset(["Sequence", "ByteLevel", "Split", "Metaspace"]),
    "post_processor": frozenset(["Sequence", "ByteLevel", "TemplateProcessing"]),
    "decoder": frozenset(["Sequence", "ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"]),
}
_CHILDREN: Final = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
_MAX_PARTS = 32
_MAX_ID = 1 << 24
_MAX_PATTERN_CHARS = 2000
# Behind a group that itself repeats without bound, another repetition makes matching exponential.
_NESTED_REPETITION = re.compile(r"[+*}]\)[+*{]|[+*}]\?\)[+*{]")


@dataclass(frozen=True)
class Pipeline:
    """What the rest of the package needs to know about a tokenizer.json.

    vocab_size:           highest id of a piece or an added token, and one
    spell:                from a piece's text to its bytes
    strips_leading_space: decoding drops one space at the start
    bos_id:               token that the post-processor puts before a text, or None
    """

    vocab_size: int
    spell: Callable[[str], bytes]
    strips_leading_space: bool
    bos_id: int | None


def check_pipeline(data: Mapping[str, object], *, source: str) -> Pipeline:
    """Return the pipeline of a parsed tokenizer.json.

    raises: ModelFileError for a wrong structure, UnsupportedModelError for a part that Phi tokenizers do not have
    """
    highest_id = max(_check_model(data.get("model"), source), _check_added_tokens(data.get("added_tokens", []), source))
    parts = {section: list(_parts(data.get(section), section, source)) for section in _PARTS}
    for part in [*parts["normalizer"], *parts["pre_tokenizer"], *parts["decoder"]]:
        _check_pattern(part, source)
    decoders = {str(part["type"]) for part in parts["decoder"]}
    if ("ByteLevel" in decoders) == bool(decoders & {"ByteFallback", "Metaspace"}):
        raise UnsupportedModelError(
            f"{source}: decoder: got {sorted(decoders)}, expected either ByteLevel or ByteFallback (or Metaspace)"
        )
    strips = any(
        (part["type"] == "Strip" and part.get("content") == " " and part.get("start") == 1 and part.get("stop") == 0)
        or (part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never")
        for part in parts["decoder"]
    )
    return Pipeline(
        vocab_size=highest_id + 1,
        spell=spell_byte_level if "ByteLevel" in decoders else spell_sentencepiece,
        strips_leading_space=strips,
        bos_id=_bos_id(parts["post_processor"], source),
    )


def _check_model(model: object, source: str) -> int:
    """Return the highest id of a piece."""
    if not isinstance(model, dict):
        raise ModelFileError(f"{source}: model: got {type(model).__name__}, expected an object")
    if model.get("type", "BPE") != "BPE":
        raise UnsupportedModelError(f"{source}: model.type: got {str(model['type'])[:40]!r}, expected 'BPE'")
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or not vocabulary or set(map(type, vocabulary.values())) != {int}:
        raise ModelFileError(f"{source}: model.vocab: expected a non-empty object from pieces to ids")
    if min(vocabulary.values()) < 0 or max(vocabulary.values()) >= _MAX_ID:
        raise ModelFileError(f"{source}: model.vocab: got ids outside 0 to {_MAX_ID - 1}")
    if len(set(vocabulary.values())) != len(vocabulary):
        raise ModelFileError(f"{source}: model.vocab: two pieces have one id")
    if not isinstance(model.get("merges"), list):
        raise ModelFileError(f"{source}: model.merges: got {type(model.get('merges')).__name__}, expected a list")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise UnsupportedModelError(f"{source}: model.{key}: got {str(model[key])[:40]!r}, expected none")
    return int(max(vocabulary.values()))


def _check_added_tokens(tokens: object, source: str) -> int:
    """Return the highest id of an added token, or -1."""
    highest_id = -1
    for token in tokens if isinstance(tokens, list) else [tokens]:
        if not isinstance(token, dict) or type(token.get("id")) is not int or not isinstance(token.get("content"), str):
            raise ModelFileError(f"{source}: added_tokens: got {str(token)[:60]}, expected objects with id and content")
        if not 0 <= token["id"] < _MAX_ID:
            raise ModelFileError(f"{source}: added_tokens: id: got {token['id']}, expected 0 to {_MAX_ID - 1}")
        highest_id = max(highest_id, token["id"])
    return highest_id


def _parts(node: object, section: str, source: str) -> Iterator[dict[str, object]]:
    """Yield the parts of a section, those inside sequences one by one; all have an allowed type."""
    waiting, n_seen = ([] if node is None else [node]), 0
    while waiting:
        part, n_seen = waiting.pop(0), n_seen + 1
        if not isinstance(part, dict) or not isinstance(part.get("type"), str) or n_seen > _MAX_PARTS:
            raise ModelFileError(f"{source}: {section}: got {str(part)[:60]}, expected an object with a type")
        if part["type"] not in _PARTS[section]:
            raise UnsupportedModelError(
                f"{source}: {section}: got {part['type'][:40]!r}, expected {', '.join(sorted(_PARTS[section]))}"
            )
        if part["type"] == "Sequence":
            children = part.get(_CHILDREN[section])
            if not isinstance(children, list):
                raise ModelFileError(f"{source}: {section}: a Sequence without a list of {_CHILDREN[section]}")
            waiting = [*children, *waiting]
        else:
            yield part


def _check_pattern(part: Mapping[str, object], source: str) -> None:
    """Refuse a regular expression that can take exponential time; those of real tokenizers do not nest repetitions."""
    pattern = part.get("pattern")
    if not isinstance(pattern, dict) or "Regex" not in pattern:
        return
    expression = pattern["Regex"]
    if (
        not isinstance(expression, str)
        or len(expression) > _MAX_PATTERN_CHARS
        or _NESTED_REPETITION.search(expression)
        or re.search(r"\\[1-9gk]", expression)
    ):
        raise UnsupportedModelError(
            f"{source}: pattern {str(expression)[:60]!r}: expected a regular expression of at most "
            f"{_MAX_PATTERN_CHARS} characters without nested repetition or back reference"
        )


def _bos_id(processors: list[dict[str, object]], source: str) -> int | None:
    """Return the token that the post-processor puts first; raises where it adds anything else."""
    added: list[int] = []
    for part in processors:
        if part["type"] != "TemplateProcessing":
            continue
        single, special = part.get("single"), part.get("special_tokens")
        if not isinstance(single, list) or not isinstance(special, dict):
            raise ModelFileError(f"{source}: post_processor: TemplateProcessing without single and special_tokens")
        kinds = [next(iter(piece), "") if isinstance(piece, dict) else "" for piece in single]
        if kinds not in (["Sequence"], ["SpecialToken", "Sequence"]):
            raise UnsupportedModelError(
                f"{source}: post_processor: got {kinds[:8]}, expected the text alone or behind one special token"
            )
        if kinds[0] == "SpecialToken":
            added += _ids_of(single[0], special, source)
    if len(added) > 1:
        raise UnsupportedModelError(f"{source}: post_processor: got {len(added)} tokens before a text, expected one")
    return added[0] if added else None


def _ids_of(piece: dict[str, object], special: dict[str, object], source: str) -> list[int]:
    token = piece["SpecialToken"]
    entry = special.get(str(token.get("id"))) if isinstance(token, dict) else None
    ids = entry.get("ids") if isinstance(entry, dict) else None
    if not isinstance(ids, list) or not all(type(token_id) is int and 0 <= token_id < _MAX_ID for token_id in ids):
        raise ModelFileError(f"{source}: post_processor: {str(token)[:60]}: expected its ids in special_tokens")
    return ids
