"""Byte-level BPE from a GGUF vocabulary (Phi-2, Phi-4, Phi-4-mini), run by the `tokenizers` library."""

from __future__ import annotations

import re

from tokenizers import AddedToken, Regex, models, pre_tokenizers
from tokenizers import Tokenizer as Engine

from phlite.errors import ModelFileError, UnsupportedModelError
from phlite.tokenizer.byte_spelling import spell_byte_level
from phlite.tokenizer.library import LibraryTokenizer, build_engine
from phlite.tokenizer.vocabulary import CONTROL, UNKNOWN, UNUSED, USER_DEFINED, GGUFVocabulary

__all__ = ["PRE_TOKENIZERS", "build_byte_level_tokenizer", "build_pre_tokenizer"]

CL100K = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tokenizer.ggml.pre to the pattern that cuts a text into words; None is GPT-2's, which the library has built in.
# source: llama.cpp, llama-vocab.cpp, llm_tokenizer_bpe
PRE_TOKENIZERS: dict[str, str | None] = {"gpt-2": None, "phi-2": None, "dbrx": CL100K, "gpt-4o": _O200K}


def build_byte_level_tokenizer(
    vocabulary: GGUFVocabulary, *, special_tokens_strip: bool | None = None
) -> LibraryTokenizer:
    """Return a tokenizer for a vocabulary whose model is "gpt2".

    special_tokens_strip: whether control tokens swallow white space beside them. None: as a file of our converter
                          says; others do not store it, and the published tokenizers' flags are taken where the
                          vocabulary is theirs (see _strip_flags)
    raises:               UnsupportedModelError for an unknown pre-tokenizer, ModelFileError for merges that do not fit
    """
    pattern = _pattern(vocabulary)
    ids = {text: token_id for token_id, text in enumerate(vocabulary.tokens)}
    merges = _merges(vocabulary, ids)
    engine = build_engine(lambda: Engine(models.BPE(vocab=ids, merges=merges)), source=vocabulary.source)
    engine.pre_tokenizer = build_pre_tokenizer(pattern)
    for added in _added_tokens(vocabulary, special_tokens_strip):
        # One at a time: the library keeps the id of a text that the vocabulary already has.
        engine.add_tokens([added])
    return LibraryTokenizer(
        engine,
        source=vocabulary.source,
        vocab_size=len(vocabulary.tokens),
        spell=spell_byte_level,
        bos_id=vocabulary.bos_id,
        eos_id=vocabulary.eos_id,
        stop_ids=vocabulary.stop_ids,
        unprinted_ids=[i for i, kind in enumerate(vocabulary.types) if kind in (UNKNOWN, UNUSED)],
        adds_bos=bool(vocabulary.add_bos),
        chat_templates=vocabulary.chat_templates,
    )


def build_pre_tokenizer(pattern: str | None) -> pre_tokenizers.PreTokenizer:
    """Return the part that cuts a text into words of byte characters; a value of PRE_TOKENIZERS."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    if pattern is None:
        return byte_level
    words = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([words, byte_level])


def _pattern(vocabulary: GGUFVocabulary) -> str | None:
    pre = vocabulary.pre
    if not pre and vocabulary.architecture == "phi2":
        pre = "phi-2"  # files from before the key existed
    if pre not in PRE_TOKENIZERS:
        raise UnsupportedModelError(
            f"{vocabulary.source}: tokenizer.ggml.pre: got {pre[:80]!r}, expected one of {', '.join(PRE_TOKENIZERS)}; "
            "another pre-tokenizer would cut the text into other ids"
        )
    return PRE_TOKENIZERS[pre]


def _merges(vocabulary: GGUFVocabulary, ids: dict[str, int]) -> list[tuple[str, str]]:
    merges = []
    for rank, merge in enumerate(vocabulary.merges):
        left, _, right = merge.partition(" ")
        if left not in ids or right not in ids or left + right not in ids:
            raise ModelFileError(
                f"{vocabulary.source}: tokenizer.ggml.merges: merge {rank}: got {merge[:60]!r}, expected two pieces "
                "of the vocabulary that make a third"
            )
        merges.append((left, right))
    return merges


def _added_tokens(vocabulary: GGUFVocabulary, strip: bool | None) -> list[AddedToken]:
    """Return the tokens to cut out of a text: control tokens, and user-defined ones such as Phi-2's runs of spaces."""
    added = []
    for token_id, kind in enumerate(vocabulary.types):
        if kind in (CONTROL, USER_DEFINED) and vocabulary.tokens[token_id]:
            text = vocabulary.tokens[token_id]
            control = vocabulary.is_control(token_id)
            if strip is None and vocabulary.rstrip_ids is not None:
                lstrip, rstrip = token_id in (vocabulary.lstrip_ids or ()), token_id in vocabulary.rstrip_ids
            else:
                flags = _strip_flags(vocabulary, text) if strip is None else (False, strip)
                lstrip, rstrip = (control and flag for flag in flags)
            added.append(
                AddedToken(
                    text,
                    lstrip=lstrip,
                    rstrip=rstrip,
                    normalized=not control,
                    special=kind == CONTROL,
                )
            )
    return added


def _strip_flags(vocabulary: GGUFVocabulary, text: str) -> tuple[bool, bool]:
    """Return lstrip and rstrip of a control token as the published tokenizers have them.

    phi-4 strips on both sides of every marker; Phi-4-mini behind all but the end-of-text and end-of-prompt markers.
    source: tokenizer_config.json of microsoft/phi-4 and microsoft/Phi-4-mini-instruct
    """
    if vocabulary.pre == "dbrx" and "<|im_sep|>" in vocabulary.tokens:
        return True, True
    if vocabulary.pre == "gpt-4o" and "<|tool_call|>" in vocabulary.tokens:
        return False, re.fullmatch(r"<\|endof\w+\|>", text) is None
    return False, False
