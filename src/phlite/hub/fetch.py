"""A name in, files on disk out: the one door of this package that the rest of phlite uses."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from phlite.errors import DownloadError
from phlite.hub import cache
from phlite.hub.choose import choose_model, shards_of
from phlite.hub.names import Source, resolve
from phlite.hub.progress import NoProgress, Progress, TerminalProgress, counted

__all__ = ["LocalModel", "fetch"]


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine.

    name:     as the user gave it
    paths:    the GGUF file, or all shards of a split one in order; every one exists
    repo:     "owner/name" when it came from the hub
    revision: the commit it came from

    A GGUF file holds its own configuration and vocabulary: a config.json or tokenizer.json beside it is not part of the
    model, and a file without a vocabulary is refused when it is loaded.
    """

    name: str
    paths: tuple[Path, ...]
    repo: str | None = None
    revision: str | None = None

    @property
    def gguf(self) -> Path:
        """The file to open: the model, or its first shard."""
        return self.paths[0]


def fetch(
    name: str,
    *,
    progress: Progress | bool = False,
    offline: bool | None = None,
    force: bool = False,
    refresh: bool = False,
) -> LocalModel:
    """Find a model's files, downloading what is not in the cache.

    A cached model is used without any network request. Its size, first bytes and recorded checksum are looked at each
    time; damaged files are fetched again.

    name:     see phlite.hub.names
    progress: True for bars on stderr, False for silence, or an object of your own
    offline:  never use the network; None means what HF_HUB_OFFLINE says
    refresh:  ask the hub for the newest revision, and verify the whole content of what is cached
    force:    download again whatever the cache holds
    raises:   DownloadError
    """
    shown = progress if not isinstance(progress, bool) else TerminalProgress() if progress else NoProgress()
    source = resolve(name)
    if source.path is not None:
        return _local_model(source, source.path)
    if offline is None:
        offline = (os.environ.get("HF_HUB_OFFLINE") or "").upper() in ("1", "ON", "YES", "TRUE")
    if offline and (force or refresh):
        raise DownloadError(f"{name} cannot be downloaded again in offline mode; leave out --offline (HF_HUB_OFFLINE).")
    if not force and not refresh:
        cached = _cached_model(source, shown, offline)
        if cached:
            return cached
    if offline:
        raise DownloadError(
            f"{name} ({source.repo}) is not in the cache {cache.cache_dir()}, and offline mode forbids to fetch it; "
            f"run `phlite pull {name}` once with a network."
        )
    return _downloaded_model(source, shown, force, refresh)


def _local_model(source: Source, path: Path) -> LocalModel:
    if path.is_dir():
        files = [child.relative_to(path).as_posix() for child in sorted(path.glob("*")) if child.is_file()]
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


def _cached_model(source: Source, progress: Progress, offline: bool) -> LocalModel | None:
    """The model in the cache, or None when it has to be fetched (damaged files have been deleted then)."""
    assert source.repo is not None
    snapshot = cache.find_snapshot(source.repo, source.revision)
    if snapshot is None:
        return None
    file = source.file or _cached_choice(source, snapshot, offline)
    if file is None:
        return None
    files = shards_of(file)
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
    return _hub_model(source, snapshot, files)


def _cached_choice(source: Source, snapshot: Path, offline: bool) -> str | None:
    """Which cached file a repository without a file name means: of what was pulled, by the usual preference."""
    files = [path.relative_to(snapshot).as_posix() for path in snapshot.glob("**/*.gguf")]
    try:
        return choose_model(files, source.quant, f"the cache of {source.repo}")[0]
    except DownloadError:
        if offline and files:
            raise
        return None


def _downloaded_model(source: Source, progress: Progress, force: bool, refresh: bool) -> LocalModel:
    # Imported here: a cached model must not pay for it.
    from phlite.hub.download import download
    from phlite.hub.remote import list_files

    assert source.repo is not None
    file = source.file
    if file is None:
        file, others = choose_model(list_files(source.repo, source.revision), source.quant, source.repo)
        if others and source.quant is None:
            progress.note(f"{source.repo} has {len(others) + 1} models; chose {file}. Others: {', '.join(others)}")
    files = shards_of(file)
    snapshot = download(source.repo, source.revision, files, progress=progress, force=force, thorough=refresh)
    return _hub_model(source, snapshot, files)


def _hub_model(source: Source, snapshot: Path, files: list[str]) -> LocalModel:
    paths = tuple(snapshot / file for file in files)
    return LocalModel(source.name, paths, repo=source.repo, revision=snapshot.name)
