"""Packed copies on disk: what is stored comes back, what is stale or damaged is not used."""

import json

import numpy as np
import pytest

from phlite.errors import ModelFileError, RequestError
from phlite.tiles import HEADER, StoredTiles, TileWriter


@pytest.fixture
def tiles():
    rng = np.random.default_rng(5)
    return {key: rng.integers(0, 256, n, np.uint8) for key, n in (("a b", 64), ("c", 4096), ("d", 9000))}


@pytest.fixture
def written(tmp_path, tiles):
    path = tmp_path / "sub" / "model.tiles"
    with TileWriter(path, "one model", model_bytes=1000) as writer:
        for key, data in tiles.items():
            assert writer.find(key) is None
            np.testing.assert_array_equal(writer.keep(key, data), data)
    return path


def test_stored_tiles_come_back_aligned_and_read_only(written, tiles):
    stored = StoredTiles.open(written, "one model")

    for key, data in tiles.items():
        found = stored.find(key)
        np.testing.assert_array_equal(found, data)
        assert found.ctypes.data % 64 == 0
        assert not found.flags.writeable


def test_a_copy_of_another_model_is_none(written):
    assert StoredTiles.open(written, "another model") is None


def test_a_file_that_is_not_there_is_none(tmp_path):
    assert StoredTiles.open(tmp_path / "none.tiles", "one model") is None


def test_a_matrix_that_was_not_stored_is_an_error(written):
    with pytest.raises(ModelFileError, match=r"no tiles of 'x'.*phlite pack"):
        StoredTiles.open(written, "one model").find("x")


def test_an_interrupted_writer_leaves_nothing(tmp_path, tiles):
    path = tmp_path / "model.tiles"

    def interrupted():
        with TileWriter(path, "one model", model_bytes=1000) as writer:
            writer.keep("c", tiles["c"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_refused_before_writing(tmp_path):
    with pytest.raises(RequestError, match="GB free, expected"):
        TileWriter(tmp_path / "model.tiles", "one model", model_bytes=1 << 60)


def test_a_disk_that_fills_up_is_one_error_and_leaves_nothing(tmp_path, tiles):
    resource = pytest.importorskip("resource", reason="this system has no limit on the size of files")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        with TileWriter(tmp_path / "model.tiles", "one model", model_bytes=1000) as writer:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10000, limits[1]))
            for key, data in tiles.items():
                writer.keep(key, data)

    try:
        with pytest.raises(RequestError, match="cannot be written"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 10, HEADER.size, 4096, 20000])
def test_a_cut_file_is_refused(written, size):
    content = written.read_bytes()[:size]
    written.write_bytes(content)

    with pytest.raises(ModelFileError, match="the packed copy is damaged"):
        StoredTiles.open(written, "one model")


@pytest.mark.parametrize(
    "spans",
    [{"a": [4096, 1 << 40]}, {"a": [0, 64]}, {"a": [4097, 64]}, {"a": [4096, -1]}, {"a": "b"}, {"a": [-4096, 64]}, [1]],
)
def test_an_index_that_points_elsewhere_is_refused(written, spans):
    content = bytearray(written.read_bytes())
    magic, version, pad, offset, _, digest = HEADER.unpack_from(content)
    index = json.dumps({"identity": "one model", "tiles": spans}).encode()
    content[offset:] = index
    HEADER.pack_into(content, 0, magic, version, pad, offset, len(index), digest)
    written.write_bytes(content)

    with pytest.raises(ModelFileError, match="the packed copy is damaged"):
        StoredTiles.open(written, "one model")
