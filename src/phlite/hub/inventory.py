"""What the download cache holds: list its models and remove them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from phlite.errors import DownloadError
from phlite.hub.cache import (
    begins_as_gguf,
    blob_of,
    cache_dir,
    file_list_path,
    read_file_list,
    read_record,
    record_path,
    repo_dir,
)
from phlite.hub.choose import shards_of
from phlite.hub.names import name_of, name_of_checkpoint

__all__ = ["CHECKPOINT", "CachedModel", "cached_models", "remove_model"]

CHECKPOINT = "*.safetensors"
"""Stands for the files of a checkpoint, which are listed and deleted together."""

# ok: its checksum was verified; unchecked: another program put it there, it is verified when first used;
# partial: the download was interrupted and continues with the next one; damaged: it is fetched again when next used
State = Literal["ok", "unchecked", "partial", "damaged"]


@dataclass(frozen=True)
class CachedModel:
    """One model file, or one checkpoint, in the cache.

    file:        path in the repository, CHECKPOINT for a safetensors checkpoint with its configs and tokenizer
    path:        where it is, a checkpoint's folder
    size_bytes:  what lies on disk
    total_bytes: what it should be, 0 if unknown
    """

    name: str
    repo: str
    revision: str
    file: str
    path: Path
    size_bytes: int
    total_bytes: int
    state: State


def cached_models() -> list[CachedModel]:
    """Every model file in the cache, whoever downloaded it, sorted by name; shards of one model are one entry each."""
    root = cache_dir()
    models = []
    for folder in sorted(root.glob("models--*--*")) if root.is_dir() else []:
        repo = folder.name.removeprefix("models--").replace("--", "/", 1)
        models += [_describe(folder, repo, snapshot, file) for snapshot, file in _model_files(folder)]
        models += [_describe_checkpoint(folder, repo, snapshot, files) for snapshot, files in _checkpoints(folder)]
    return sorted(models, key=lambda model: (model.name, model.revision))


def remove_model(repo: str, file: str | None) -> int:
    """Delete one model (all its shards, every revision; CHECKPOINT), or with file=None all models of a repository.

    Content that another file still links to stays. Returns the bytes freed; 0 when nothing was cached.
    raises: DownloadError if something cannot be deleted
    """
    folder = repo_dir(repo)
    wanted = None if file is None else set(shards_of(file))
    victims = [(s, f) for s, f in _model_files(folder) if wanted is None or f in wanted]
    checkpoints = [*_checkpoints(folder)] if file in (None, CHECKPOINT) else []
    victims += [(snapshot, name) for snapshot, names in checkpoints for name in names]
    freed_bytes = 0
    try:
        for snapshot, name in victims:
            freed_bytes += _remove_file(folder, snapshot, name)
        for snapshot, _ in checkpoints:
            file_list_path(snapshot).unlink(missing_ok=True)
        _prune(folder)
    except OSError as error:
        raise DownloadError(f"cannot delete {error.filename}: {error.strerror}; close programs that use it.") from error
    return freed_bytes


def _model_files(folder: Path) -> Iterator[tuple[Path, str]]:
    """(snapshot, file) of every model file of a repository, complete or begun."""
    seen = set()
    for base, suffix in ((folder / "snapshots", ""), (folder / ".phlite", ".json")):
        for path in sorted(base.glob(f"*/**/*.gguf{suffix}")):
            commit, *parts = path.relative_to(base).parts
            found = (folder / "snapshots" / commit, "/".join(parts).removesuffix(suffix))
            if found not in seen:
                seen.add(found)
                yield found


def _checkpoints(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """(snapshot, files) of every checkpoint of a repository that was fetched, complete or begun."""
    for path in sorted((folder / ".phlite").glob("*/")):
        snapshot = folder / "snapshots" / path.name
        files = read_file_list(snapshot)
        if files:
            yield snapshot, files


def _describe_checkpoint(folder: Path, repo: str, snapshot: Path, files: list[str]) -> CachedModel:
    parts = [_describe(folder, repo, snapshot, file) for file in files if read_record(snapshot, file) is not None]
    states = {part.state for part in parts}
    state: State = "ok"
    if len(parts) < len(files):
        state = "partial"
    for worst in ("unchecked", "partial", "damaged"):
        if worst in states:
            state = worst
    size_bytes = sum(part.size_bytes for part in parts)
    total_bytes = sum(part.total_bytes for part in parts) if len(parts) == len(files) else 0
    name = name_of_checkpoint(repo)
    return CachedModel(name, repo, snapshot.name, CHECKPOINT, snapshot, size_bytes, total_bytes, state)


def _describe(folder: Path, repo: str, snapshot: Path, file: str) -> CachedModel:
    path = snapshot / file
    record = read_record(snapshot, file)
    total_bytes = record.size_bytes if record else 0
    size_bytes = 0
    state: State
    if path.exists():
        status = path.stat()
        size_bytes = status.st_size
        try:
            is_gguf = file.lower().endswith(".gguf")
            sound = total_bytes in (0, size_bytes) and (not is_gguf or begins_as_gguf(path))
        except OSError:
            sound = False
        checked = record is not None and record.mtime_ns == status.st_mtime_ns
        state = "damaged" if not sound else "ok" if checked else "unchecked"
    elif path.is_symlink() or record is None:
        state = "damaged"
    else:
        partial = folder / "blobs" / f"{record.etag}.incomplete"
        size_bytes = partial.stat().st_size if partial.exists() else 0
        state = "partial"
    return CachedModel(name_of(repo, file), repo, snapshot.name, file, path, size_bytes, total_bytes, state)


def _remove_file(folder: Path, snapshot: Path, file: str) -> int:
    path = snapshot / file
    record = read_record(snapshot, file)
    blob = blob_of(path)
    freed_bytes = 0
    if path.exists() and blob is None:
        freed_bytes += path.stat().st_size
    path.unlink(missing_ok=True)
    if blob and not any(blob_of(other) == blob for other in (folder / "snapshots").glob("*/**/*")):
        freed_bytes += blob.stat().st_size if blob.exists() else 0
        blob.unlink(missing_ok=True)
    if record and re.fullmatch(r"[\w.-]+", record.etag):
        partial = folder / "blobs" / f"{record.etag}.incomplete"
        freed_bytes += partial.stat().st_size if partial.exists() else 0
        partial.unlink(missing_ok=True)
    record_path(snapshot, file).unlink(missing_ok=True)
    return freed_bytes


def _prune(folder: Path) -> None:
    """Delete empty folders, references to deleted snapshots, and the repository's folder when nothing is left in it."""
    for top in ("snapshots", ".phlite"):
        for path in sorted((folder / top).glob("**/"), reverse=True):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
    for reference in [path for path in (folder / "refs").glob("**/*") if path.is_file()]:
        if not (folder / "snapshots" / reference.read_text(encoding="ascii", errors="replace").strip()).is_dir():
            reference.unlink()
    blobs = folder / "blobs"
    if folder.is_dir() and not (folder / "snapshots").is_dir() and not (blobs.is_dir() and any(blobs.iterdir())):
        import shutil

        shutil.rmtree(folder)
