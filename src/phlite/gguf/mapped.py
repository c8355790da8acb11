"""Model files as mapped memory: opened with care, read by descriptor or given back page by page."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from phlite.errors import ModelFileError

U8 = npt.NDArray[np.uint8]


class MappedFile(mmap.mmap):
    """A read-only map of a file, and the open file, which is read where the bytes are wanted once.

    Reading spares the faults of mapped pages, and a file that was cut after mapping is an error of the reader, not the
    end of the program.

    path:       of the file
    descriptor: of the open file, until `close`
    """

    path: Path
    descriptor: int = -1

    @property
    def address(self) -> int:
        """Where the first byte is mapped."""
        return np.frombuffer(self, np.uint8).ctypes.data

    def close(self) -> None:
        """Close the file, and take the map away unless there are views of it."""
        self._close_descriptor()
        super().close()

    def __del__(self) -> None:
        self._close_descriptor()

    def _close_descriptor(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def map_file(path: Path, opened: ExitStack, *, what: str, min_bytes: int) -> MappedFile:
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
            mapped = opened.enter_context(MappedFile(file.fileno(), 0, access=mmap.ACCESS_READ))
            mapped.path, mapped.descriptor = path, os.dup(file.fileno())
            return mapped
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ModelFileError(f"{path}: cannot be opened: {error}") from error


def read_mapped(files: Sequence[MappedFile], data: U8) -> U8:
    """Return the bytes of a view of one of the files as the file has them now, or a view of anything else as it is.

    raises: ModelFileError where the file cannot be read
    """
    for file in files:
        offset_bytes = data.ctypes.data - file.address
        if 0 <= offset_bytes <= len(file) - data.nbytes and hasattr(os, "pread"):
            try:
                found = os.pread(file.descriptor, data.nbytes, offset_bytes)
            except OSError as error:
                raise ModelFileError(f"{file.path}: byte {offset_bytes}: cannot be read: {error.strerror}") from error
            if len(found) < data.nbytes:
                raise ModelFileError(
                    f"{file.path}: byte {offset_bytes + len(found)}: the file ends here, expected {len(file)} bytes as "
                    "when it was opened; it was cut while it was loaded"
                )
            return np.frombuffer(found, np.uint8)
    return data


def release_pages(mapped: mmap.mmap, offset_bytes: int, n_bytes: int) -> None:
    """Let the system take back the whole pages inside a range of a map; does nothing where there is no madvise."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = -(-offset_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (offset_bytes + n_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end:
        mapped.madvise(mmap.MADV_DONTNEED, start, end - start)
