"""The download cache on disk: find and check model files without the network.

The layout is huggingface_hub's, shared with every other program that uses it:

    <cache>/models--owner--repo/blobs/<etag>                        content; the etag of a model file is its sha256
                                blobs/<etag>.incomplete             a download that was interrupted
                                snapshots/<commit>/<file>           link to a blob (or the file itself, without links)
                                refs/<branch>                       the commit a branch pointed to when it was fetched
                                .phlite/<commit>/<file>.json        ours: what was checked, so that it is checked once

A file is sound when its size and modification time are those recorded when its checksum was last verified, and it
begins as a GGUF file. Anything else is verified again, once, by reading it whole.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from phlite.errors import DownloadError

__all__ = ["CheckRecord", "cache_dir", "check_file", "find_snapshot", "repo_dir"]

HASH_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class CheckRecord:
    """What is known of one cached file.

    etag:       the hub's identity of the content: sha256 (64 hex digits), git blob sha1 (40), or opaque
    size_bytes: size the hub announced
    mtime_ns:   modification time of the content when its checksum was verified; 0 while a download runs
    """

    etag: str
    size_bytes: int
    mtime_ns: int


def cache_dir() -> Path:
    """Folder of the download cache, by huggingface_hub's own environment variables, read at each call."""
    env = os.environ
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if env.get(variable):
            return Path(os.path.expandvars(env[variable])).expanduser()
    if env.get("HF_HOME"):
        return Path(os.path.expandvars(env["HF_HOME"])).expanduser() / "hub"
    base = Path(os.path.expandvars(env["XDG_CACHE_HOME"])) if env.get("XDG_CACHE_HOME") else Path.home() / ".cache"
    return base.expanduser() / "huggingface" / "hub"


def repo_dir(repo: str) -> Path:
    """Folder of one repository in the cache."""
    return cache_dir() / f"models--{repo.replace('/', '--')}"


def find_snapshot(repo: str, revision: str) -> Path | None:
    """Folder of the files of a branch, tag or commit as last fetched, or None."""
    folder = repo_dir(repo)
    commit = revision
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        try:
            commit = (folder / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def check_file(
    snapshot: Path, file: str, *, on_hashed: Callable[[int], None] | None = None, thorough: bool = False
) -> str | None:
    """Verify one file of a snapshot; returns None when it is sound, else what is wrong with it in a few words.

    Reads the file whole only when its checksum has not been verified since it last changed, or when `thorough`;
    `on_hashed` is then called with the number of bytes after each piece.
    raises: DownloadError if it cannot be read, which is no damage: it may be another user's
    """
    path = snapshot / file
    try:
        status = path.stat()
    except OSError:
        return "its content is missing" if path.is_symlink() else "it is missing"
    record = read_record(snapshot, file)
    etag = record.etag if record else (Path(os.readlink(path)).name if path.is_symlink() else "")
    if record and record.size_bytes not in (0, status.st_size):
        return f"it has {status.st_size} of {record.size_bytes} bytes"
    try:
        if file.lower().endswith(".gguf") and not begins_as_gguf(path):
            return "it does not begin as a GGUF file"
        if record and record.mtime_ns == status.st_mtime_ns and not thorough:
            return None
        actual = digest(path, etag, on_hashed)
    except OSError as error:
        raise DownloadError(f"{path} cannot be read: {error.strerror}; check its permissions and the disk.") from error
    if actual is not None and actual != etag:
        return f"its checksum is {actual[:12]}..., the hub's is {etag[:12]}..."
    write_record(snapshot, file, CheckRecord(etag, status.st_size, status.st_mtime_ns))
    return None


def digest(path: Path, etag: str, on_hashed: Callable[[int], None] | None = None) -> str | None:
    """Checksum of a file in the form of its etag: sha256, git blob sha1, or None for an etag that is no checksum."""
    import hashlib

    if re.fullmatch(r"[0-9a-f]{64}", etag):
        hasher = hashlib.sha256()
    elif re.fullmatch(r"[0-9a-f]{40}", etag):
        hasher = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    else:
        return None
    with path.open("rb") as content:
        while chunk := content.read(HASH_CHUNK_BYTES):
            hasher.update(chunk)
            if on_hashed:
                on_hashed(len(chunk))
    return hasher.hexdigest()


def record_path(snapshot: Path, file: str) -> Path:
    """Where the check record of one snapshot file lies."""
    return snapshot.parent.parent / ".phlite" / snapshot.name / f"{file}.json"


def read_record(snapshot: Path, file: str) -> CheckRecord | None:
    """The check record of one snapshot file; None when there is none or it is unreadable."""
    import json

    try:
        fields = json.loads(record_path(snapshot, file).read_bytes())
        return CheckRecord(str(fields["etag"]), int(fields["size_bytes"]), int(fields["mtime_ns"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_record(snapshot: Path, file: str, record: CheckRecord) -> None:
    """Remember a check. A cache that cannot be written (a shared, read-only one) stays usable: it is checked again."""
    import json

    path = record_path(snapshot, file)
    text = json.dumps({"etag": record.etag, "size_bytes": record.size_bytes, "mtime_ns": record.mtime_ns})
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(text, encoding="ascii")
        temporary.replace(path)


def read_file_list(snapshot: Path) -> list[str] | None:
    """The files of the snapshot's checkpoint, as the hub named them when it was fetched; None when it never was."""
    import json

    try:
        files = json.loads(file_list_path(snapshot).read_bytes())
    except (OSError, ValueError):
        return None
    return files if isinstance(files, list) and all(isinstance(file, str) for file in files) else None


def write_file_list(snapshot: Path, files: list[str]) -> None:
    """Remember which files a checkpoint consists of, so that one that was interrupted is not taken for a whole one."""
    import json

    path = file_list_path(snapshot)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(files), encoding="utf-8")


def file_list_path(snapshot: Path) -> Path:
    """Where the file list of a checkpoint lies."""
    return snapshot.parent.parent / ".phlite" / snapshot.name / "checkpoint.list"


def discard_file(snapshot: Path, file: str) -> None:
    """Delete a damaged file and its content, so that it is fetched anew.

    raises: DownloadError if it cannot be deleted
    """
    path = snapshot / file
    blob = blob_of(path)
    try:
        for victim in (blob, path, record_path(snapshot, file)):
            if victim:
                victim.unlink(missing_ok=True)
    except OSError as error:
        raise DownloadError(f"{path} is damaged and cannot be deleted ({error.strerror}); delete it.") from error


def blob_of(path: Path) -> Path | None:
    """The blob a snapshot link points to, one hop and inside the same repository folder only; else None."""
    if not path.is_symlink():
        return None
    target = Path(os.path.normpath(path.parent / os.readlink(path)))
    return target if target.parent.name == "blobs" and target.parent.parent in path.parents else None


def begins_as_gguf(path: Path) -> bool:
    """Whether the file starts with the magic number."""
    with path.open("rb") as content:
        return content.read(4) == b"GGUF"
