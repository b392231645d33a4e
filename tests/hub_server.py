"""A Hub on this machine: files of repositories over HTTP, as huggingface_hub downloads them, and a log of the requests."""

import hashlib
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit


_RESOLVE = re.compile(r"/(?:(datasets|spaces)/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)")


@dataclass
class Repository:
    """Files by commit, and the commit that each branch is at."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Adds files on top of what the branch has; returns the new commit."""
        files = self.commits.get(self.branches.get(branch, ""), {}) | files
        content = repr((branch, len(self.commits), sorted(files.items())))
        sha = hashlib.sha1(content.encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha


class HubServer:
    """
    A context manager; `url` is what `HF_ENDPOINT` is to be set to.

    huggingface_hub reads `HF_ENDPOINT`, `HF_HOME` and `HF_HUB_OFFLINE` when it is imported, so what talks to this server
    has to run in a process of its own: see `environment`.
    """

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}  # by kind ("models", "datasets") and id
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, authorization
        self.failing: dict[str, int] = {}  # by method: the status that every such request fails with
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    def repository(self, kind: str, name: str) -> Repository:
        """The repository of that name, made if needed."""
        return self.repositories.setdefault((kind, name), Repository())

    def environment(self, home: Path) -> dict[str, str]:
        """Environment variables for a client process with an empty cache at `home` and no login."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
            "HF_TOKEN": "",
            "NO_PROXY": "127.0.0.1",
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):  # noqa: N802
        hub: HubServer = self.server.hub
        path = unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, self.headers["Authorization"]))
        resolve = _RESOLVE.fullmatch(path)
        if self.command in hub.failing:
            return self._answer(hub.failing[self.command])
        if resolve is None:
            return self._answer(404)
        kind, name, revision, file = resolve.groups()
        repository = hub.repositories.get((kind or "models", name))
        if repository is None:
            return self._answer(404, {"X-Error-Code": "RepoNotFound"})
        if repository.gated:
            return self._answer(403, {"X-Error-Code": "GatedRepo"})
        commit = repository.branches.get(unquote(revision), revision)
        if commit not in repository.commits:
            return self._answer(404, {"X-Error-Code": "RevisionNotFound"})
        content = repository.commits[commit].get(file)
        if content is None:
            return self._answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return self._answer(200, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}, content)

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, status: int, headers: dict[str, str] | None = None, content: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        """Silent: `HubServer.requests` is the log."""
