"""A model hub on this machine for tests: the protocol of the real one, with faults on demand.

Two servers, as in reality: the hub answers /api/models/... and /owner/repo/resolve/..., and redirects the content of
files to a content server ("CDN") of another origin. The hub also serves as an HTTP proxy to both. Every request is kept
in `requests`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Request(NamedTuple):
    server: str  # "hub" or "cdn"
    method: str
    path: str
    headers: dict[str, str]  # names in lower case


@dataclass
class Repository:
    files: dict[str, bytes]
    token: str | None = None  # needed to read it
    gated: bool = False
    announced: dict[str, str] = field(default_factory=dict)  # file -> etag, where it should not be the true sha256

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files)).encode()).hexdigest()

    def etag(self, file: str) -> str:
        return self.announced.get(file, hashlib.sha256(self.files[file]).hexdigest())


class HubServer:
    """Serve `repositories`; faults are consumed one per content request, in order.

    faults: ("cut", n)      send n bytes of what was asked for, then close the connection
            ("stall", n)    send n bytes, then nothing; the connection closes when `resume` is set
            ("pause", n)    send n bytes, and the rest when `resume` is set
            ("status", n)   answer with this HTTP status
            ("no range",)   ignore the Range header
            ("corrupt",)    send the right number of wrong bytes
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.faults: list[tuple[str | int, ...]] = []
        self.stalled = threading.Event()
        self.resume = threading.Event()
        self.is_a_hub = True  # False: answer everything like any web server
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), self._handler(name)) for name in ("hub", "cdn")]
        self.endpoint, self.cdn = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def add(self, repo: str, files: dict[str, bytes], **options: object) -> Repository:
        self.repositories[repo] = Repository(files, **options)  # type: ignore[arg-type]
        return self.repositories[repo]

    def content_requests(self) -> list[Request]:
        """The requests that asked for bytes of a file."""
        return [request for request in self.requests if request.server == "cdn" and request.method == "GET"]

    @contextlib.contextmanager
    def running(self) -> Iterator[HubServer]:
        threads = [threading.Thread(target=s.serve_forever, kwargs={"poll_interval": 0.02}) for s in self._servers]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self.resume.set()
            for server in self._servers:
                server.shutdown()
                server.server_close()
            for thread in threads:
                thread.join()

    def _handler(self, name: str) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 10

            def do_HEAD(self) -> None:
                self._answer()

            def do_GET(self) -> None:
                self._answer()

            def log_message(self, format: str, *args: object) -> None:
                pass

            def _answer(self) -> None:
                headers = {key.lower(): value for key, value in self.headers.items()}
                hub.requests.append(Request(name, self.command, self.path, headers))
                server = name
                if self.path.startswith("http://"):  # asked as a proxy
                    server = "cdn" if self.path.startswith(hub.cdn) else "hub"
                    self.path = "/" + self.path.removeprefix("http://").partition("/")[2]
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    if server == "hub":
                        hub._answer_hub(self, headers)
                    else:
                        hub._answer_cdn(self, headers)

        return Handler

    def _answer_hub(self, handler: BaseHTTPRequestHandler, headers: dict[str, str]) -> None:
        if not self.is_a_hub:
            return self._send(handler, 200, {"Content-Type": "text/html"}, b"<h1>Log in to the guest network</h1>")
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/?]+))?(?:\?.*)?", handler.path)
        resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)(?:\?.*)?", handler.path)
        repo, revision, file = (*api.groups(), None) if api else resolve.groups() if resolve else ("", "", "")
        repository = self.repositories.get(repo)
        authorized = repository and repository.token in (None, headers.get("authorization", "").removeprefix("Bearer "))
        if repository and repository.gated and not (repository.token and authorized):
            return self._send(handler, 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        if repository is None or not authorized:
            return self._send(handler, 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "not found"})
        if revision not in (None, "main", repository.commit):
            return self._send(handler, 404, {"X-Error-Code": "RevisionNotFound"})
        if file is None:
            info = {"id": repo, "sha": repository.commit, "siblings": [{"rfilename": f} for f in repository.files]}
            return self._send(handler, 200, {"Content-Type": "application/json"}, json.dumps(info).encode())
        if file not in repository.files:
            return self._send(handler, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repository.commit})
        return self._send(
            handler,
            302,
            {
                "Location": f"{self.cdn}/{repo}/{file}?signature=x",
                "X-Repo-Commit": repository.commit,
                "X-Linked-Etag": f'"{repository.etag(file)}"',
                "X-Linked-Size": str(len(repository.files[file])),
                "ETag": '"of-the-redirect"',
            },
        )

    def _answer_cdn(self, handler: BaseHTTPRequestHandler, headers: dict[str, str]) -> None:
        owner, name, file = handler.path.partition("?")[0].strip("/").split("/", 2)
        content = self.repositories[f"{owner}/{name}"].files[file]
        fault = self.faults.pop(0) if self.faults and handler.command == "GET" else ("none",)
        if fault[0] == "status":
            return self._send(handler, int(fault[1]), {})
        if fault[0] == "corrupt":
            content = bytes(byte ^ 1 for byte in content)
        asked = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
        start = int(asked.group(1)) if asked and fault[0] != "no range" else 0
        if start >= len(content):
            return self._send(handler, 416, {"Content-Range": f"bytes */{len(content)}"})
        extra = {"ETag": '"cdn"', "Accept-Ranges": "bytes"}
        if start:
            extra["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        sent = int(fault[1]) if fault[0] in ("cut", "stall", "pause") else None
        return self._send(handler, 206 if start else 200, extra, content[start:], sent=sent, fault=str(fault[0]))

    def _send(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        headers: dict[str, str],
        body: bytes = b"",
        *,
        sent: int | None = None,
        fault: str = "none",
    ) -> None:
        handler.send_response(status)
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if handler.command == "HEAD":
            return
        handler.wfile.write(body if sent is None else body[:sent])
        handler.wfile.flush()
        if fault in ("stall", "pause"):
            self.stalled.set()
            self.resume.wait(20)
        if fault == "pause":
            handler.wfile.write(body[sent:])
        elif sent is not None:
            handler.close_connection = True
