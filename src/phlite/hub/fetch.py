"""A name in, files on disk out: the one door of this package that the rest of phlite uses."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from phlite.errors import DownloadError
from phlite.hub import cache
from phlite.hub.choose import checkpoint_among, choose_model, models_among, shards_of
from phlite.hub.names import Source, resolve
from phlite.hub.progress import NoProgress, Progress, TerminalProgress, counted

__all__ = ["LocalModel", "fetch"]


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine.

    name:     as the user gave it
    paths:    the GGUF file, or all shards of a split one in order, or all files of a checkpoint; every one exists
    repo:     "owner/name" when it came from the hub
    revision: the commit it came from
    folder:   where the files of a safetensors checkpoint lie; None for a GGUF file

    A GGUF file holds its own configuration and vocabulary: a config.json or tokenizer.json beside it is not part of the
    model, and a file without a vocabulary is refused when it is loaded.
    """

    name: str
    paths: tuple[Path, ...]
    repo: str | None = None
    revision: str | None = None
    folder: Path | None = None

    @property
    def base_name(self) -> str:
        """What its publisher calls it: the repository's name without the owner, else the file's or folder's."""
        if self.repo is not None:
            return self.repo.partition("/")[2]
        return self.paths[0].stem if self.folder is None else self.folder.resolve().name

    @property
    def gguf(self) -> Path:
        """The file to open: the model, or its first shard; raises DownloadError for a checkpoint folder."""
        if self.folder is not None:
            raise DownloadError(
                f"{self.name} is a checkpoint of safetensors files, and this needs a GGUF file: make one with "
                f"`phlite convert {self.name} model.gguf`."
            )
        return self.paths[0]


def fetch(
    name: str,
    *,
    progress: Progress | bool = False,
    offline: bool | None = None,
    force: bool = False,
    refresh: bool = False,
    checkpoint: bool = False,
) -> LocalModel:
    """Find a model's files, downloading what is not in the cache.

    A cached model is used without any network request. Its size, first bytes and recorded checksum are looked at each
    time; damaged files are fetched again.

    name:     see phlite.hub.names
    progress: True for bars on stderr, False for silence, or an object of your own
    offline:  never use the network; None means what HF_HUB_OFFLINE says
    refresh:  ask the hub for the newest revision, and verify the whole content of what is cached
    force:    download again whatever the cache holds
    checkpoint: the safetensors files are wanted, also where there is a GGUF file; without it, only where there is none
    raises:   DownloadError
    """
    shown = progress if not isinstance(progress, bool) else TerminalProgress() if progress else NoProgress()
    source = resolve(name, checkpoint=checkpoint)
    if source.path is not None:
        return _local_model(source, source.path, checkpoint)
    if offline is None:
        offline = (os.environ.get("HF_HUB_OFFLINE") or "").upper() in ("1", "ON", "YES", "TRUE")
    if offline and (force or refresh):
        raise DownloadError(f"{name} cannot be downloaded again in offline mode; leave out --offline (HF_HUB_OFFLINE).")
    if not force and not refresh:
        cached = _cached_model(source, shown, offline, checkpoint)
        if cached:
            return cached
    if offline:
        raise DownloadError(
            f"{name} ({source.repo}) is not in the cache {cache.cache_dir()}, and offline mode forbids to fetch it; "
            f"run `phlite pull {name}` once with a network."
        )
    return _downloaded_model(source, shown, force, refresh, checkpoint)


def _local_model(source: Source, path: Path, checkpoint: bool) -> LocalModel:
    if checkpoint and not path.is_dir():
        raise DownloadError(f"{path} is no folder; expected one with config.json and safetensors files.")
    if path.is_dir():
        files = [child.relative_to(path).as_posix() for child in sorted(path.glob("*")) if child.is_file()]
        if checkpoint or not models_among(files):
            weights = checkpoint_among(files, str(path))
            if weights or checkpoint or "config.json" in files:  # what a folder without weights lacks, its reader says
                return LocalModel(source.name, tuple(path / file for file in weights), folder=path)
        chosen, _ = choose_model(files, None, str(path))
        return LocalModel(source.name, _existing_shards(path / chosen))
    if not path.exists():
        if source.name == "haiku":
            raise DownloadError(f"this installation of phlite lacks its embedded model {path}; install it again.")
        parts = path.as_posix().split("/")
        hint = f"; for a file on the hub write {parts[0]}/{parts[1]}:{'/'.join(parts[2:])}" if len(parts) == 3 else ""
        raise DownloadError(f"there is no file or folder {path}{hint}.")
    return LocalModel(source.name, _existing_shards(path))


def _existing_shards(path: Path) -> tuple[Path, ...]:
    shards = tuple(path.with_name(name) for name in shards_of(path.name))
    for shard in shards:
        if not shard.is_file():
            raise DownloadError(f"{path.name} is split, but its part {shard} is missing; put all parts together.")
    return shards


def _cached_model(source: Source, progress: Progress, offline: bool, checkpoint: bool) -> LocalModel | None:
    """The model in the cache, or None when it has to be fetched (damaged files have been deleted then)."""
    assert source.repo is not None
    snapshot = cache.find_snapshot(source.repo, source.revision)
    if snapshot is None:
        return None
    file = None if checkpoint else source.file or _cached_choice(source, snapshot, offline)
    files = shards_of(file) if file else _cached_checkpoint(source, snapshot, offline)
    if not files:
        return None
    for name in files:
        if not os.path.lexists(snapshot / name):
            return None
        with counted(progress, f"Checking {name}", snapshot / name) as advance:
            problem = cache.check_file(snapshot, name, on_hashed=advance)
        if problem and offline:
            raise DownloadError(
                f"{snapshot / name} is damaged ({problem}), and offline mode forbids to fetch it again; "
                f"run `phlite pull {source.name}` with a network."
            )
        if problem:
            progress.note(f"{name} in the cache is damaged ({problem}); it is fetched again.")
            cache.discard_file(snapshot, name)
            return None
    return _hub_model(source, snapshot, files, is_checkpoint=file is None)


def _cached_choice(source: Source, snapshot: Path, offline: bool) -> str | None:
    """Which cached file a repository without a file name means: of what was pulled, by the usual preference."""
    files = [path.relative_to(snapshot).as_posix() for path in snapshot.glob("**/*.gguf")]
    try:
        return choose_model(files, source.quant, f"the cache of {source.repo}")[0]
    except DownloadError:
        if offline and files:
            raise
        return None


def _cached_checkpoint(source: Source, snapshot: Path, offline: bool) -> list[str]:
    """The files of a cached checkpoint: all that the hub named, or offline whatever another program put there."""
    if source.file is not None or source.quant is not None:
        return []
    files = cache.read_file_list(snapshot)
    if files is None and offline:
        found = [child.name for child in sorted(snapshot.iterdir())]
        files = checkpoint_among(found, f"the cache of {source.repo}")
    return files or []


def _downloaded_model(source: Source, progress: Progress, force: bool, refresh: bool, checkpoint: bool) -> LocalModel:
    # Imported here: a cached model must not pay for it.
    from phlite.hub.download import download
    from phlite.hub.remote import list_files

    assert source.repo is not None
    file, files = source.file, []
    if file is None or checkpoint:
        found = list_files(source.repo, source.revision)
        files = _checkpoint_files(source, found, checkpoint)
        if not files:
            file, others = choose_model(found, source.quant, source.repo)
            if others and source.quant is None:
                progress.note(f"{source.repo} has {len(others) + 1} models; chose {file}. Others: {', '.join(others)}")
    is_checkpoint = bool(files)
    if file is not None and not is_checkpoint:
        files = shards_of(file)
    on_commit = cache.write_file_list if is_checkpoint else None
    snapshot = download(
        source.repo, source.revision, files, progress=progress, force=force, thorough=refresh, on_commit=on_commit
    )
    return _hub_model(source, snapshot, files, is_checkpoint=is_checkpoint)


def _checkpoint_files(source: Source, found: list[str], checkpoint: bool) -> list[str]:
    """The files of the repository's checkpoint, where that is wanted or all there is; else []."""
    assert source.repo is not None
    if models_among(found) and not checkpoint:
        return []
    files = checkpoint_among(found, source.repo)
    if not files and checkpoint:
        raise DownloadError(f"{source.repo} has no model.safetensors, nor an index of its parts; nothing to convert.")
    if files and source.quant is not None:
        raise DownloadError(
            f"{source.repo} has no {source.quant} model, but a safetensors checkpoint: load {source.repo} with --quant "
            f"{source.quant} (quant= in Python) to quantise it."
        )
    return files


def _hub_model(source: Source, snapshot: Path, files: list[str], *, is_checkpoint: bool) -> LocalModel:
    paths = tuple(snapshot / file for file in files)
    folder = snapshot if is_checkpoint else None
    return LocalModel(source.name, paths, repo=source.repo, revision=snapshot.name, folder=folder)
