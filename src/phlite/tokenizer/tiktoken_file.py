"""Phi-3-small's vocabulary: a .tiktoken file of byte strings and their ranks, as the content of a tokenizer.json.

The published folder has no tokenizer.json. Its remote code takes the ranks of cl100k_base and puts special tokens
behind them; both are written down here, so that the rest of the package sees one more byte-level BPE vocabulary.

A line of the file is a token in base64, a space and its rank, which is its id. A text is cut into words by a pattern,
and in a word the neighbours whose concatenation has the lowest rank are joined first. Merges, which the file does not
have, follow: a token was made of the two parts that joining by lower ranks leaves of it.

source: microsoft/Phi-3-small-8k-instruct tokenization_phi3_small.py; openai/tiktoken 0.14 load.py, openai_public.py
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Final

from phlite.errors import ModelFileError
from phlite.tokenizer.byte_level import CL100K
from phlite.tokenizer.byte_spelling import BYTE_CHARACTERS

__all__ = ["END_OF_TEXT", "PHI3_SMALL_SPECIAL_TOKENS", "RANK_FILE", "load_ranks", "recover_merges", "tokenizer_json"]

RANK_FILE: Final = "cl100k_base.tiktoken"
END_OF_TEXT: Final = "<|endoftext|>"

# In the order of their ids, which begin behind the last rank: 100256 to 100351.
PHI3_SMALL_SPECIAL_TOKENS: Final = (
    *("<|dummy_id_2|>", END_OF_TEXT, "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|dummy_id_0|>", "<|dummy_id_1|>", "<|end|>"),
    *(f"<|dummy_id_{i}|>" for i in range(3, 12)),
    "<|endofprompt|>",
    *(f"<|dummy_id_{i}|>" for i in range(12, 87)),
)

_MAX_FILE_BYTES: Final = 1 << 23
_MAX_TOKEN_BYTES: Final = 256
_MAX_STEPS: Final = 1 << 25
"""Work that recovering merges may take, in bytes squared: some seconds. GPT-2's ranks need less than a tenth."""


def load_ranks(path: Path) -> dict[bytes, int]:
    """Return token -> rank of a .tiktoken file, in order of rank; ranks run from 0 without a gap.

    raises: ModelFileError where the file is missing, too large, or has lines that are not tokens and ranks, a token or
            a rank twice, or not every single byte as a token
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ModelFileError(f"{path}: got {path.stat().st_size} bytes, expected at most {_MAX_FILE_BYTES}")
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error}") from None
    by_rank: dict[int, bytes] = {}
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            encoded, rank_text = line.split()
            token, rank = base64.b64decode(encoded, validate=True), int(rank_text)
        except ValueError:
            raise ModelFileError(
                f"{path}: line {number}: got {line[:60]!r}, expected a token in base64 and its rank"
            ) from None
        if not 0 < len(token) <= _MAX_TOKEN_BYTES or rank in by_rank:
            raise ModelFileError(
                f"{path}: line {number}: got {len(token)} bytes of rank {rank}, expected 1 to {_MAX_TOKEN_BYTES} of a "
                "rank of their own"
            )
        by_rank[rank] = token
    ranks = {by_rank[rank]: rank for rank in sorted(by_rank)}
    if len(ranks) != len(by_rank) or set(by_rank) != set(range(len(by_rank))):
        raise ModelFileError(
            f"{path}: {len(by_rank)} ranks of {len(ranks)} tokens, expected each token once and ranks from 0 on"
        )
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise ModelFileError(f"{path}: expected each of the 256 bytes among the tokens; the file is incomplete")
    return ranks


def recover_merges(ranks: Mapping[bytes, int], *, source: str) -> list[tuple[bytes, bytes]]:
    """Return the pairs that are joined, the first to be joined first.

    ranks:  token -> rank, as load_ranks returns them
    raises: ModelFileError for a token that two tokens of lower ranks do not make, or that would take too long to join
    """
    merges, n_steps = [], 0
    for token, rank in ranks.items():
        if len(token) == 1:
            continue
        cuts = [i for i in range(1, len(token)) if max(ranks.get(token[:i], rank), ranks.get(token[i:], rank)) < rank]
        if len(cuts) > 1:
            n_steps += len(token) ** 2
            if n_steps > _MAX_STEPS:
                raise ModelFileError(
                    f"{source}: tokens up to rank {rank} take too long to join again; expected the ranks of a "
                    "vocabulary, whose tokens are short"
                )
            cuts = _last_cut(token, rank, ranks)
        if not cuts:
            raise ModelFileError(
                f"{source}: token {token[:40]!r} of rank {rank} cannot be joined from tokens of lower ranks; expected "
                "the ranks of a byte pair encoding"
            )
        merges.append((token[: cuts[0]], token[cuts[0] :]))
    return merges


def _last_cut(token: bytes, rank: int, ranks: Mapping[bytes, int]) -> list[int]:
    """Return where the last two parts meet when neighbours of lower ranks are joined; [] when more parts are left."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
        lowest = min(joined)
        if lowest >= rank:
            return []
        best = joined.index(lowest)
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return [len(parts[0])]


def tokenizer_json(path: Path) -> dict[str, object]:
    """Return the content of the tokenizer.json that the published folder of Phi-3-small lacks.

    path:   its .tiktoken file
    raises: ModelFileError for a file that is missing or broken
    """
    ranks = load_ranks(path)
    spelt = {token: "".join(BYTE_CHARACTERS[byte] for byte in token) for token in ranks}
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    pattern = {"type": "Split", "pattern": {"Regex": CL100K}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": len(ranks) + i, "content": text, **plain} for i, text in enumerate(PHI3_SMALL_SPECIAL_TOKENS)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [pattern, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {spelt[token]: rank for token, rank in ranks.items()},
            "merges": [[spelt[left], spelt[right]] for left, right in recover_merges(ranks, source=str(path))],
        },
    }
