"""The hub as seen from here: addresses, lookups, one open download, and every failure as one clear line.

The only module that imports huggingface_hub, and only inside functions: that takes about 0.2 s. It works with both
generations of it, the one on requests (before 1.0) and the one on httpx.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from phlite.errors import DownloadError
from phlite.hub.choose import models_among
from phlite.hub.names import check_file_name

__all__ = ["InterruptedDownload", "RemoteFile", "check_settings", "endpoint", "list_files", "look_up", "open_file"]

RETRIED_STATUSES = (408, 429, 500, 502, 503, 504)
MAX_RETRY_AFTER_S = 60.0


class InterruptedDownload(Exception):  # noqa: N818 -- an event that a retry answers, no error of the caller
    """The content did not arrive whole, and another attempt may bring the rest.

    wait_s:       how long the hub asks to wait, 0 if it does not say
    lost_partial: what was received before cannot be continued
    """

    def __init__(self, what: str, *, wait_s: float = 0.0, lost_partial: bool = False) -> None:
        super().__init__(what)
        self.wait_s = wait_s
        self.lost_partial = lost_partial


@dataclass(frozen=True)
class RemoteFile:
    """One file as the hub announces it; size_bytes is None when it does not say."""

    repo: str
    file: str
    commit: str
    etag: str
    size_bytes: int | None


def endpoint() -> str:
    """Address of the hub: HF_ENDPOINT, or the public one; without a final slash."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def list_files(repo: str, revision: str) -> list[str]:
    """Names of all files of a repository.

    raises: DownloadError (repository or revision not found, no access, no network)
    """
    check_settings()
    from huggingface_hub import HfApi

    with explained(repo, None, revision):
        api = HfApi(endpoint=endpoint(), library_name="phlite")
        info = api.model_info(repo, revision=revision, timeout=_timeout_s("HF_HUB_ETAG_TIMEOUT"))
        return [sibling.rfilename for sibling in info.siblings or []]


def look_up(repo: str, file: str, revision: str) -> RemoteFile:
    """Ask for the commit, checksum and size of one file.

    raises: DownloadError (nothing there, no access, no network, or an answer that no hub gives)
    """
    check_settings()
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    check_file_name(file, repo)
    with explained(repo, file, revision):
        url = hf_hub_url(repo, file, revision=revision, endpoint=endpoint())
        found = get_hf_file_metadata(url, timeout=_timeout_s("HF_HUB_ETAG_TIMEOUT"))
    commit, etag = found.commit_hash or "", found.etag or ""
    # Both become names in the cache: a hostile or broken mirror must not choose where we write.
    if not re.fullmatch(r"[0-9a-f]{40}", commit) or not re.fullmatch(r"\w[\w.-]{0,127}", etag):
        raise DownloadError(
            f"{endpoint()} does not answer as a hub for {repo}/{file}: commit {commit!r}, etag {etag!r}; "
            f"expected a commit of 40 hex digits and an etag. Check HF_ENDPOINT and the proxy."
        )
    return RemoteFile(repo, file, commit, etag, found.size)


@contextlib.contextmanager
def open_file(remote: RemoteFile, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Open the content of a file from byte `start`; gives the position the hub really begins at, and the pieces.

    raises: InterruptedDownload when trying again may help, also from within the body; DownloadError when it will not
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    # The address under resolve/, not the one it redirects to: that one is signed and expires during long downloads.
    url = hf_hub_url(remote.repo, remote.file, revision=remote.commit, endpoint=endpoint())
    headers = {**build_hf_headers(library_name="phlite"), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with explained(remote.repo, remote.file, remote.commit):
        try:
            with _get(url, headers) as (response, pieces):
                status = response.status_code
                if status == 416:
                    raise InterruptedDownload("the hub cannot continue the partial file", lost_partial=True)
                if status in RETRIED_STATUSES:
                    wait = response.headers.get("Retry-After") or ""
                    wait_s = min(float(wait), MAX_RETRY_AFTER_S) if wait.isdecimal() else 0.0
                    raise InterruptedDownload(f"the hub answered HTTP {status}", wait_s=wait_s)
                hf_raise_for_status(response)
                given = re.match(r"bytes (\d+)-", response.headers.get("Content-Range") or "")
                yield int(given.group(1)) if status == 206 and given else 0, pieces
        except _transport_errors() as error:
            if getattr(error, "response", None) is not None:
                raise
            raise InterruptedDownload(f"the connection broke ({_reason(error)})") from error


@contextlib.contextmanager
def _get(url: str, headers: dict[str, str]) -> Iterator[tuple[Any, Iterator[bytes]]]:
    """Response and its pieces as they arrive, from the session of either generation of huggingface_hub."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    session: Any = get_session()
    timeout_s = _timeout_s("HF_HUB_DOWNLOAD_TIMEOUT")
    if callable(session.stream):  # httpx; the attribute of that name in requests is a flag
        with session.stream("GET", url, headers=headers, timeout=timeout_s, follow_redirects=True) as response:
            yield response, response.iter_bytes()
    else:
        with session.get(url, headers=headers, timeout=timeout_s, stream=True) as response:
            yield response, response.iter_content(64 << 10)


@contextlib.contextmanager
def explained(repo: str, file: str | None, revision: str) -> Iterator[None]:
    """Turn what huggingface_hub and its HTTP library raise into a DownloadError of one line."""
    from huggingface_hub import errors

    what = f"{repo}/{file}" if file else repo
    hub = endpoint()
    try:
        yield
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{repo} on {hub} is gated (HTTP {error.response.status_code}): accept its terms at {hub}/{repo}, "
            f"then set HF_TOKEN to a token of that account."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DownloadError(
            f"there is no repository {repo} on {hub} (HTTP {error.response.status_code}), or it is private: "
            f"check the spelling, or set HF_TOKEN to a token that may read it."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(f"{repo} on {hub} has no revision {revision!r}; leave it out for the newest.") from error
    except errors.EntryNotFoundError as error:
        raise DownloadError(f"{repo} on {hub} has no file {file!r}; {_what_it_has(repo, revision)}") from error
    except errors.OfflineModeIsEnabled as error:
        raise DownloadError(f"{what} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it; unset it.") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        advice = {
            401: "the token is not accepted: check HF_TOKEN",
            403: "this account may not read it: check HF_TOKEN and the terms of the repository",
            429: "too many requests: wait a while, or set HF_TOKEN for a higher limit",
        }.get(status, "the hub has a problem: try again later" if status >= 500 else "check HF_ENDPOINT and the proxy")
        raise DownloadError(f"{what} from {hub}: HTTP {status}; {advice}.") from error
    except errors.FileMetadataError as error:
        raise DownloadError(f"{hub} does not answer as a hub for {what}; check HF_ENDPOINT and the proxy.") from error
    except _transport_errors() as error:
        raise DownloadError(
            f"cannot reach {hub} for {what} ({_reason(error)}); check the network, HTTPS_PROXY and HF_ENDPOINT."
        ) from error
    except errors.HFValidationError as error:
        raise DownloadError(f"{repo!r} is not a repository name ({error}); expected owner/repo.") from error


def check_settings() -> None:
    """Refuse values of environment variables that would make huggingface_hub fail when it is imported.

    raises: DownloadError
    """
    for variable in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        _timeout_s(variable)


def _timeout_s(variable: str) -> int:
    """Seconds that the hub may stay silent, by huggingface_hub's own environment variables."""
    text = os.environ.get(variable) or "10"
    if not text.isdecimal() or int(text) == 0:
        raise DownloadError(f"{variable} is {text!r}; expected a whole number of seconds, 1 or more.")
    return int(text)


def _what_it_has(repo: str, revision: str) -> str:
    try:
        models = models_among(list_files(repo, revision))
    except DownloadError:
        return "check the spelling."
    return f"it has {', '.join(models)}." if models else "it has no GGUF file at all."


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words; HTTP libraries wrap it several times."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _transport_errors() -> tuple[type[Exception], ...]:
    """The base exception of the session's HTTP library: httpx.HTTPError or requests.RequestException."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    for kind in type(get_session()).__mro__:
        library = kind.__module__.partition(".")[0]
        if library in ("httpx", "httpx2", "requests"):
            module = importlib.import_module(library)
            return (getattr(module, "RequestException", None) or module.HTTPError,)
    return (ConnectionError, TimeoutError)
