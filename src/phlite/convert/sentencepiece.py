"""SentencePiece-BPE vocabularies (Phi-3, Phi-3.5, MoE) as GGUF keys: pieces, scores and types.

A GGUF file has a score for each piece where tokenizer.json has a list of merges. The best-scored pair merges first, so
the scores are the order in which the list makes the pieces; whether that says the same is checked, not assumed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from phlite.convert.plan import Field
from phlite.convert.token_table import token_table
from phlite.errors import ModelFileError, UnsupportedModelError
from phlite.gguf import ValueType
from phlite.tokenizer.huggingface import TokenizerFiles
from phlite.tokenizer.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED

__all__ = ["sentencepiece_fields"]

ADDED_SCORE = -1000.0
PADDING_SCORE = -10000.0


def sentencepiece_fields(files: TokenizerFiles, n_rows: int) -> dict[str, Field]:
    """Return the keys of the vocabulary.

    raises: ModelFileError for tokens beyond n_rows; UnsupportedModelError where scores cannot replace the merges
    """
    tokens, types = token_table(files, n_rows)
    ids = files.ids_by_text
    unknown_id = ids.get(files.unknown_text or "<unk>")
    for token_id, kind in enumerate(types):
        if kind == NORMAL and re.fullmatch(r"<0x[0-9A-F]{2}>", tokens[token_id]):
            types[token_id] = BYTE
        elif kind != CONTROL and token_id == unknown_id:
            types[token_id] = UNKNOWN
    normal = {tokens[token_id]: token_id for token_id, kind in enumerate(types) if kind == NORMAL}
    order = _merge_order(files, normal)
    scores = [ADDED_SCORE] * n_rows
    for token_id, kind in enumerate(types):
        if kind == NORMAL:
            scores[token_id] = -float(order.get(tokens[token_id], len(normal)))
        elif kind in (BYTE, UNUSED):
            scores[token_id] = 0.0 if kind == BYTE else PADDING_SCORE
    return {
        "tokenizer.ggml.model": ("llama", None),
        "tokenizer.ggml.pre": ("default", None),
        "tokenizer.ggml.tokens": (tokens, ValueType.STRING),
        "tokenizer.ggml.scores": (scores, ValueType.FLOAT32),
        "tokenizer.ggml.token_type": (types, ValueType.INT32),
        "tokenizer.ggml.add_space_prefix": (files.pipeline.strips_leading_space, None),
    }


def _merge_order(files: TokenizerFiles, normal: Mapping[str, int]) -> dict[str, int]:
    """Return piece -> its place in the order of merging, 1 for the first.

    raises: UnsupportedModelError where the merges of two pieces alternate, or a pair that makes a piece is missing
    """
    order: dict[str, int] = {}
    pairs: set[tuple[str, str]] = set()
    last = ""
    for left, right in _merges(files):
        piece = left + right
        pairs.add((left, right))
        if piece != last and piece in order:
            raise _cannot(files, f"the merges of {piece[:40]!r} are not together")
        last = piece
        order.setdefault(piece, len(order) + 1)
    for piece in normal:
        for middle in range(1, len(piece)):
            pair = piece[:middle], piece[middle:]
            if pair[0] in normal and pair[1] in normal and pair not in pairs:
                raise _cannot(
                    files, f"{pair[0][:40]!r} and {pair[1][:40]!r} do not merge, though {piece[:40]!r} exists"
                )
    return order


def _merges(files: TokenizerFiles) -> list[tuple[str, str]]:
    pairs = files.merges
    for left, right in pairs:
        if left + right not in files.pieces:
            raise ModelFileError(f"{files.source}: model.merges: {left[:40]!r} and {right[:40]!r} make no piece")
    return pairs


def _cannot(files: TokenizerFiles, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{files.source}: a GGUF file cannot describe these merges by scores: {why}; load the folder itself instead"
    )
