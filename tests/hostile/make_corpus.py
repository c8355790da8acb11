"""A corpus of broken and hostile GGUF files, built byte by byte without the code under test.

Each case says what must happen: `refused` holds a part of the message of the ModelFileError, or is None where the file
is odd but sound and must load. Run this file with a folder as its argument to write the corpus there.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", U64: "Q", I64: "q", F64: "d"}


@dataclass(frozen=True)
class Case:
    """A file, and what must come of it: a refusal with this in its message, or, for None, a loaded file."""

    name: str
    data: bytes
    refused: str | None
    sparse_bytes: int = 0  # the file is this long, with a hole behind data


def string(text: str | bytes, length: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def key(name: str | bytes, kind: int, payload: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + payload


def number(name: str, kind: int, value: float) -> bytes:
    return key(name, kind, struct.pack("<" + FORMATS[kind], value))


def array(name: str, kind: int, count: int, payload: bytes) -> bytes:
    return key(name, ARRAY, struct.pack("<IQ", kind, count) + payload)


def tensor(name: str | bytes, dims: Sequence[int], kind: int = 0, offset: int = 0, n_dims: int | None = None) -> bytes:
    n_dims = len(dims) if n_dims is None else n_dims
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", n_dims, *dims, kind, offset)


def gguf(
    keys: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    n_keys: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    head = b"GGUF" + struct.pack(
        "<IQQ", version, len(tensors) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys
    )
    head += b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data


ARCHITECTURE = key("general.architecture", STRING, string("phi3"))


def valid_file() -> bytes:
    """Keys of every kind and two tensors; its last byte belongs to the last tensor."""
    keys = [
        ARCHITECTURE,
        number("phi3.block_count", U32, 2),
        number("phi3.rope.freq_base", F32, 10000.0),
        key("tokenizer.ggml.add_bos_token", BOOL, b"\1"),
        array("tokenizer.ggml.tokens", STRING, 3, string("<s>") + string("▁the") + string("")),
        array("tokenizer.ggml.scores", F32, 3, struct.pack("<3f", 0, -1, -2)),
        array("tokenizer.ggml.token_type", I32, 3, struct.pack("<3i", 3, 1, 1)),
        array("flags", BOOL, 2, b"\0\1"),
    ]
    tensors = [tensor("output_norm.weight", [8], 0, 0), tensor("token_embd.weight", [32, 2], 8, 32)]
    return gguf(keys, tensors, bytes(range(32)) + bytes(68))


def cases() -> Iterator[Case]:
    """The whole corpus."""
    yield Case("valid", valid_file(), None)
    yield from bad_heads()
    yield from bad_keys()
    yield from bad_arrays()
    yield from bad_tensors()
    yield from bad_layouts()
    yield from bad_split_keys()
    yield from bombs()
    yield from odd_but_sound()


def bad_heads() -> Iterator[Case]:
    yield Case("magic", b"GGML" + valid_file()[4:], "not a GGUF file")
    yield Case("zip", b"PK\3\4" + bytes(64), "not a GGUF file")
    yield Case("zeros", bytes(4096), "not a GGUF file")
    for version in (0, 1, 4, 2**31, 2**32 - 1):
        yield Case(f"version-{version}", gguf(version=version), "version 2 or 3")
    yield Case("big-endian", gguf(version=0x03000000), "little-endian")
    for count in (1, 2**16 + 1, 2**31, 2**32, 2**62, 2**63, 2**64 - 1):
        yield Case(f"n-keys-{count}", gguf(n_keys=count), "metadata keys")
        yield Case(f"n-tensors-{count}", gguf(n_tensors=count), "tensors")


def bad_keys() -> Iterator[Case]:
    yield Case("key-empty", gguf([key("", U8, b"\0"), ARCHITECTURE]), "an empty metadata key")
    yield Case("key-twice", gguf([ARCHITECTURE, ARCHITECTURE]), "a second time")
    long_name = key("\n" * 1024, 13, b"")
    yield Case("key-long", gguf([long_name, ARCHITECTURE]), "expected a value type")
    yield Case("key-too-long", gguf([key("x" * 1025, U8, b"\0")]), "at most 1024")
    yield Case("key-not-utf8", gguf([key(b"a\xff", U8, b"\0"), ARCHITECTURE]), "not UTF-8")
    for length in (2**12, 2**31, 2**40, 2**63, 2**64 - 1):
        huge = string("general.name", length) + struct.pack("<I", U8)
        yield Case(f"key-length-{length}", gguf([huge, ARCHITECTURE]), "bytes for a metadata key")
        value = key("general.name", STRING, string("phi", length))
        yield Case(f"string-length-{length}", gguf([value, ARCHITECTURE]), "metadata key 'general.name'")
    for kind in (13, 14, 255, 2**31, 2**32 - 1):
        yield Case(f"value-type-{kind}", gguf([key("x", kind, bytes(64))]), "expected a value type")
    for raw in (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xc0\x80"):
        yield Case(f"string-{raw.hex()}", gguf([key("general.name", STRING, string(raw))]), "not UTF-8")
    for byte in (2, 128, 255):
        yield Case(f"bool-{byte}", gguf([key("x", BOOL, bytes([byte])), ARCHITECTURE]), "0 or 1")


def bad_arrays() -> Iterator[Case]:
    for count in (2**28, 2**31, 2**32, 2**61, 2**62, 2**63, 2**64 - 1):
        for kind in (U8, U16, F32, BOOL, STRING, U64, F64):
            yield Case(f"array-{kind}-of-{count}", gguf([array("x", kind, count, bytes(64))]), "'x'")
    nested = struct.pack("<IQ", ARRAY, 1) * 3 + struct.pack("<IQ", U8, 1) + b"\0"
    yield Case("array-nested", gguf([key("x", ARRAY, nested), ARCHITECTURE]), "array of arrays")
    deep = struct.pack("<IQ", ARRAY, 1) * 100_000
    yield Case("array-nested-deep", gguf([key("x", ARRAY, deep)]), "array of arrays")
    yield Case("array-type", gguf([array("x", 13, 1, bytes(64))]), "expected a value type")
    yield Case("array-bool-2", gguf([array("x", BOOL, 3, b"\0\1\2"), ARCHITECTURE]), "0 or 1")
    for lengths in ((2**64 - 1,), (1, 2**63), (1, 1, 2**40), (2**64 - 8,), (2**64 - 16, 1), (0, 300, 2**62)):
        payload = b"".join(string(b"x" * min(length, 300), length) for length in lengths)
        name = "-".join(map(str, lengths))
        yield Case(f"array-strings-{name}", gguf([array("x", STRING, len(lengths), payload)]), "a shorter string")
    bad_text = array("tokenizer.ggml.tokens", STRING, 2, string("a") + string(b"\xff"))
    yield Case("array-not-utf8", gguf([bad_text, ARCHITECTURE]), "element 1 of 'tokenizer.ggml.tokens' is not UTF-8")


def bad_tensors() -> Iterator[Case]:
    data = bytes(4096)
    yield Case("tensor-name-empty", gguf([], [tensor("", [8])], data), "an empty tensor name")
    yield Case("tensor-name-long", gguf([], [tensor("x" * 65, [8])], data), "at most 64")
    yield Case("tensor-name-not-utf8", gguf([], [tensor(b"\xff", [8])], data), "not UTF-8")
    yield Case("tensor-twice", gguf([], [tensor("w", [8]), tensor("w", [8], 0, 32)], data), "a second time")
    for n_dims in (0, 5, 255, 2**31, 2**32 - 1):
        yield Case(f"n-dims-{n_dims}", gguf([], [tensor("w", [8], n_dims=n_dims)], data), "dimensions for tensor 'w'")
    for dims in ([0], [8, 0], [0, 8], [8, 0, 8], [8, 8, 8, 0], [0, 2**64 - 1]):
        yield Case(f"dims-{dims}", gguf([], [tensor("w", dims)], data), "none of 0")
    # products that wrap around 64 bits to something small, and products that do not
    for dims in (
        [2**64 - 1],
        [2**63, 2],
        [2**32, 2**32],
        [2**62, 4, 1, 8],
        [2**32, 2**31, 2**2, 2**2],
        [2**64 - 32] * 4,
        [32, 2**59 + 1],
        [1025],
    ):
        yield Case(f"dims-{dims}", gguf([], [tensor("w", dims)], data), "tensor 'w'")
        if dims[0] % 256 == 0:
            yield Case(f"dims-Q4_K-{dims}", gguf([], [tensor("w", dims, 12)], data), "tensor 'w'")
    for kind, columns in ((2, 31), (8, 33), (10, 32), (12, 255), (14, 257), (23, 128)):
        yield Case(f"columns-{kind}-{columns}", gguf([], [tensor("w", [columns, 32], kind)], data), "a multiple of")
    for kind in (4, 5, 31, 33, 36, 38, 255, 4711, 2**31, 2**32 - 1):
        yield Case(f"tensor-type-{kind}", gguf([], [tensor("w", [256], kind)], data), f"type {kind} for tensor 'w'")
    for kind, name in ((9, "Q8_1"), (16, "IQ2_XXS"), (24, "I8"), (28, "F64"), (39, "MXFP4")):
        yield Case(f"tensor-type-{name}", gguf([], [tensor("w", [256], kind)], data), f"type {name}, which is not")


def bad_layouts() -> Iterator[Case]:
    data = bytes(256)
    for offset in (1, 4, 31, 33):
        yield Case(f"offset-{offset}", gguf([], [tensor("w", [8], 0, offset)], data), "a multiple of the alignment")
    for offset in (256, 2**20, 2**40, 2**63, 2**64 - 32):
        yield Case(f"offset-{offset}", gguf([], [tensor("w", [8], 0, offset)], data), "an end within the file")
    yield Case("tensor-past-end", gguf([], [tensor("w", [57], 0, 32)], data), "an end within the file")
    same = [tensor("a", [8]), tensor("b", [8])]
    yield Case("overlap-same", gguf([], same, data), "overlap")
    partial = [tensor("a", [8], 0, 32), tensor("b", [9], 0, 0)]
    yield Case("overlap-partly", gguf([], partial, data), "overlap")
    inside = [tensor("a", [64]), tensor("b", [8], 0, 64)]
    yield Case("overlap-inside", gguf([], inside, data), "overlap")
    for kind, value in ((U32, 0), (U32, 1), (U32, 3), (U32, 4), (U32, 48), (U32, 2**32 - 1), (I32, -32), (F32, 32.0)):
        keys = [number("general.alignment", kind, value)]
        yield Case(f"alignment-{kind}-{value}", gguf(keys, [tensor("w", [8])], data), "general.alignment")
    text = [key("general.alignment", STRING, string("32"))]
    yield Case("alignment-text", gguf(text, [tensor("w", [8])], data), "general.alignment str")
    flag = [key("general.alignment", BOOL, b"\1")]
    yield Case("alignment-bool", gguf(flag, [tensor("w", [8])], data), "general.alignment True")
    many = [array("general.alignment", U32, 1, struct.pack("<I", 32))]
    yield Case("alignment-array", gguf(many, [tensor("w", [8])], data), "general.alignment ndarray")
    for kind, value in ((U32, 2**31), (U64, 2**63)):
        keys = [number("general.alignment", kind, value)]
        yield Case(f"alignment-{value}", gguf(keys, [tensor("w", [8])], data), "an end within the file")


def bad_split_keys() -> Iterator[Case]:
    for kind, number_value, count in ((U16, 0, 65535), (U64, 0, 2**64 - 1), (U16, 1, 2)):
        keys = [number("split.no", kind, number_value), number("split.count", kind, count)]
        yield Case(f"split-{number_value}-of-{count}", gguf(keys), "its name must end in")
    for kind, number_value, count in ((I32, -1, 3), (I32, 0, -3), (U16, 9, 3), (F32, 0.0, 3.0)):
        keys = [number("split.no", kind, number_value), number("split.count", kind, count)]
        yield Case(f"split-{kind}-{number_value}-of-{count}", gguf(keys), "expected 0 <= no < count")
    text = [key("split.count", STRING, string("3"))]
    yield Case("split-text", gguf(text), "expected 0 <= no < count")


def bombs() -> Iterator[Case]:
    """Small files that ask for much, and large ones whose size is real but whose content must not be copied."""
    many_keys = [number(f"k{i}", U8, 0) for i in range(2**16 + 1)]
    yield Case("many-keys", gguf(many_keys), "at most 65536")
    many_tensors = [tensor(f"t{i}", [1], 0, 32 * i) for i in range(2**16 + 1)]
    yield Case("many-tensors", gguf([], many_tensors), "at most 65536")
    some, more = array("a", STRING, 2**18, bytes(2**21)), array("b", STRING, 2**22 - 2**18 + 1, b"")
    yield Case("many-strings", gguf([some, more]), "strings in one file")
    yield Case("many-empty-strings", gguf([some]), None)
    hole = 3 * 2**30
    yield Case("huge-string", gguf([key("x", STRING, struct.pack("<Q", 2**31))]), "at most", hole)
    yield Case("huge-array", gguf([array("x", U8, 2**31, b"")]), "at most", hole)
    yield Case("huge-string-array", gguf([array("x", STRING, 2, string("", 2**31))]), "a shorter string", hole)
    parts = [array(f"x{i}", U8, 2**24, bytes(2**24)) for i in range(5)]
    yield Case("much-metadata", gguf(parts), "metadata that goes on")
    yield Case("huge-tensor", gguf([ARCHITECTURE], [tensor("w", [2**29])]), None, hole)


def odd_but_sound() -> Iterator[Case]:
    data = bytes(256)
    yield Case("nothing", gguf(alignment=8), None)
    yield Case("long-name", gguf([], [tensor("x" * 64, [8])], data), None)
    yield Case("gap-and-disorder", gguf([], [tensor("a", [8], 0, 128), tensor("b", [8], 0, 32)], data), None)
    yield Case("four-dims", gguf([], [tensor("w", [1, 2, 4, 8])], data), None)
    yield Case("empty-arrays", gguf([array("a", STRING, 0, b""), array("b", F32, 0, b""), ARCHITECTURE]), None)
    keys = [number("general.alignment", U32, 4096)]
    yield Case("alignment-4096", gguf(keys, [tensor("w", [8])], data, alignment=4096), None)
    yield Case("nan-values", gguf([number("a", F32, float("nan")), number("b", F64, float("inf"))]), None)
    for half in (b"\x00\x7e", b"\x00\x7c", b"\x00\xfc", b"\x01\x7c"):
        block = half + bytes(range(32))
        yield Case(f"scale-{half.hex()}", gguf([], [tensor("w", [32], 8)], block), None)
    control = key("general.name", STRING, string("\x1b[2J\r\n\0\u202e"))
    yield Case("control-characters", gguf([control]), None)
    for name, template in TEMPLATE_BOMBS.items():
        yield Case(f"template-{name}", gguf([key("tokenizer.chat_template", STRING, string(template))]), None)


TEMPLATE_BOMBS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}x"
    "{% endfor %}{% endfor %}{% endfor %}",
    "power": "{{ 9**9**9**9 }}",
    "product": "{{ 'x' * 999999999999 }}",
    "doubling": "{% set ns = namespace(s='x' * 1024) %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"
    "{{ ns.s }}",
    "recursive-macro": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "self-include": "{% include 'chat_template' %}",
    "nesting": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "parentheses": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "escape": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "format-width": "{{ '%999999999d' % 1 }}",
    "unclosed": "{% for m in messages %}",
}
"""Chat templates that loop, grow, recurse or try to reach Python; the reader hands them on as text."""


def write_case(case: Case, folder: Path) -> Path:
    """Write one file, with its hole where it has one."""
    path = folder / f"{case.name}.gguf"
    path.write_bytes(case.data)
    if case.sparse_bytes:
        with path.open("r+b") as file:
            file.truncate(case.sparse_bytes)
    return path


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases():
        print(write_case(case, folder))


if __name__ == "__main__":
    main()
