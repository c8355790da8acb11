"""Model files as mapped memory: opened with care, pages given back once they are used."""

from __future__ import annotations

import mmap
import os
import stat
from contextlib import ExitStack
from pathlib import Path

from phlite.errors import ModelFileError


def map_file(path: Path, opened: ExitStack, *, what: str, min_bytes: int) -> mmap.mmap:
    """Return a read-only map of a regular file of at least min_bytes, which `opened` closes.

    what: what the file should be, for messages
    raises: ModelFileError
    """
    try:
        # A pipe or a device would block or never end, so look before opening.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelFileError(f"{path}: not a regular file; expected {what}")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < min_bytes:
                raise ModelFileError(
                    f"{path}: byte 0: got a file of {size} bytes, expected at least the {min_bytes} of {what}'s "
                    "header; a download may have stopped early"
                )
            return opened.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ModelFileError(f"{path}: cannot be opened: {error}") from error


def release_pages(mapped: mmap.mmap, offset_bytes: int, n_bytes: int) -> None:
    """Let the system take back the whole pages inside a range of a map; does nothing where there is no madvise."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = -(-offset_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (offset_bytes + n_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end:
        mapped.madvise(mmap.MADV_DONTNEED, start, end - start)
