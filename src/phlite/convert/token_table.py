"""The token list of a GGUF file: every row of the embedding gets a text and a type."""

from __future__ import annotations

from phlite.errors import ModelFileError
from phlite.tokenizer.huggingface import TokenizerFiles
from phlite.tokenizer.special_tokens import is_marker
from phlite.tokenizer.vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED

__all__ = ["token_table"]


def token_table(files: TokenizerFiles, n_rows: int) -> tuple[list[str], list[int]]:
    """Return text and token_type of each of n_rows ids: pieces, then added tokens over them, then padding rows.

    raises: ModelFileError for a token beyond n_rows
    """
    if files.pipeline.vocab_size > n_rows:
        raise ModelFileError(
            f"{files.source}: {files.pipeline.vocab_size} tokens for an embedding of {n_rows} rows; expected a row for "
            "each token, so tokenizer and weights do not belong together"
        )
    tokens = [f"[PAD{row}]" for row in range(n_rows)]
    types = [UNUSED] * n_rows
    for piece, token_id in files.pieces.items():
        tokens[token_id], types[token_id] = piece, NORMAL
    for token in files.added_tokens:
        token_id, text = int(str(token["id"])), str(token["content"])
        is_control = token.get("special") or (is_marker(text) and text.startswith("<|"))
        tokens[token_id], types[token_id] = text, CONTROL if is_control else USER_DEFINED
    return tokens, types
