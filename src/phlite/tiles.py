"""Packed weights kept in a file: a model starts by mapping them, without reading, packing or copying anything.

The kernels want weights as tiles (ops.pack_matrix). Packing a model takes a copy of it in memory and a pass over it at
every start; a file of tiles, made once, is mapped instead: its pages come when they are first used, programs share
them, and the system drops them when memory is short, so a model larger than memory runs as well.

    header  4096 bytes: magic, version uint32, padding, index offset uint64, index size uint64, sha256 of the identity
    tiles   of each matrix, aligned to 4096 bytes
    index   JSON: {"identity": ..., "tiles": {key: [offset, n_bytes]}}

The identity names the model files by size and modification time and the layout of the tiles; a file whose identity
differs is stale.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from phlite.errors import ModelFileError, RequestError

__all__ = ["StoredTiles", "TileSource", "TileWriter", "identity_of", "tiles_dir", "tiles_path"]

U8 = NDArray[np.uint8]

MAGIC = b"phlite tiles\0\0\0\0"
VERSION = 1
HEADER = struct.Struct("<16sII QQ 32s")
ALIGNMENT = 4096
MOST_INDEX_BYTES = 64 << 20
FREE_SHARE = 1.02  # disk wanted before writing, in sizes of the model: alignment and index come on top


class TileSource(Protocol):
    """Where the loader of a model asks for tiles before it packs a matrix, and leaves them after it has."""

    def find(self, key: str) -> U8 | None:
        """Return the stored tiles of a matrix, or None: pack it."""

    def keep(self, key: str, tiles: U8) -> U8:
        """Store the tiles of a packed matrix; return where they lie from now on."""


class StoredTiles:
    """The tiles of a finished file, mapped read-only for as long as a view of them is referenced."""

    def __init__(self, path: Path, mapped: mmap.mmap, spans: dict[str, tuple[int, int]]) -> None:
        self.path = path
        self.n_bytes = len(mapped)
        self._bytes = np.frombuffer(mapped, np.uint8)
        self._spans = spans

    @classmethod
    def open(cls, path: Path, identity: str) -> StoredTiles | None:
        """Return the tiles in a file, or None where there is no file or it was made from other model files.

        raises: ModelFileError where the file is damaged
        """
        try:
            with path.open("rb") as file:
                header = file.read(HEADER.size)
                size = os.fstat(file.fileno()).st_size
                index_offset, index_bytes, digest = parse_header(path, header, size)
                if digest != hashlib.sha256(identity.encode()).digest():
                    return None
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ModelFileError(f"{path}: cannot be opened: {error.strerror}") from error
        return cls(path, mapped, parse_index(path, mapped[index_offset : index_offset + index_bytes], index_offset))

    def find(self, key: str) -> U8:
        """Return uint8[n_bytes], the tiles of a matrix; raise ModelFileError where the file has none of that key."""
        if key not in self._spans:
            raise damaged(self.path, f"no tiles of {key!r}")
        offset, n_bytes = self._spans[key]
        return self._bytes[offset : offset + n_bytes]

    def keep(self, key: str, tiles: U8) -> U8:
        """Not to be called: every matrix is found."""
        raise AssertionError(f"{key}: packed although its tiles are stored")


class TileWriter:
    """Writes a file of tiles while a model loads; the model then runs from the file. A context manager.

    Leaving the context without an error makes the file final, under the name it was given; otherwise it goes away.
    """

    def __init__(self, path: Path, identity: str, *, model_bytes: int) -> None:
        """Begin a file.

        model_bytes: size of the model files, about what the tiles will take
        raises: RequestError where the disk has less room than that or the folder cannot be written
        """
        self.path = path
        self._identity = identity
        self._spans: dict[str, tuple[int, int]] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            free_bytes = shutil.disk_usage(path.parent).free
            if free_bytes < model_bytes * FREE_SHARE:
                raise RequestError(
                    f"{path.parent}: {free_bytes / 1e9:.1f} GB free, expected {model_bytes * FREE_SHARE / 1e9:.1f} GB "
                    "for the packed copy of the model; make room, or set XDG_CACHE_HOME to a folder on a larger disk"
                )
            self._file = tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".new", delete=False)  # noqa: SIM115
            self._file.write(bytes(ALIGNMENT))
        except OSError as error:
            raise RequestError(f"{path}: cannot be written: {error.strerror}") from error

    def find(self, key: str) -> None:
        """Return None: everything is packed."""

    def keep(self, key: str, tiles: U8) -> U8:
        """Write the tiles of a matrix; return uint8[n_bytes], the mapped copy of them."""
        try:
            offset = self._file.tell()
            self._file.write(tiles.data)
            self._file.write(bytes(-tiles.nbytes % ALIGNMENT))
            self._file.flush()
            mapped = mmap.mmap(self._file.fileno(), tiles.nbytes, access=mmap.ACCESS_READ, offset=offset)
        except OSError as error:
            raise RequestError(f"{self.path}: cannot be written: {error.strerror}") from error
        self._spans[key] = (offset, tiles.nbytes)
        return np.frombuffer(mapped, np.uint8)

    def __enter__(self) -> TileWriter:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if exc_type is None:
                self._finish()
        except OSError as error:
            raise RequestError(f"{self.path}: cannot be written: {error.strerror}") from error
        finally:
            with contextlib.suppress(OSError):  # a full disk refuses the last bytes again; the file goes away anyway
                self._file.close()
            Path(self._file.name).unlink(missing_ok=True)

    def _finish(self) -> None:
        index = json.dumps({"identity": self._identity, "tiles": self._spans}).encode()
        index_offset = self._file.tell()
        self._file.write(index)
        digest = hashlib.sha256(self._identity.encode()).digest()
        self._file.seek(0)
        self._file.write(HEADER.pack(MAGIC, VERSION, 0, index_offset, len(index), digest))
        self._file.flush()
        os.replace(self._file.name, self.path)


def identity_of(paths: Sequence[Path], *, layout: int, variant: str = "") -> str:
    """Return what tiles are made from: sizes and modification times of model files, the layout, a variant's name."""
    files = [[status.st_size, status.st_mtime_ns] for status in (path.stat() for path in paths)]
    return json.dumps({"files": files, "layout": layout, "variant": variant})


def tiles_dir() -> Path:
    """Folder of packed copies: $XDG_CACHE_HOME/phlite/tiles, by default under ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(os.path.expandvars(base)) if base else Path.home() / ".cache").expanduser() / "phlite" / "tiles"


def tiles_path(model: Path, variant: str = "") -> Path:
    """Return where the packed copy of a model lies: named by the model's resolved path."""
    resolved = model.resolve()
    name = hashlib.sha256(f"{resolved}\0{variant}".encode()).hexdigest()[:24]
    return tiles_dir() / f"{name}.tiles"


def parse_header(path: Path, header: bytes, size: int) -> tuple[int, int, bytes]:
    """Return index offset, index size and identity digest; raise ModelFileError unless they fit the file's size."""
    if len(header) < HEADER.size:
        raise damaged(path, f"{len(header)} bytes of a header of {HEADER.size}")
    magic, version, _, index_offset, index_bytes, digest = HEADER.unpack(header)
    if magic != MAGIC or version != VERSION:
        raise damaged(path, f"magic {magic[:12]!r}, version {version}, expected version {VERSION}")
    if index_bytes > MOST_INDEX_BYTES or index_offset < ALIGNMENT or index_offset + index_bytes != size:
        raise damaged(path, f"index of {index_bytes} bytes at {index_offset} of a file of {size}")
    return index_offset, index_bytes, bytes(digest)


def parse_index(path: Path, index: bytes, end: int) -> dict[str, tuple[int, int]]:
    """Return key -> offset and size in bytes; raise ModelFileError where one lies outside of the data."""
    try:
        tiles = json.loads(index)["tiles"]
        spans = {str(key): (int(offset), int(n_bytes)) for key, (offset, n_bytes) in tiles.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, "an index that is no JSON of spans") from error
    for key, (offset, n_bytes) in spans.items():
        if offset % ALIGNMENT or n_bytes < 0 or not ALIGNMENT <= offset <= end - n_bytes:
            raise damaged(path, f"{key!r} at {offset}, {n_bytes} bytes of {end}")
    return spans


def damaged(path: Path, what: str) -> ModelFileError:
    """Return the error for a file that is not as the writer left it."""
    return ModelFileError(f"{path}: the packed copy is damaged: got {what}; make it again with `phlite pack`")
