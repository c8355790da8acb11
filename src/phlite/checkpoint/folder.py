"""Open a checkpoint folder: its configs parsed, its tensors as views of mapped files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from phlite.checkpoint.json_file import load_json
from phlite.checkpoint.safetensors import Entry, map_safetensors
from phlite.errors import ModelFileError, UnsupportedModelError
from phlite.gguf import Tensor, quoted
from phlite.gguf.mapped import MappedFile, release_pages

MAX_CONFIG_BYTES: Final = 1 << 20
MAX_INDEX_BYTES: Final = 1 << 24
MAX_SHARDS: Final = 1 << 10

_SINGLE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_SHARD_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,200}\.safetensors")
_SAMPLING_NAMES: Final = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
_PICKLED: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class Checkpoint:
    """An open checkpoint; a context manager.

    folder:            where it lies
    config:            the object in config.json
    generation_config: the object in generation_config.json, {} where there is none
    tensors:           by their Hugging Face names, in the order of the files; types F32, F16 and BF16
    paths:             the safetensors files

    The files stay mapped while the object is open or a tensor's data is referenced. They must not be changed
    meanwhile: the operating system kills a program that reads behind the end of a file that was cut after mapping.
    """

    def __init__(
        self,
        folder: Path,
        *,
        config: Mapping[str, object],
        generation_config: Mapping[str, object],
        tensors: Mapping[str, Tensor],
        maps: Mapping[Path, MappedFile],
    ) -> None:
        self.folder = folder
        self.config = config
        self.generation_config = generation_config
        self.tensors = tensors
        self.paths = tuple(maps)
        self._maps = dict(maps)

    @property
    def maps(self) -> tuple[MappedFile, ...]:
        """The open safetensors files; tensors' data are views of them, or lie in memory."""
        return tuple(self._maps.values())

    @property
    def source(self) -> str:
        """Name of the folder, for messages."""
        return str(self.folder)

    @property
    def config_source(self) -> str:
        """Name of its config.json, for messages."""
        return str(self.folder / "config.json")

    @property
    def model_type(self) -> str:
        """The architecture by config.json; raises ModelFileError where it is missing."""
        value = self.config.get("model_type")
        if not isinstance(value, str):
            raise ModelFileError(f"{self.config_source}: key 'model_type': got {value!r:.60}, expected a string")
        return value

    @property
    def n_bytes(self) -> int:
        """Size of the safetensors files together, in bytes."""
        return sum(len(mapped) for mapped in self._maps.values())

    def sampling(self) -> dict[str, int | float]:
        """Return the sampling that generation_config.json recommends, under GGUF's names (`general.sampling.*`).

        As in transformers, its numbers mean nothing where it does not say `do_sample`.

        raises: ModelFileError for a value that is no number
        """
        if self.generation_config.get("do_sample") is not True:
            return {}
        fields: dict[str, int | float] = {}
        for key, name in _SAMPLING_NAMES.items():
            value = self.generation_config.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                source = self.folder / "generation_config.json"
                raise ModelFileError(f"{source}: key {key!r}: got {str(value)[:60]!r}, expected a number")
            fields[name] = value if key == "top_k" else float(value)
        if "penalty_repeat" in fields:
            fields["penalty_last_n"] = -1  # transformers counts the whole text
        return fields

    def release(self, tensor: Tensor) -> None:
        """Let the system take back the memory behind a tensor that was read; a later read fetches it again."""
        mapped = self._maps.get(tensor.path)
        if mapped is not None:
            release_pages(mapped, tensor.offset_bytes, tensor.data.nbytes)

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Checkpoint:
        """Return the same checkpoint with other tensors."""
        return Checkpoint(
            self.folder,
            config=self.config,
            generation_config=self.generation_config,
            tensors=tensors,
            maps=self._maps,
        )

    def close(self) -> None:
        """Give the files back; tensor data still referenced elsewhere stays valid, configs stay readable."""
        self.tensors = {}
        maps, self._maps = self._maps, {}
        for mapped in maps.values():
            with suppress(BufferError):  # some view is still alive: its end unmaps the file
                mapped.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether this is a folder with the files of a safetensors checkpoint, sound or not."""
    folder = Path(path)
    return folder.is_dir() and ((folder / _SINGLE).exists() or (folder / _INDEX).exists())


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Map a folder's safetensors files and return configs and tensors; nothing of the tensor data is read or copied.

    path: a folder with config.json and either model.safetensors or model.safetensors.index.json with its shards
    raises: ModelFileError where a file is missing, damaged, inconsistent or hostile;
            UnsupportedModelError for weights in another form
    """
    folder = Path(path)
    _check_form(folder)
    config = load_json(folder / "config.json", max_bytes=MAX_CONFIG_BYTES)
    generation_config: Mapping[str, object] = {}
    if (folder / "generation_config.json").exists():
        generation_config = load_json(folder / "generation_config.json", max_bytes=MAX_CONFIG_BYTES)
    # As transformers does, a whole file goes before an index.
    weight_map = None if (folder / _SINGLE).exists() else _weight_map(folder)
    names = [_SINGLE] if weight_map is None else list(dict.fromkeys(weight_map.values()))
    maps: dict[Path, MappedFile] = {}
    found: dict[Path, list[Entry]] = {}
    with ExitStack() as opened:
        for path_of_part in (folder / name for name in names):
            maps[path_of_part], found[path_of_part] = map_safetensors(path_of_part, opened)
            if weight_map is not None:
                _check_shard(path_of_part, {entry.name for entry in found[path_of_part]}, weight_map)
        opened.pop_all()  # all checks are passed: from here on the views of the tensors keep the maps alive
    tensors = {entry.name: entry.view(maps[part], part) for part, entries in found.items() for entry in entries}
    return Checkpoint(folder, config=config, generation_config=generation_config, tensors=tensors, maps=maps)


def _check_form(folder: Path) -> None:
    """Say what is wrong with a folder that has no safetensors weights."""
    if not folder.is_dir():
        raise ModelFileError(f"{folder}: not a folder; expected one with config.json and model.safetensors")
    if is_checkpoint(folder):
        return
    if (folder / "adapter_config.json").exists():
        raise UnsupportedModelError(
            f"{folder}: holds a LoRA adapter, not a model; load the model that it was trained on, and give this as its "
            "adapter"
        )
    pickled = sorted(file.name for pattern in _PICKLED for file in folder.glob(pattern))
    if pickled:
        raise UnsupportedModelError(
            f"{folder}: the weights are pickled ({pickled[0]}), and unpickling runs whatever code the file holds; "
            "expected model.safetensors: take the repository's safetensors files, or save the model again with "
            "transformers' save_pretrained"
        )
    raise ModelFileError(f"{folder}: got neither {_SINGLE} nor {_INDEX}, expected one of them; download it again")


def _weight_map(folder: Path) -> dict[str, str]:
    """Return tensor name -> file name from the index; every file name is a plain one."""
    source = folder / _INDEX
    weight_map = load_json(source, max_bytes=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{source}: key 'weight_map': got {type(weight_map).__name__}, expected an object")
    files: dict[str, str] = {}
    for tensor, file in weight_map.items():
        # The index must not choose which files of this machine are opened.
        if not isinstance(file, str) or not _SHARD_NAME.fullmatch(file) or ".." in file:
            raise ModelFileError(
                f"{source}: weight_map: got {quoted(str(file))} for tensor {quoted(tensor)}, expected the name of a "
                ".safetensors file in the same folder"
            )
        files[tensor] = file
    shards = sorted(set(files.values()))
    if len(shards) > MAX_SHARDS:
        raise ModelFileError(f"{source}: got {len(shards)} files, expected at most {MAX_SHARDS}")
    for shard in shards:
        if not (folder / shard).exists():
            raise ModelFileError(
                f"{source}: one of its {len(shards)} files, {shard}, is missing; put all parts together, or download "
                "the checkpoint again"
            )
    return files


def _check_shard(path: Path, found: set[str], weight_map: Mapping[str, str]) -> None:
    expected = {tensor for tensor, file in weight_map.items() if file == path.name}
    for tensor in sorted(expected.symmetric_difference(found)):
        problem = "lacks it" if tensor in expected else "holds it too"
        raise ModelFileError(
            f"{path}: tensor {quoted(tensor)}: {_INDEX} names {weight_map.get(tensor)!r} for it, but this file "
            f"{problem}; files of different checkpoints may be mixed, download them again"
        )
