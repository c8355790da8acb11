"""Byte-level BPE vocabularies (Phi-2, Phi-4, Phi-4-mini) as GGUF keys: pieces, merges, name of the word pattern."""

from __future__ import annotations

from tokenizers import Tokenizer as Engine

from phlite.convert.plan import Field
from phlite.convert.token_table import token_table
from phlite.errors import UnsupportedModelError
from phlite.gguf import ValueType
from phlite.tokenizer.byte_level import PRE_TOKENIZERS, build_pre_tokenizer
from phlite.tokenizer.huggingface import TokenizerFiles
from phlite.tokenizer.library import build_engine

__all__ = ["byte_level_fields"]

# Words, digits, spaces and line ends where the patterns differ.
PATTERN_PROBES = (
    "It's I'LL we'Ve 1234567 12 a1b2 x²  two  \n\n \t\r\n end  ",
    "naïve HTTPServer iPhone 東京タワー ﬁ e\u0301 ((a)) --- !?\n/// a/b\n/ _x_ ١٢٣٤",
)
# Equal patterns: the name that the family's files have comes first.
_NAMES = sorted(PRE_TOKENIZERS, key=lambda name: name == "gpt-2")


def byte_level_fields(files: TokenizerFiles, n_rows: int) -> dict[str, Field]:
    """Return the keys of the vocabulary.

    raises: ModelFileError for tokens beyond n_rows; UnsupportedModelError for a word pattern that has no name
    """
    tokens, types = token_table(files, n_rows)
    return {
        "tokenizer.ggml.model": ("gpt2", None),
        "tokenizer.ggml.pre": (_pre_tokenizer_name(files), None),
        "tokenizer.ggml.tokens": (tokens, ValueType.STRING),
        "tokenizer.ggml.token_type": (types, ValueType.INT32),
        "tokenizer.ggml.merges": ([f"{left} {right}" for left, right in files.merges], ValueType.STRING),
    }


def _pre_tokenizer_name(files: TokenizerFiles) -> str:
    """Return the name of the pattern that cuts probes as the folder's tokenizer does.

    llama.cpp's converter recognises a tokenizer by what it does with a text, too: patterns are spelt in many ways.
    """
    engine = build_engine(lambda: Engine.from_str(files.text), source=files.source)
    if engine.normalizer is None and engine.pre_tokenizer is not None:
        expected = [engine.pre_tokenizer.pre_tokenize_str(probe) for probe in PATTERN_PROBES]
        for name in _NAMES:
            pre_tokenizer = build_pre_tokenizer(PRE_TOKENIZERS[name])
            if [pre_tokenizer.pre_tokenize_str(probe) for probe in PATTERN_PROBES] == expected:
                return name
    raise UnsupportedModelError(
        f"{files.source}: its pre-tokenizer has no name in GGUF files that phlite knows; expected that of "
        f"{', '.join(PRE_TOKENIZERS)}; load the folder itself instead"
    )
