"""The tokenizer of a Hugging Face folder as the `tokenizer.*` keys of a GGUF file.

The keys are those of llama.cpp's converter. What it loses is kept in keys of our own, which other programs skip:
`phlite.tokenizer.lstrip_token_ids` and `.rstrip_token_ids` (tokens that swallow the white space before or behind them)
and `.stop_token_ids` (end tokens that neither a llama.cpp key names nor their text gives away).

Whatever the files say, the keys are tried before they are believed: the tokenizer they make must give the same ids as
the folder's own on texts made to tell tokenizers apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from phlite.convert.byte_level import byte_level_fields
from phlite.convert.plan import Field, u32
from phlite.convert.sentencepiece import sentencepiece_fields
from phlite.errors import UnsupportedModelError
from phlite.gguf import ValueType
from phlite.tokenizer import Tokenizer, build_tokenizer
from phlite.tokenizer.byte_spelling import spell_byte_level
from phlite.tokenizer.huggingface import TokenizerFiles, build_huggingface_tokenizer, load_tokenizer_files
from phlite.tokenizer.special_tokens import STOP_TEXTS
from phlite.tokenizer.vocabulary import STOP_KEY, STRIP_KEYS

__all__ = ["vocabulary_fields"]

# Scripts, digits, runs of space, contractions, code, mark-up, emoji with joiners, characters outside any vocabulary.
PROBES = (
    "Hello, world! It's 3.14159 o'clock; I'LL pay 1234567 or 12 345,67 $ (50%)...",
    "  two  spaces\n\n\tTab\r\n   three   \u00a0nbsp \u3000wide\n \n  end ",
    "def f(x):\n    return {'a': [1, 2], \"b\": x**2}  # ok\n\n\n\n        pass",
    "naïve Ünïcödé ΑΒΓ где 東京 한국어 العربية हिन्दी ภาษาไทย ﬁ Ⅷ ½ İı ǅ",
    "🦙🏽‍♂️ 👩‍👩‍👧 \U000e0041 \u200b\u200d\ufe0f\u0301 e\u0301 \ue000 \ufffd \U0010ffff",
    "https://www.example.org/a_b?c=d&e=f#g user@mail.co CamelCase snake_case SHOUT",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 0000000000 ---------- ======== ........ ▁▁ ▁a <0x41>",
)
PROBED_TOKENS = 64


def vocabulary_fields(folder: Path, n_rows: int) -> dict[str, Field]:
    """Return the keys for the tokenizer of a folder; tokens are filled up to n_rows, the rows of the embedding.

    raises: ModelFileError for files that are missing or broken, or tokens beyond n_rows;
            UnsupportedModelError for a tokenizer that a GGUF file cannot describe
    """
    files = load_tokenizer_files(folder)
    is_byte_level = files.pipeline.spell is spell_byte_level
    fields = byte_level_fields(files, n_rows) if is_byte_level else sentencepiece_fields(files, n_rows)
    fields |= _id_fields(files)
    for side, key in STRIP_KEYS.items():
        fields[key] = (_strip_ids(files, side), ValueType.INT32)
    for name, template in files.chat_templates.items():
        fields["tokenizer.chat_template" + ("" if name == "default" else f".{name}")] = (template, None)
    others = [name for name in files.chat_templates if name != "default"]
    if others:
        fields["tokenizer.chat_templates"] = (others, ValueType.STRING)
    _check_same_ids(files, fields)
    return fields


def _id_fields(files: TokenizerFiles) -> dict[str, Field]:
    ids = files.ids_by_text
    named = {"bos": files.bos_id, "eos": files.eos_id}
    for name, text in (("unknown", files.unknown_text), ("padding", files.padding_text)):
        named[name] = None if text is None else ids.get(text)
    # The end of a turn, where the end of text is another token.
    turn_ends = [ids[text] for text in ("<|end|>", "<|im_end|>") if text in ids and ids[text] != files.eos_id]
    named["eot"] = turn_ends[0] if turn_ends else None
    fields = {
        f"tokenizer.ggml.{name}_token_id": u32(token_id) for name, token_id in named.items() if token_id is not None
    }
    fields["tokenizer.ggml.add_bos_token"] = (files.pipeline.bos_id is not None, None)
    fields["tokenizer.ggml.add_eos_token"] = (False, None)
    known = {named["eos"], named["eot"], *(ids.get(text) for text in STOP_TEXTS)}
    further = sorted(set(files.stop_ids) - known)
    if further:
        fields[STOP_KEY] = (further, ValueType.INT32)
    return fields


def _strip_ids(files: TokenizerFiles, side: str) -> list[int]:
    return sorted(int(str(token["id"])) for token in files.added_tokens if token.get(side))


def _check_same_ids(files: TokenizerFiles, fields: Mapping[str, Field]) -> None:
    """Raise where the folder's own tokenizer and the one that the keys make disagree."""
    ours = build_tokenizer(metadata_of(fields), source=files.source)
    theirs = build_huggingface_tokenizer(files)
    for text in _probes(theirs):
        got, expected = ours.encode(text, parse_special=True), theirs.encode(text, parse_special=True)
        if got != expected:
            raise UnsupportedModelError(
                f"{files.source}: a GGUF file cannot describe this tokenizer: {text[:60]!r} would become {got[:12]}, "
                f"expected {expected[:12]}; load the folder itself instead"
            )
    if ours.stop_ids != theirs.stop_ids or ours.special_tokens != theirs.special_tokens:
        raise UnsupportedModelError(
            f"{files.source}: a GGUF file cannot describe this tokenizer: end tokens {sorted(ours.stop_ids)}, expected "
            f"{sorted(theirs.stop_ids)}; load the folder itself instead"
        )


def _probes(tokenizer: Tokenizer) -> Iterator[str]:
    yield from PROBES
    for text in list(tokenizer.special_tokens)[:PROBED_TOKENS]:
        yield f"a {text} b\n{text}\n\nc {text}{text}  d{text}"


def metadata_of(fields: Mapping[str, Field]) -> dict[str, object]:
    """Return the fields as a reader of the file would see them."""
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, (value, _) in fields.items()}
