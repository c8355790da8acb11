"""Tokenizers from a Hugging Face folder: tokenizer.json, with what tokenizer_config.json and its neighbours add.

The `tokenizers` library runs them. Its files can describe far more than Phi needs, and can crash or hang it, so only
the parts that Phi tokenizers are made of pass.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer as Engine

from phlite.errors import ModelFileError
from phlite.tokenizer.library import LibraryTokenizer, build_engine
from phlite.tokenizer.pipeline import Pipeline, check_pipeline
from phlite.tokenizer.tiktoken_file import END_OF_TEXT, RANK_FILE, tokenizer_json

__all__ = ["TokenizerFiles", "load_huggingface_tokenizer", "load_tokenizer_files"]

_MAX_FILE_BYTES: Final = 128 << 20
_MAX_TEMPLATE_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class TokenizerFiles:
    """The checked files of a tokenizer.

    source:         tokenizer.json, for messages
    text:           its content as JSON, the added tokens of tokenizer_config.json put over its own
    pieces:         text -> id of the model's vocabulary
    added_tokens:   objects with id, content, special, lstrip, rstrip, ...
    merges:         pairs of pieces in order of priority
    pipeline:       what its parts mean
    bos_id, eos_id: begin and end of text, or None
    unknown_text, padding_text: these tokens by tokenizer_config.json, or None
    stop_ids:       end tokens of generation_config.json
    chat_templates: name -> Jinja source
    """

    source: str
    text: str
    pieces: Mapping[str, int]
    added_tokens: Sequence[Mapping[str, object]]
    merges: list[tuple[str, str]]
    pipeline: Pipeline
    bos_id: int | None
    eos_id: int | None
    unknown_text: str | None
    padding_text: str | None
    stop_ids: tuple[int, ...]
    chat_templates: dict[str, str]

    @property
    def ids_by_text(self) -> dict[str, int]:
        """The id of each piece and each added token."""
        return _ids_by_text(self.pieces, self.added_tokens)


def load_huggingface_tokenizer(path: Path) -> LibraryTokenizer:
    """Return the tokenizer of a folder, or of a tokenizer.json in one.

    raises: as load_tokenizer_files
    """
    return build_huggingface_tokenizer(load_tokenizer_files(path))


def build_huggingface_tokenizer(files: TokenizerFiles) -> LibraryTokenizer:
    """Return the tokenizer that checked files describe."""
    engine = build_engine(lambda: Engine.from_str(files.text), source=files.source)
    engine.no_truncation()
    engine.no_padding()
    return LibraryTokenizer(
        engine,
        source=files.source,
        vocab_size=files.pipeline.vocab_size,
        spell=files.pipeline.spell,
        bos_id=files.bos_id,
        eos_id=files.eos_id,
        stop_ids=[*files.stop_ids, *([] if files.eos_id is None else [files.eos_id])],
        adds_bos=files.pipeline.bos_id is not None,
        strips_leading_space=files.pipeline.strips_leading_space,
        chat_templates=files.chat_templates,
    )


def load_tokenizer_files(path: Path) -> TokenizerFiles:
    """Return the checked files of a folder, or of a tokenizer.json in one.

    Beside tokenizer.json it reads, where they exist: tokenizer_config.json (begin and end of text, chat templates,
    flags of added tokens), generation_config.json (end tokens) and chat_template.jinja. A folder without a
    tokenizer.json may have Phi-3-small's file of ranks instead.

    raises: ModelFileError for a file that is missing, broken or inconsistent; UnsupportedModelError for a part of the
            pipeline that no Phi tokenizer has
    """
    folder, file = (path, path / "tokenizer.json") if path.is_dir() else (path.parent, path)
    config = _read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    from_ranks = not file.exists() and (folder / RANK_FILE).is_file()
    if from_ranks:
        file = folder / RANK_FILE
        data = tokenizer_json(file)
        # The remote code of such a folder names these itself.
        config = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, **config}
    else:
        data = _read_json(file)
    changed = from_ranks | _put_flags_of_config(data, config, str(folder / "tokenizer_config.json"))
    pipeline = check_pipeline(data, source=str(file))
    changed |= _unset_idle_flags(data)
    pieces, added_tokens, merges = _vocabulary(data, str(file))
    ids = _ids_by_text(pieces, added_tokens)
    bos_id = pipeline.bos_id
    if bos_id is None:
        bos_id = _named_id(ids, config, "bos_token", folder)
    return TokenizerFiles(
        source=str(file),
        text=json.dumps(data) if changed else file.read_text(encoding="utf-8"),
        pieces=pieces,
        added_tokens=added_tokens,
        merges=merges,
        pipeline=pipeline,
        bos_id=bos_id,
        eos_id=_named_id(ids, config, "eos_token", folder),
        unknown_text=_token_text(config, "unk_token"),
        padding_text=_token_text(config, "pad_token"),
        stop_ids=tuple(_generation_stop_ids(folder)),
        chat_templates=_chat_templates(config, folder),
    )


def _read_json(file: Path) -> dict[str, object]:
    try:
        if file.stat().st_size > _MAX_FILE_BYTES:
            raise ModelFileError(f"{file}: got {file.stat().st_size} bytes, expected at most {_MAX_FILE_BYTES}")
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFileError(f"{file}: no such file; a model folder needs its tokenizer.json") from None
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{file}: not JSON in UTF-8: {error}; download it again") from None
    if not isinstance(data, dict):
        raise ModelFileError(f"{file}: got a JSON {type(data).__name__}, expected an object")
    return data


def _put_flags_of_config(data: dict[str, object], config: Mapping[str, object], source: str) -> bool:
    """Put the added tokens of tokenizer_config.json over those of tokenizer.json, as transformers does.

    returns: whether anything changed
    """
    decoder, own = config.get("added_tokens_decoder", {}), data.get("added_tokens", [])
    if not isinstance(own, list) or not all(isinstance(token, dict) for token in own):
        return False  # check_pipeline says what is wrong with it
    if not isinstance(decoder, dict):
        raise ModelFileError(f"{source}: added_tokens_decoder: got {type(decoder).__name__}, expected an object")
    by_id = {token.get("id"): token for token in own}
    changed = False
    for key, token in decoder.items():
        if not (key.isascii() and key.isdigit()) or not isinstance(token, dict):
            raise ModelFileError(f"{source}: added_tokens_decoder: got {key[:40]!r}, expected ids and their tokens")
        entry = {"id": int(key), **token}
        if by_id.get(int(key)) != entry:
            by_id[int(key)] = entry
            changed = True
    if changed:
        data["added_tokens"] = sorted(by_id.values(), key=lambda token: int(token["id"]))
    return changed


def _unset_idle_flags(data: dict[str, object]) -> bool:
    """Unset the flag "normalized" of all added tokens where nothing is normalised, so that it means nothing yet.

    It would once guards are dropped by a normalizer: control tokens have to be looked up before that.
    """
    tokens = data.get("added_tokens")
    if data.get("normalizer") is not None or not isinstance(tokens, list):
        return False
    idle = [token for token in tokens if token.get("normalized")]
    for token in idle:
        token["normalized"] = False
    return bool(idle)


def _vocabulary(
    data: Mapping[str, object], source: str
) -> tuple[dict[str, int], list[dict[str, object]], list[tuple[str, str]]]:
    """Return pieces, added tokens and merges of a checked definition."""
    model, added_tokens = data["model"], data.get("added_tokens", [])
    assert isinstance(model, dict)
    assert isinstance(added_tokens, list)
    merges: list[tuple[str, str]] = []
    for merge in model["merges"]:
        pair = merge.split(" ") if isinstance(merge, str) else merge  # files of before 2024 have "left right"
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
            raise ModelFileError(f"{source}: model.merges: got {str(merge)[:60]!r}, expected two pieces")
        merges.append((pair[0], pair[1]))
    return model["vocab"], added_tokens, merges


def _ids_by_text(pieces: Mapping[str, int], added_tokens: Iterable[Mapping[str, object]]) -> dict[str, int]:
    return {**pieces, **{str(token["content"]): int(str(token["id"])) for token in added_tokens}}


def _token_text(config: Mapping[str, object], key: str) -> str | None:
    token = config.get(key)
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _named_id(ids: Mapping[str, int], config: Mapping[str, object], key: str, folder: Path) -> int | None:
    token = config.get(key)
    text = token.get("content") if isinstance(token, dict) else token
    if text is None:
        return None
    token_id = ids.get(text) if isinstance(text, str) else None
    if token_id is None:
        raise ModelFileError(
            f"{folder / 'tokenizer_config.json'}: {key}: got {str(text)[:60]!r}, expected a token of tokenizer.json"
        )
    return token_id


def _generation_stop_ids(folder: Path) -> list[int]:
    file = folder / "generation_config.json"
    if not file.is_file():
        return []
    value = _read_json(file).get("eos_token_id", [])
    ids: list[int] = []
    for token_id in value if isinstance(value, list) else [value]:
        if not isinstance(token_id, int) or token_id < 0:
            raise ModelFileError(f"{file}: eos_token_id: got {str(value)[:60]}, expected token ids")
        ids.append(token_id)
    return ids


def _chat_templates(config: Mapping[str, object], folder: Path) -> dict[str, str]:
    """Return the templates by name; a chat_template.jinja beside the files goes before tokenizer_config.json's."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        if file.stat().st_size > _MAX_TEMPLATE_BYTES:
            raise ModelFileError(f"{file}: got {file.stat().st_size} bytes, expected at most {_MAX_TEMPLATE_BYTES}")
        try:
            return {"default": file.read_text(encoding="utf-8")}
        except UnicodeDecodeError as error:
            raise ModelFileError(f"{file}: not UTF-8: {error}") from None
    value = config.get("chat_template")
    entries = [{"name": "default", "template": value}] if isinstance(value, str) else value or []
    templates: dict[str, str] = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        name, source = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(source, str):
            raise ModelFileError(
                f"{folder / 'tokenizer_config.json'}: chat_template: got {str(entry)[:60]!r}, expected a template or a "
                "list of objects with name and template"
            )
        templates[name] = source
    return templates
