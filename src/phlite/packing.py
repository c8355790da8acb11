"""Packed copies of models: made once, then mapped at every start instead of packing the weights anew (phlite.tiles)."""

from __future__ import annotations

import logging
from pathlib import Path

from phlite import ops
from phlite.gguf import GGUFFile, load_gguf
from phlite.memory import available_memory_bytes, shortage
from phlite.models.base import CausalLM
from phlite.models.registry import build_model
from phlite.tiles import StoredTiles, TileWriter, identity_of, tiles_path

__all__ = ["build_from_copy", "packed_copy", "remove_packed_copy", "write_packed_copy"]

SHARE_FOR_WEIGHTS = 0.9
"""Of the free memory: weights beyond it run from the disk's cache."""

logger = logging.getLogger("phlite")


def build_from_copy(file: GGUFFile, *, pool: ops.ThreadPool) -> CausalLM:
    """Return the model of an open file, from its packed copy where it has one, else packed into memory.

    Weights that memory has no room for are packed into a copy on disk, which the model then runs from: what does not
    fit is read again when it is needed. A warning names the sizes.
    raises: as models.registry.build_model; RequestError where the disk has no room for a copy that must be made
    """
    stored = packed_copy(file)
    short = shortage(file.n_bytes, available_memory_bytes(), share=SHARE_FOR_WEIGHTS)
    if short is not None:
        logger.warning("%s: %s", file.metadata.source, short)
        if stored is None:
            return write_tiles(file, pool=pool)
    return build_model(file, pool=pool, tiles=stored)


def packed_copy(file: GGUFFile) -> StoredTiles | None:
    """Return the packed copy of an open file, or None where there is none; a stale one is named in a warning."""
    path = tiles_path(file.paths[0])
    stored = StoredTiles.open(path, file_identity(file))
    if stored is None and path.exists():
        logger.warning(
            "%s: its packed copy %s was made from another version of the file and is not used; `phlite pack` makes a "
            "new one",
            file.metadata.source,
            path,
        )
    return stored


def write_packed_copy(model: Path, *, pool: ops.ThreadPool) -> Path:
    """Make the packed copy of a GGUF file, replacing one that is there; return its path.

    The memory needed is that of the largest matrix.
    raises: as build_from_copy
    """
    with load_gguf(model) as file:
        write_tiles(file, pool=pool)
        return tiles_path(file.paths[0])


def remove_packed_copy(model: Path) -> int:
    """Delete the packed copy of a model file that is there or was; return its size in bytes, 0 if there is none."""
    path = tiles_path(model)
    try:
        n_bytes = path.stat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    return n_bytes


def write_tiles(file: GGUFFile, *, pool: ops.ThreadPool) -> CausalLM:
    """Write the packed copy of an open file and return the model, which runs from it."""
    with TileWriter(tiles_path(file.paths[0]), file_identity(file), model_bytes=file.n_bytes) as writer:
        return build_model(file, pool=pool, tiles=writer)


def file_identity(file: GGUFFile) -> str:
    """Return what a packed copy of this file must have been made from."""
    return identity_of(file.paths, layout=ops.PACKED_LAYOUT)
