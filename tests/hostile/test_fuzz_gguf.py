"""Random damage to a small sound file: it is refused with a ModelFileError, or it loads and all of it can be read."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import numpy as np
from hostile.make_corpus import valid_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phlite.errors import ModelFileError, UnsupportedModelError
from phlite.gguf import load_gguf
from phlite.ops.dequantize import dequantize

VALID = valid_file()
HEADER_BYTES = len(VALID) - 100

# What a careless parser trips over: signs, powers of two, and their neighbours.
TELLING = sorted({max(base + step, 0) % 2**64 for base in (0, *(2**k for k in range(3, 65))) for step in (-1, 0, 1)})

single_bytes = st.tuples(st.integers(0, HEADER_BYTES - 1), st.integers(0, 255).map(lambda value: bytes([value])))
numbers = st.tuples(
    st.integers(0, HEADER_BYTES - 8),
    st.one_of(
        st.sampled_from(TELLING).map(lambda value: struct.pack("<Q", value)),
        st.sampled_from(TELLING).map(lambda value: struct.pack("<I", value % 2**32)),
    ),
)
runs = st.tuples(st.integers(0, HEADER_BYTES - 1), st.binary(min_size=1, max_size=24))
edits = st.lists(st.one_of(single_bytes, numbers, runs), min_size=1, max_size=4)
FUZZ = settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def read_all(data: bytes) -> None:
    """Load data as a file and read every value and weight; anything but the two errors of bad files escapes."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "fuzz.gguf"
        path.write_bytes(data)
        try:
            with load_gguf(path) as file:
                for tensor in file.tensors.values():
                    values = dequantize(np.array(tensor.data), tensor.type, tensor.shape)
                    assert values.shape == tensor.shape
                    assert tensor.offset_bytes + tensor.data.nbytes <= len(data)
                for key in file.metadata:
                    file.metadata[key]
        except (ModelFileError, UnsupportedModelError):
            pass


@FUZZ
@given(edits)
def test_overwritten_bytes_are_refused_or_read(changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(VALID)
    for offset, replacement in changes:
        data[offset : offset + len(replacement)] = replacement
    read_all(bytes(data))


@FUZZ
@given(st.integers(0, len(VALID)), st.integers(0, len(VALID)), st.integers(0, len(VALID)))
def test_parts_moved_or_left_out_are_refused_or_read(start: int, end: int, target: int) -> None:
    part = VALID[min(start, end) : max(start, end)]
    rest = VALID[: min(start, end)] + VALID[max(start, end) :]
    read_all(rest[:target] + part + rest[target:])
    read_all(rest)


@FUZZ
@given(st.binary(max_size=400))
def test_random_bytes_behind_a_sound_start_are_refused_or_read(tail: bytes) -> None:
    read_all(b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + tail)


def test_the_undamaged_file_is_read() -> None:
    read_all(VALID)
