"""Bring files of a hub repository into the cache: look up, receive with resume, verify, put in place.

huggingface_hub supplies addresses, tokens, proxies, certificates, the HTTP session and the cache layout. The bytes are
received here, because its own download restarts from nothing after an interruption: a 2.4 GB file over a line that
drops once would never arrive. A partial file is kept under the checksum of its content, so it can only ever be
continued with the same content, and the whole is verified before it gets its final name.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from phlite.errors import DownloadError
from phlite.hub import cache
from phlite.hub.progress import Progress, counted, format_bytes
from phlite.hub.remote import InterruptedDownload, RemoteFile, endpoint, look_up, open_file

__all__ = ["download"]

WAIT_NOTICE_S = 0.5

# Waits between attempts that brought no byte; an attempt that brought some starts over with the first.
RETRY_WAITS_S = (0.5, 1.0, 2.0, 4.0)


def download(
    repo: str,
    revision: str,
    files: list[str],
    *,
    progress: Progress,
    force: bool = False,
    thorough: bool = False,
    on_commit: Callable[[Path, list[str]], None] | None = None,
) -> Path:
    """Bring these files of one revision into the cache, verified; returns their snapshot folder.

    Files that are there and sound are not fetched again, unless `force`; `thorough` reads them whole to be sure.
    `on_commit` is called with the snapshot folder and the files before the first of them arrives.
    raises: DownloadError
    """
    snapshot: Path | None = None
    for file in files:
        remote = look_up(repo, file, snapshot.name if snapshot else revision)
        if snapshot is None and on_commit is not None:
            on_commit(cache.repo_dir(repo) / "snapshots" / remote.commit, files)
        snapshot = _fetch(remote, progress, force=force, thorough=thorough)
    if snapshot is None:
        raise DownloadError(f"{repo}: no file was asked for.")
    if snapshot.name != revision:
        reference = cache.repo_dir(repo) / "refs" / revision
        with _storing(reference):
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(snapshot.name, encoding="ascii")
    return snapshot


def _fetch(remote: RemoteFile, progress: Progress, *, force: bool, thorough: bool) -> Path:
    folder = cache.repo_dir(remote.repo)
    snapshot = folder / "snapshots" / remote.commit
    blob = folder / "blobs" / remote.etag
    lock = folder.parent / ".locks" / folder.name / f"{remote.etag}.lock"
    with _storing(folder):
        for parent in (blob.parent, lock.parent, (snapshot / remote.file).parent):
            parent.mkdir(parents=True, exist_ok=True)
    with _locked(lock, remote.file, progress):
        if not force and _is_there(remote, snapshot, blob, progress, thorough):
            return snapshot
        partial = blob.with_name(f"{blob.name}.incomplete")
        if force:
            partial.unlink(missing_ok=True)
        cache.write_record(snapshot, remote.file, cache.CheckRecord(remote.etag, remote.size_bytes or 0, 0))
        _receive_and_verify(remote, partial, progress)
        with _storing(blob):
            size_bytes = partial.stat().st_size
            partial.replace(blob)
            path = _link(blob, snapshot / remote.file)
            mtime_ns = path.stat().st_mtime_ns
        cache.write_record(snapshot, remote.file, cache.CheckRecord(remote.etag, size_bytes, mtime_ns))
    return snapshot


@contextlib.contextmanager
def _locked(lock: Path, file: str, progress: Progress) -> Iterator[None]:
    """Keep other processes from fetching the same file: they wait, and then find it done."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    with contextlib.ExitStack() as held:
        with _storing(lock):
            if "timeout" in inspect.signature(WeakFileLock).parameters:  # since 0.30
                try:
                    held.enter_context(WeakFileLock(str(lock), timeout=WAIT_NOTICE_S))
                except TimeoutError:
                    progress.note(f"Another program is downloading {file}; waiting for it.")
                    held.enter_context(WeakFileLock(str(lock)))
            else:
                held.enter_context(WeakFileLock(str(lock)))
        yield


def _is_there(remote: RemoteFile, snapshot: Path, blob: Path, progress: Progress, thorough: bool) -> bool:
    """Whether the content is in the cache, perhaps for another revision, and sound."""
    path = snapshot / remote.file
    if not path.exists():
        if not blob.exists():
            return False
        with _storing(path):
            _link(blob, path)
    with counted(progress, f"Checking {remote.file}", path) as advance:
        problem = cache.check_file(snapshot, remote.file, on_hashed=advance, thorough=thorough)
    if problem:
        progress.note(f"{remote.file} in the cache is damaged ({problem}); it is fetched again.")
    return problem is None


def _receive_and_verify(remote: RemoteFile, partial: Path, progress: Progress) -> None:
    """Fill the partial file and compare its checksum; one that was continued gets a second chance from nothing."""
    for continued in (_size(partial) > 0, False):
        with _storing(partial):
            partial.touch()  # an empty file is complete before anything was received
        _receive(remote, partial, progress)
        with counted(progress, f"Checking {remote.file}", partial) as advance:
            actual = cache.digest(partial, remote.etag, advance)
        if actual is None or actual == remote.etag:
            return
        partial.unlink()
        if not continued:
            raise DownloadError(
                f"{remote.repo}/{remote.file} from {endpoint()} arrived with checksum {actual}, expected {remote.etag}"
                f"; the download was deleted. A proxy or mirror changes the data: try again, or without it."
            )
        progress.note(f"{remote.file}: the continued download does not match its checksum; starting over.")


def _receive(remote: RemoteFile, partial: Path, progress: Progress) -> None:
    """Append to the partial file until it is complete, over as many connections as that takes."""
    _check_space(remote, partial)
    progress.start(f"Downloading {remote.file}", remote.size_bytes, _size(partial))
    failures = 0
    try:
        while _size(partial) != remote.size_bytes:
            before = _size(partial)
            try:
                _receive_once(remote, partial, progress)
                return
            except InterruptedDownload as event:
                failures = 0 if _size(partial) > before else failures + 1
                if failures > len(RETRY_WAITS_S):
                    raise DownloadError(
                        f"{remote.repo}/{remote.file} from {endpoint()}: {event}, and {failures} attempts brought "
                        f"nothing; {_kept(partial, remote)}. Run the command again to continue from there."
                    ) from event
                if failures:
                    time.sleep(event.wait_s or RETRY_WAITS_S[failures - 1])
    finally:
        progress.finish()


def _receive_once(remote: RemoteFile, partial: Path, progress: Progress) -> None:
    """Append what one connection brings; returns when the file is complete.

    raises: InterruptedDownload, DownloadError
    """
    start = _size(partial)
    try:
        with open_file(remote, start) as (position, pieces):
            if position != start:  # the hub, or a proxy, ignores where we asked it to begin
                progress.advance(-start)
            with _storing(partial):
                content = partial.open("ab" if position == start else "wb")
            with content:
                for piece in pieces:
                    with _storing(partial):
                        content.write(piece)
                    progress.advance(len(piece))
    except InterruptedDownload as event:
        if event.lost_partial:
            partial.unlink(missing_ok=True)
            progress.advance(-start)
        raise
    if remote.size_bytes is not None and _size(partial) < remote.size_bytes:
        raise InterruptedDownload(f"the connection ended after {_size(partial)} of {remote.size_bytes} bytes")
    if remote.size_bytes is not None and _size(partial) > remote.size_bytes:
        partial.unlink()
        raise DownloadError(
            f"{remote.repo}/{remote.file} from {endpoint()}: got more than the {remote.size_bytes} bytes that were "
            f"announced; the download was deleted. A proxy or mirror changes the data: try again, or without it."
        )


@contextlib.contextmanager
def _storing(path: Path) -> Iterator[None]:
    """Turn a failure of the disk into a DownloadError that says what to do."""
    try:
        yield
    except OSError as error:
        advice = "check the folder, or set HF_HOME to another one"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "free some space (phlite list, phlite rm), or set HF_HOME to another disk; run again to continue"
        raise DownloadError(f"cannot write {path}: {error.strerror}; {advice}.") from error


def _check_space(remote: RemoteFile, partial: Path) -> None:
    needed_bytes = (remote.size_bytes or 0) - _size(partial)
    free_bytes = shutil.disk_usage(partial.parent).free
    if free_bytes < needed_bytes:
        raise DownloadError(
            f"{remote.file} needs {format_bytes(needed_bytes)} more, {partial.parent} has {format_bytes(free_bytes)} "
            f"free; free some space (phlite list, phlite rm), or set HF_HOME to another disk."
        )


def _link(blob: Path, path: Path) -> Path:
    """Give a blob its name in a snapshot: a relative link, or where links are not possible the file itself."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    wants_links = (os.environ.get("HF_HUB_DISABLE_SYMLINKS") or "").upper() not in ("1", "ON", "YES", "TRUE")
    if wants_links:
        with contextlib.suppress(OSError, NotImplementedError):
            path.symlink_to(os.path.relpath(blob, path.parent))
            return path
    blob.replace(path)
    return path


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _kept(partial: Path, remote: RemoteFile) -> str:
    of = f" of {format_bytes(remote.size_bytes)}" if remote.size_bytes else ""
    return f"{format_bytes(_size(partial))}{of} are kept"
