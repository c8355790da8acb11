"""A corpus of broken and hostile checkpoint folders, built byte by byte without the code under test.

Each case says what must happen: `refused` holds a part of the message, or is None where the folder is odd but sound.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONFIG = b'{"model_type": "phi3"}'
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Folder:
    """Files of a folder, and what must come of it."""

    name: str
    refused: str | None
    files: Mapping[str, bytes]
    sparse_bytes: Mapping[str, int] = field(default_factory=dict)  # a file is this long, with a hole behind its bytes

    def write(self, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        for name, data in self.files.items():
            with (folder / name).open("wb") as file:
                file.write(data)
                if name in self.sparse_bytes:
                    file.truncate(self.sparse_bytes[name])
        return folder


def entry(shape: Any, begin: Any, end: Any, dtype: Any = "F32", **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


def safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


SOUND_HEADER = {"__metadata__": {"format": "pt"}, "a": entry([2, 4], 0, 32), "b": entry([3], 32, 38, "BF16")}
SOUND = safetensors(SOUND_HEADER, bytes(38))


def cases() -> Iterator[Folder]:
    """The whole corpus."""
    yield from odd_but_sound()
    for name, data, refused in bad_files():
        yield Folder(name, refused, {"config.json": CONFIG, "model.safetensors": data})
    for name, index, refused in bad_indices():
        files = {"config.json": CONFIG, INDEX: index, "x.safetensors": SOUND}
        yield Folder(f"index-{name}", refused, files)
    yield from bad_folders()


def odd_but_sound() -> Iterator[Folder]:
    yield Folder("sound", None, {"config.json": CONFIG, "model.safetensors": SOUND})
    padded = json.dumps(SOUND_HEADER).encode() + b" " * 700
    yield Folder("padded-header", None, {"config.json": CONFIG, "model.safetensors": safetensors(padded, bytes(38))})
    odd = json.dumps(SOUND_HEADER).encode() + b" " * (len(json.dumps(SOUND_HEADER)) % 2 + 1)
    yield Folder("odd-offset", None, {"config.json": CONFIG, "model.safetensors": safetensors(odd, bytes(38))})
    empty = {"config.json": CONFIG, "model.safetensors": safetensors({})}
    yield Folder("no-tensors", None, empty)
    deep = safetensors({"a": entry([1, 1, 1, 2, 2, 1, 1, 1], 0, 16)}, bytes(16))
    yield Folder("eight-dimensions", None, {"config.json": CONFIG, "model.safetensors": deep})
    both = {"a": "x.safetensors", "b": "x.safetensors"}
    index = json.dumps({"weight_map": both}).encode()
    yield Folder("one-shard", None, {"config.json": CONFIG, INDEX: index, "x.safetensors": SOUND})


def bad_files() -> Iterator[tuple[str, bytes, str]]:
    yield "empty", b"", "file of 0 bytes"
    yield "nine-bytes", SOUND[:9], "file of 9 bytes"
    yield "zip", b"PK\3\4" + bytes(64), "a header of"
    for length in (len(SOUND), 2**20, 2**24):
        yield f"header-{length}", safetensors(SOUND_HEADER, bytes(38), length=length), "within the file"
    for length in (2**24 + 1, 2**40, 2**63, 2**64 - 1):
        yield f"header-{length}", safetensors(SOUND_HEADER, bytes(38), length=length), f"a header of {length} bytes"
    yield "header-cut", safetensors(SOUND_HEADER, bytes(38), length=20), "not JSON"
    yield "header-list", safetensors([1, 2]), "a JSON list"
    yield "header-text", safetensors(b"not json at all"), "not JSON"
    yield "header-latin1", safetensors('{"ä": 1}'.encode("latin-1")), "not JSON in UTF-8"
    yield "header-nan", safetensors(b'{"a": NaN}'), "the number NaN"
    yield "header-deep-list", safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "nested too deeply"
    yield "header-deep-object", safetensors(b'{"a":' * 50_000 + b"1" + b"}" * 50_000), "nested too deeply"
    yield "header-many-values", safetensors(b'{"a":[' + b"0," * (1 << 20) + b"0]}"), "values"
    many = {str(i): entry([1], 4 * i, 4 * i + 4) for i in range((1 << 16) + 1)}
    yield "many-tensors", safetensors(many, bytes(4 * len(many))), "65537 tensors"
    yield "long-digits", safetensors(b'{"a": ' + b"9" * 5000 + b"}"), ""
    yield "key-twice", safetensors(b'{"a": 1, "a": 2}'), "the key 'a' a second time"
    yield "field-twice", safetensors(b'{"a": {"dtype": "F32", "dtype": "F16"}}'), "'dtype' a second time"
    yield "name-empty", safetensors({"": entry([1], 0, 4)}, bytes(4)), "1 to 256 bytes"
    yield "name-long", safetensors({"x" * 300: entry([1], 0, 4)}, bytes(4)), "1 to 256 bytes"
    yield "name-surrogate", safetensors(b'{"\\ud800": {"a": 1}}'), "dtype, shape and data_offsets"
    yield "entry-number", safetensors({"a": 3}), "dtype, shape and data_offsets"
    yield "entry-more", safetensors({"a": entry([1], 0, 4, order="F")}, bytes(4)), "dtype, shape and data_offsets"
    yield "entry-less", safetensors({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)), "dtype, shape and data_offsets"
    for dtype in ("F64", "I64", "U8", "BOOL", "F8_E4M3"):
        yield f"dtype-{dtype}", safetensors({"a": entry([1], 0, 8, dtype)}, bytes(8)), f"dtype {dtype}, which is not"
    for dtype in ("f32", "Q4_0", "", 7, None, ["F32"], {"F32": 1}):
        yield f"dtype-odd-{dtype}", safetensors({"a": entry([1], 0, 4, dtype)}, bytes(4)), "one of F32, F16, BF16"
    for shape in (3, None, "3", {"0": 3}, [1] * 9):
        yield f"shape-{shape!r}", safetensors({"a": entry(shape, 0, 4)}, bytes(4)), "a list of 0 to 8"
    for size in (-1, 1.0, True, "1", None, 2**48, 2**64):
        yield f"size-{size!r}", safetensors({"a": entry([size], 0, 4)}, bytes(4)), "integers from 0"
    yield "size-0", safetensors({"a": entry([4, 0], 0, 0)}), "dimensions above 0"
    huge = entry([2**47, 2**47, 2**47, 2**47], 0, 16)
    yield "size-product", safetensors({"a": huge}, bytes(16)), "of them"
    yield "offsets-wrap", safetensors({"a": entry([2], -8, 0)}, bytes(8)), "integers from 0"
    yield "offsets-reversed", safetensors({"a": entry([2], 8, 0)}, bytes(8)), "8 of them"
    yield "offsets-one", safetensors({"a": {**entry([2], 0, 8), "data_offsets": [8]}}, bytes(8)), "a list of 2"
    yield "offsets-short", safetensors({"a": entry([2], 0, 4)}, bytes(8)), "8 of them"
    yield "offsets-beyond", safetensors({"a": entry([2], 0, 8)}, bytes(7)), "within the file"
    yield "offsets-far", safetensors({"a": entry([2], 2**47, 2**47 + 8)}, bytes(8)), "within the file"
    overlap = {"a": entry([2], 0, 8), "b": entry([2], 4, 12)}
    yield "overlap", safetensors(overlap, bytes(12)), "overlap"
    yield "overlap-same", safetensors({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, bytes(8)), "overlap"
    yield "hole-first", safetensors({"a": entry([2], 4, 12)}, bytes(12)), "leave a hole"
    yield "hole", safetensors({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, bytes(20)), "leave a hole"
    yield "bytes-behind", safetensors({"a": entry([2], 0, 8)}, bytes(12)), "4 bytes behind tensor 'a'"


def bad_indices() -> Iterator[tuple[str, bytes, str]]:
    yield "empty", b"", "not JSON"
    yield "no-map", b"{}", "weight_map"
    yield "empty-map", b'{"weight_map": {}}', "weight_map"
    yield "list", b'{"weight_map": ["x.safetensors"]}', "weight_map"
    yield "twice", b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "a second time"
    for file in (
        *("../x.safetensors", "/etc/passwd", "sub/x.safetensors", "sub\\x.safetensors", "C:x.safetensors"),
        *("..safetensors", "a..b.safetensors", ".x.safetensors", "x.safetensors\0", "x.bin", "", "x" * 300),
        *(7, None, ["x.safetensors"]),
    ):
        index = json.dumps({"weight_map": {"a": file}}).encode()
        yield f"file-{str(file)[:20]!r}", index, "in the same folder"
    missing = {"a": "x.safetensors", "b": "y.safetensors"}
    yield "missing-shard", json.dumps({"weight_map": missing}).encode(), "y.safetensors, is missing"
    yield "tensor-missing", json.dumps({"weight_map": dict.fromkeys("abc", "x.safetensors")}).encode(), "lacks it"
    yield "tensor-more", json.dumps({"weight_map": {"a": "x.safetensors"}}).encode(), "holds it too"
    shards = {str(i): f"{i}.safetensors" for i in range(2000)}
    yield "many-shards", json.dumps({"weight_map": shards}).encode(), "2000 files"


def bad_folders() -> Iterator[Folder]:
    weights = {"model.safetensors": SOUND}
    yield Folder("no-config", "config.json: no such file", weights)
    for name, config in {"list": b"[]", "cut": b'{"model_type"', "twice": b'{"a": 1, "a": 1}'}.items():
        yield Folder(f"config-{name}", "config.json", {**weights, "config.json": config})
    yield Folder("config-huge", "at most", {**weights, "config.json": CONFIG}, {"config.json": 1 << 40})
    yield Folder("index-huge", "at most", {"config.json": CONFIG, INDEX: b"{"}, {INDEX: 1 << 40})
    yield Folder("sparse-file", "bytes behind", {"config.json": CONFIG, **weights}, {"model.safetensors": 1 << 40})
    broken = {**weights, "config.json": CONFIG, "generation_config.json": b"[1]"}
    yield Folder("generation-list", "generation_config.json", broken)
    for name in ("pytorch_model.bin", "model.pt", "consolidated.00.pth"):
        yield Folder(f"pickled-{name}", "unpickling runs", {"config.json": CONFIG, name: b"\x80\x04."})
    adapter = {"adapter_config.json": b"{}", "adapter_model.safetensors": SOUND}
    yield Folder("adapter", "LoRA adapter", adapter)
    yield Folder("nothing", "got neither", {"config.json": CONFIG})
