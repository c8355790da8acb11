"""Text to token ids and back: SentencePiece-BPE, byte-level BPE, chat templates, incremental decoding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from phlite.tokenizer.base import Tokenizer
from phlite.tokenizer.chat_template import ChatTemplate, build_chat_template
from phlite.tokenizer.stream import TextStream

__all__ = ["ChatTemplate", "TextStream", "Tokenizer", "build_chat_template", "build_tokenizer", "load_tokenizer"]


def build_tokenizer(
    metadata: Mapping[str, object], *, source: str = "model file", special_tokens_strip: bool | None = None
) -> Tokenizer:
    """Return the tokenizer that a GGUF file's metadata describes.

    source:               name of the file, for messages
    special_tokens_strip: whether control tokens swallow white space behind them; GGUF does not store it, and None
                          decides by what is known of the model
    raises:               ModelFileError for a broken vocabulary, UnsupportedModelError for one that is not implemented
    """
    from phlite.tokenizer.vocabulary import read_vocabulary

    vocabulary = read_vocabulary(metadata, source=source)
    if vocabulary.model == "llama":
        from phlite.tokenizer.sentencepiece import SentencePieceTokenizer

        return SentencePieceTokenizer(vocabulary, special_tokens_strip=special_tokens_strip)
    # Imported here because the library takes longer to import than a SentencePiece vocabulary takes to load.
    from phlite.tokenizer.byte_level import build_byte_level_tokenizer

    return build_byte_level_tokenizer(vocabulary, special_tokens_strip=special_tokens_strip)


def load_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer of a Hugging Face model folder, or of a tokenizer.json with its neighbours.

    raises: ModelFileError for missing or broken files, UnsupportedModelError for parts that no Phi tokenizer has
    """
    from phlite.tokenizer.huggingface import load_huggingface_tokenizer

    return load_huggingface_tokenizer(Path(path))
