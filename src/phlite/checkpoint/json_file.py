"""JSON objects from files that are not trusted: bounded in size and in values, each key once, no NaN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, NoReturn

from phlite.errors import ModelFileError
from phlite.gguf import quoted

# A value takes some 60 bytes of memory and as little as two of text, so values are counted before they are made.
MAX_VALUES: Final = 1 << 20


def load_json(path: Path, *, max_bytes: int) -> dict[str, object]:
    """Return the object in a file.

    raises: ModelFileError where the file is missing, longer than max_bytes, or not such an object
    """
    try:
        if not path.is_file():
            raise ModelFileError(f"{path}: no such file")
        size = path.stat().st_size
        if size > max_bytes:
            raise ModelFileError(f"{path}: got {size} bytes, expected at most {max_bytes}")
        raw = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ModelFileError(f"{path}: cannot be read: {error}") from error
    return parse_json(raw, source=str(path))


def parse_json(raw: bytes, *, source: str) -> dict[str, object]:
    """Return the object that the bytes spell; source is what they are called in messages.

    raises: ModelFileError for bytes that are not UTF-8 or not JSON, a key that comes twice, NaN and Infinity, more
            than MAX_VALUES values, nesting deeper than Python's stack, or a value that is no object
    """
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > MAX_VALUES:
        raise ModelFileError(f"{source}: got more than {MAX_VALUES} values, expected the JSON of a model")

    def parse_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
        values = dict(pairs)
        if len(values) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ModelFileError(f"{source}: got the key {quoted(twice)} a second time, expected each key once")
        return values

    def refuse_constant(text: str) -> NoReturn:
        raise ModelFileError(f"{source}: got the number {text}, expected a finite one")

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=parse_object, parse_constant=refuse_constant)
    except RecursionError:
        raise ModelFileError(f"{source}: got JSON that is nested too deeply, expected a few levels") from None
    except ValueError as error:
        raise ModelFileError(f"{source}: not JSON in UTF-8: {error}; download it again") from None
    if not isinstance(value, dict):
        raise ModelFileError(f"{source}: got a JSON {type(value).__name__}, expected an object")
    return value
