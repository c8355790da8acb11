"""Open a GGUF file, or the first part of a split one, as metadata and zero-copy views of its tensors."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
import numpy.typing as npt

from phlite.errors import ModelFileError
from phlite.gguf.header import Header, parse_header
from phlite.gguf.mapped import MappedFile, map_file, release_pages
from phlite.gguf.metadata import Metadata
from phlite.gguf.types import GGMLType

_PART_NAME: Final = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_FIXED_HEADER_BYTES: Final = 24


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor where it lies in its file.

    name:         as in the file
    shape:        row-major, so a matrix is (out, in) as in Hugging Face checkpoints
    type:         block format of a row
    data:         uint8[n_bytes], read-only view of the mapped file; valid for as long as it is referenced
    path:         the file that holds it, one of GGUFFile.paths
    offset_bytes: where data begins in that file, a multiple of 8
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    data: npt.NDArray[np.uint8]
    path: Path
    offset_bytes: int

    @property
    def n_elements(self) -> int:
        """Number of weights."""
        return prod(self.shape)


class GGUFFile:
    """An open model file: `metadata`, `tensors` by name in file order, `paths` of its parts; a context manager.

    The files stay mapped while the object is open or a tensor's data is referenced. They must not be changed
    meanwhile: the operating system kills a program that reads behind the end of a file that was cut after mapping.
    """

    def __init__(
        self, paths: tuple[Path, ...], metadata: Metadata, tensors: dict[str, Tensor], maps: dict[Path, MappedFile]
    ) -> None:
        self.paths = paths
        self.metadata = metadata
        self.tensors = tensors
        self._maps = maps

    @property
    def maps(self) -> tuple[MappedFile, ...]:
        """The open files whose bytes the tensors' data are."""
        return tuple(self._maps.values())

    @property
    def n_bytes(self) -> int:
        """Size of all parts together, in bytes."""
        return sum(len(mapped) for mapped in self._maps.values())

    def release(self, tensor: Tensor) -> None:
        """Let the system take back the memory behind a tensor that was read; a later read fetches it again.

        A loader that repacks weights calls it after each one, so that file and copy are never resident together.
        Does nothing on systems that have no madvise.
        """
        mapped = self._maps.get(tensor.path)
        if mapped is not None:
            release_pages(mapped, tensor.offset_bytes, tensor.data.nbytes)

    def close(self) -> None:
        """Give the files back; tensor data still referenced elsewhere stays valid, metadata stays readable."""
        self.tensors = {}
        maps, self._maps = self._maps, {}
        for mapped in maps.values():
            with suppress(BufferError):  # some view is still alive: its end unmaps the file
                mapped.close()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def load_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Map a GGUF file and return its checked metadata and tensors; nothing of the tensor data is read or copied.

    path: a file, or the first part of a split one (PREFIX-00001-of-0000N.gguf), whose other parts lie beside it
    raises: ModelFileError where a file is missing, damaged, inconsistent or hostile;
            UnsupportedModelError for a tensor type of ggml that is not implemented
    """
    first_path = Path(path)
    with ExitStack() as opened:
        first_map, first = _open_part(first_path, opened)
        paths = _part_paths(first_path, first)
        parts = [(first_path, first_map, first)]
        for number, part_path in enumerate(paths[1:], start=1):
            part_map, part = _open_part(part_path, opened)
            _check_part(part_path, part, number, len(paths))
            parts.append((part_path, part_map, part))
        _check_names(parts)
        opened.pop_all()  # all checks are passed: from here on the views of the tensors keep the maps alive
    metadata = Metadata(first.values, source=str(first_path), types=first.types)
    maps = {part_path: part_map for part_path, part_map, _ in parts}
    return GGUFFile(paths, metadata, _view_tensors(parts), maps)


def _open_part(path: Path, opened: ExitStack) -> tuple[MappedFile, Header]:
    mapped = map_file(path, opened, what="a GGUF file", min_bytes=_FIXED_HEADER_BYTES)
    return mapped, parse_header(mapped, str(path))


def _part_paths(first_path: Path, first: Header) -> tuple[Path, ...]:
    """Paths of all parts, derived from the name of the first; one path where the file is not split."""
    count = first.values.get("split.count", 1)
    number = first.values.get("split.no", 0)
    if type(count) is not int or type(number) is not int or count < 0 or not 0 <= number < max(count, 1):
        raise ModelFileError(f"{first_path}: split.no {number!r} of split.count {count!r}, expected 0 <= no < count")
    if count <= 1:
        return (first_path,)
    name = _PART_NAME.fullmatch(first_path.name)
    if name is None or int(name["count"]) != count or int(name["number"]) != number + 1:
        raise ModelFileError(
            f"{first_path}: this is part {number + 1} of {count} of a split file, so its name must end in "
            f"-{number + 1:05d}-of-{count:05d}.gguf for the others to be found; rename it back"
        )
    paths = tuple(first_path.with_name(f"{name['prefix']}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1))
    if number != 0:
        raise ModelFileError(f"{first_path}: this is part {number + 1} of {count}; open the first one, {paths[0]}")
    return paths


def _check_part(path: Path, part: Header, number: int, count: int) -> None:
    got = (part.values.get("split.no"), part.values.get("split.count"))
    if got != (number, count):
        raise ModelFileError(
            f"{path}: split.no and split.count are {got[0]!r} and {got[1]!r}, expected {number} and {count} as in its "
            "name; parts of different files may be mixed, download them again"
        )


def _check_names(parts: list[tuple[Path, MappedFile, Header]]) -> None:
    """Refuse parts that hold a tensor twice or, together, not as many as the first one says."""
    first_path, _, first = parts[0]
    found: dict[str, Path] = {}
    for path, _, header in parts:
        for entry in header.tensors:
            if entry.name in found:
                raise ModelFileError(
                    f"{path}: tensor {entry.name!r} is also in {found[entry.name].name}; expected it in one part"
                )
            found[entry.name] = path
    total = first.values.get("split.tensors.count")
    if len(parts) > 1 and total != len(found):
        raise ModelFileError(
            f"{first_path}: split.tensors.count is {total!r}, but the {len(parts)} parts hold {len(found)} tensors; "
            "parts of different files may be mixed, download them again"
        )


def _view_tensors(parts: list[tuple[Path, MappedFile, Header]]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path, mapped, header in parts:
        for entry in header.tensors:
            data = np.frombuffer(mapped, np.uint8, entry.n_bytes, entry.offset_bytes)
            tensors[entry.name] = Tensor(entry.name, entry.shape, entry.type, data, path, entry.offset_bytes)
    return tensors
