"""Weights read from files: the same tiles as from memory, and one clear error where a file has been cut meanwhile."""

import os
import shutil
from contextlib import ExitStack

import numpy as np
import pytest

from phlite import ops
from phlite.errors import ModelFileError
from phlite.gguf import BLOCK_SIZES, GGMLType, load_gguf
from phlite.gguf.mapped import map_file, read_mapped
from phlite.hub import resolve
from phlite.models.registry import build_model

N_COLS = 512


@pytest.fixture
def opened():
    with ExitStack() as stack:
        yield stack


def random_bytes(n_bytes):
    return np.random.default_rng(7).integers(0, 256, n_bytes, np.uint8)


def row_bytes(ggml_type):
    n, n_bytes = BLOCK_SIZES[ggml_type]
    return N_COLS // n * n_bytes


def map_bytes(path, data, opened):
    path.write_bytes(data.tobytes())
    return map_file(path, opened, what="a test's file", min_bytes=1)


@pytest.mark.parametrize("ggml_type", list(GGMLType), ids=lambda t: t.name)
@pytest.mark.parametrize("activation", ["none", "swiglu", "gegelu"])
@pytest.mark.parametrize("threads", [1, 3])
def test_tiles_of_a_file_equal_those_of_memory(ggml_type, activation, threads, tmp_path, opened):
    n_rows = 2 * 327  # the last tile is not full; several windows for the larger types
    data = random_bytes(13 + n_rows * row_bytes(ggml_type))  # at any offset
    file = map_bytes(tmp_path / "weights", data, opened)
    mapped = np.frombuffer(file, np.uint8)[13:]
    pool, split = ops.ThreadPool(threads), 300 * row_bytes(ggml_type)

    def pack(source, files):
        stacked = [(source, ggml_type, n_rows)]
        if activation == "none":
            stacked = [(source[:split], ggml_type, 300), (source[split:], ggml_type, n_rows - 300)]
        return ops.pack_matrix(stacked, N_COLS, pool=pool, activation=activation, files=files).tiles

    np.testing.assert_array_equal(pack(mapped, [file]), pack(data[13:], ()))


def test_parts_of_a_file_and_of_memory_make_one_matrix(tmp_path, opened):
    data = random_bytes(64 * row_bytes(GGMLType.Q4_K))
    file = map_bytes(tmp_path / "weights", data, opened)
    half = len(data) // 2
    pool = ops.ThreadPool(2)

    both = [(np.frombuffer(file, np.uint8)[:half], GGMLType.Q4_K, 32), (data[half:].copy(), GGMLType.Q4_K, 32)]
    got = ops.pack_matrix(both, N_COLS, pool=pool, files=[file]).tiles

    expected = ops.pack_matrix([(data, GGMLType.Q4_K, 64)], N_COLS, pool=pool).tiles
    np.testing.assert_array_equal(got, expected)


def test_matrices_packed_one_after_the_other_keep_their_tiles():
    pool = ops.ThreadPool(2)
    data = [random_bytes(n * row_bytes(GGMLType.Q8_0)) for n in (16, 3000, 32, 9000)]
    packed = [
        ops.pack_matrix([(d, GGMLType.Q8_0, d.size // row_bytes(GGMLType.Q8_0))], N_COLS, pool=pool) for d in data
    ]
    tiles = [matrix.tiles.copy() for matrix in packed]

    del packed[1]  # its pages lie between those of its neighbours
    again = ops.pack_matrix([(data[1], GGMLType.Q8_0, 3000)], N_COLS, pool=pool)

    for matrix, expected in zip(packed, [tiles[0], *tiles[2:]], strict=True):
        np.testing.assert_array_equal(matrix.tiles, expected)
    np.testing.assert_array_equal(again.tiles, tiles[1])


@pytest.mark.skipif(not hasattr(os, "pread"), reason="this system reads files through their mapping")
class TestFileCutAfterOpening:
    def test_packing_it_is_one_error(self, tmp_path, opened):
        data = random_bytes(640 * row_bytes(GGMLType.Q4_K))
        file = map_bytes(tmp_path / "weights", data, opened)
        mapped = np.frombuffer(file, np.uint8)
        os.truncate(tmp_path / "weights", 100_000)

        with pytest.raises(ModelFileError, match=rf"weights: byte 100000: .*expected {len(data)} bytes.*was cut"):
            ops.pack_matrix([(mapped, GGMLType.Q4_K, 640)], N_COLS, pool=ops.ThreadPool(2), files=[file])

    def test_reading_a_vector_of_it_is_one_error(self, tmp_path, opened):
        file = map_bytes(tmp_path / "weights", random_bytes(20_000), opened)
        mapped = np.frombuffer(file, np.uint8)
        os.truncate(tmp_path / "weights", 9000)

        with pytest.raises(ModelFileError, match="weights: byte 9000: the file ends here"):
            read_mapped([file], mapped[8000:12_000])

    def test_a_closed_one_is_one_error(self, tmp_path, opened):
        file = map_bytes(tmp_path / "weights", random_bytes(64 * row_bytes(GGMLType.Q4_K)), opened)
        mapped = np.frombuffer(file, np.uint8)
        with pytest.raises(BufferError):
            file.close()

        with pytest.raises(ModelFileError, match="weights: byte 0: cannot be read"):
            ops.pack_matrix([(mapped, GGMLType.Q4_K, 64)], N_COLS, pool=ops.ThreadPool(2), files=[file])

    @pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
    def test_a_model_is_one_error(self, share, tmp_path):
        path = shutil.copy2(resolve("haiku").path, tmp_path / "model.gguf")
        with load_gguf(path) as file:
            os.truncate(path, int(file.n_bytes * share))
            with pytest.raises(ModelFileError, match=r"model\.gguf: byte \d+: the file ends here"):
                build_model(file, pool=ops.ThreadPool(2))
