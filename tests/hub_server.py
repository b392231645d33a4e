"""A Hub on this machine: repositories, tokens, commits and files over HTTP, as the real clients speak it, and faults on demand."""

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Literal, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".parquet", ".arrow", ".zip")
LFS_SIZE = 10_000_000  # bytes; larger files are LFS files whatever their suffix

_ID = r"(?P<name>[\w.-]+/[\w.-]+)"
_API = rf"/api/(?P<kind>models|datasets|spaces)/{_ID}"
_SITE = rf"/(?:(?P<kind>datasets|spaces)/)?{_ID}"
_REVISION = r"(?P<revision>[^/]+)"
# Endpoint (a method of _Handler, and the name that a fault is injected by), HTTP methods, path as it is sent (quoted).
_ROUTES = [
    (endpoint, methods.split(), re.compile(path))
    for endpoint, methods, path in [
        ("whoami", "GET", r"/api/whoami-v2"),
        ("create", "POST", r"/api/repos/create"),
        ("delete", "DELETE", r"/api/repos/delete"),
        ("validate", "POST", r"/api/validate-yaml"),
        ("info", "GET", rf"{_API}(?:/revision/{_REVISION})?"),
        ("refs", "GET", rf"{_API}/refs"),
        ("commits", "GET", rf"{_API}/commits/{_REVISION}"),
        ("tree", "GET", rf"{_API}/tree/{_REVISION}(?:/(?P<path>.+))?"),
        ("paths_info", "POST", rf"{_API}/paths-info/{_REVISION}"),
        ("branch", "POST", rf"{_API}/branch/(?P<branch>[^/]+)"),
        ("tag", "POST", rf"{_API}/tag/{_REVISION}"),
        ("preupload", "POST", rf"{_API}/preupload/{_REVISION}"),
        ("commit", "POST", rf"{_API}/commit/{_REVISION}"),
        ("lfs", "POST", rf"{_SITE}\.git/info/lfs/objects/batch"),
        ("upload", "PUT", r"/lfs/(?P<oid>[0-9a-f]{64})"),
        ("resolve", "GET HEAD", rf"{_SITE}/resolve/{_REVISION}/(?P<path>.+)"),
    ]
]


class Request(NamedTuple):
    """A line of the log: the path is unquoted and without its query, the authorization as it was sent."""

    method: str
    path: str
    authorization: str | None


class Token(NamedTuple):
    """Who a token is of, and what it may do: "write" or "read"."""

    user: str
    role: str


class Fault(NamedTuple):
    """What becomes of a request: an error status, or, when `drop` is given, no answer at all."""

    status: int
    headers: dict[str, str]
    drop: Literal["before", "after"] | None


@dataclass
class Commit:
    """All files of the repository at a commit, and what `git log` shows of it."""

    sha: str
    parent: str | None
    files: dict[str, bytes]
    title: str
    author: str
    date: str


@dataclass
class Repository:
    """Commits by sha, and the commit that each branch and tag is at; it starts with one commit, as on the Hub."""

    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)  # users who may read it although it is gated
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        self.commit({".gitattributes": attributes.encode()}, title="initial commit")

    def commit(
        self,
        files: dict[str, bytes],
        branch: str = "main",
        deleted: Iterable[str] = (),
        title: str = "commit",
        author: str = "somebody",
    ) -> str:
        """Commits what `branch` has, without `deleted` and with `files`; returns the new commit."""
        parent = self.branches.get(branch)
        before = self.commits[parent].files if parent else {}
        after = {path: content for path, content in before.items() if path not in set(deleted)} | files
        content = repr((branch, parent, len(self.commits), title, sorted(after.items())))
        sha = hashlib.sha1(content.encode()).hexdigest()
        date = f"2025-01-01T00:00:00.{len(self.commits):03}Z"
        self.commits[sha] = Commit(sha, parent, after, title, author, date)
        self.branches[branch] = sha
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Content of all files at a branch, a tag or a commit."""
        return self.find(revision).files

    def find(self, revision: str) -> Commit | None:
        """The commit of a branch, a tag, or a commit's sha, which may be shortened."""
        revision = revision.removeprefix("refs/heads/")
        sha = self.branches.get(revision) or self.tags.get(revision)
        if sha is None and re.fullmatch("[0-9a-f]{7,40}", revision):
            sha = next((sha for sha in self.commits if sha.startswith(revision)), None)
        return self.commits.get(sha)


class HubServer:
    """
    A context manager; `url` is what `HF_ENDPOINT` is to be set to.

    huggingface_hub reads `HF_ENDPOINT`, `HF_HOME` and `HF_HUB_OFFLINE` when it is imported, so what talks to this server
    has to run in a process of its own: see `environment`.
    """

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}  # by kind ("models", "datasets", "spaces") and id
        self.tokens: dict[str, Token] = {}  # while there are none, any token is taken, as that of a stranger
        self.objects: dict[str, bytes] = {}  # uploaded LFS files by SHA-256
        self.requests: list[Request] = []
        self.failing: dict[str, int] = {}  # by HTTP method: the status that every such request fails with
        self.faults: dict[str, list[Fault]] = {}  # by endpoint: what becomes of the next requests, see `fail`
        self.lock = Lock()
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
        """The repository of that kind ("models", "datasets" or "spaces") and name, made if needed."""
        if (kind, name) not in self.repositories:
            self.repositories[kind, name] = Repository()
        return self.repositories[kind, name]

    def token(self, user: str, role: str = "write") -> str:
        """A token of that user, who is the namespace it may write to; `role` is "write" or "read"."""
        token = f"hf_{role}Of{user}"
        self.tokens[token] = Token(user, role)
        return token

    def fail(
        self,
        endpoint: str,
        status: int = 503,
        times: int = 1,
        headers: dict[str, str] | None = None,
        drop: Literal["before", "after"] | None = None,
    ) -> None:
        """
        Makes the next requests to an endpoint fail.

        Args:
            endpoint: Name in `_ROUTES`, such as "create", "preupload", "lfs", "upload", "commit", "resolve" or "whoami".
            status: Status of the answer; nothing is changed on the Hub.
            times: Number of requests that fail.
            headers: Headers of the answer, such as `{"Retry-After": "1"}`.
            drop: Instead of an answer, the connection is closed: "before" anything is done, or "after" it was done.
        """
        if endpoint not in {name for name, _, _ in _ROUTES}:
            raise ValueError(f"{endpoint!r} is not an endpoint of this server: see _ROUTES")
        self.faults.setdefault(endpoint, []).extend([Fault(status, headers or {}, drop)] * times)

    def reset(self) -> None:
        """No faults and an empty log; repositories and tokens stay."""
        self.requests.clear()
        self.failing.clear()
        self.faults.clear()

    def environment(self, home: Path, token: str = "") -> dict[str, str]:
        """Environment variables for a client process with an empty cache at `home`, logged in if a token is given."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_ENABLE_HF_TRANSFER": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "HF_TOKEN": token,
            "NO_PROXY": "127.0.0.1",
        }


def is_lfs(path: str, size: int) -> bool:
    """Whether the Hub keeps a file as an LFS file; never an empty one."""
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > LFS_SIZE)


def card_metadata(content: str) -> dict:
    """Metadata of a card; raises `ValueError` where it is not plain YAML, or where the Hub would refuse it."""
    block = re.match(r"\s*---\r?\n(.*?)\r?\n?---\s*(\n|$)", content, re.DOTALL)
    try:
        metadata = yaml.safe_load(block[1]) if block else {}
    except yaml.YAMLError as error:
        raise ValueError(f"The metadata is not valid YAML: {error}") from None
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict):
        raise ValueError("The metadata is not a mapping")
    bases = metadata.get("base_model") or []
    for base in [bases] if isinstance(bases, str) else bases:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(base)):
            raise ValueError(f'"base_model" with value "{base}" is not valid. Use a model id')
    return metadata


class _Refused(Exception):
    """An answer that is an error, with the `X-Error-Code` that the clients tell errors by."""

    def __init__(self, status: int, message: str, code: str | None = None, **fields):
        self.status, self.message, self.code, self.fields = status, message, code, fields


class _Handler(BaseHTTPRequestHandler):
    """Each endpoint is a method of the route's name; it returns what is sent as JSON, or status, headers and content."""

    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        self.hub: HubServer = self.server.hub
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        with self.hub.lock:
            self.hub.requests.append(Request(self.command, unquote(url.path), self.headers["Authorization"]))
            endpoint, arguments = self._route(url.path)
            faults = self.hub.faults.get(endpoint)
            fault = faults.pop(0) if faults else None
            if self.command in self.hub.failing:
                fault = Fault(self.hub.failing[self.command], {}, None)
            if fault and fault.drop != "after":
                answer = fault.status, fault.headers, json.dumps({"error": "injected fault"}).encode()
            else:
                answer = self._handle(endpoint, arguments)
        if fault and fault.drop:
            self.close_connection = True
        else:
            self._send(*answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _route(self, path: str) -> tuple[str | None, dict[str, str]]:
        for endpoint, methods, pattern in _ROUTES:
            match = pattern.fullmatch(path)
            if match and self.command in methods:
                return endpoint, {name: value and unquote(value) for name, value in match.groupdict().items()}
        return None, {}

    def _handle(self, endpoint: str | None, arguments: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        try:
            if endpoint is None:
                raise _Refused(404, f"no such endpoint: {self.command} {self.path}")
            self._authenticate()
            answer = getattr(self, endpoint)(**arguments)
        except _Refused as refused:
            headers = {"X-Error-Message": re.sub(r"[^ -~]", "?", refused.message)}
            headers |= {"X-Error-Code": refused.code} if refused.code else {}
            return refused.status, headers, json.dumps({"error": refused.message} | refused.fields).encode()
        if isinstance(answer, tuple):
            return answer
        return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()

    def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        """Silent: `HubServer.requests` is the log."""

    # Who may do what

    def _authenticate(self) -> None:
        self.token = None
        if authorization := self.headers["Authorization"]:
            self.token = self.hub.tokens.get(authorization.removeprefix("Bearer "))
            if self.token is None and self.hub.tokens:
                raise _Refused(401, "Invalid credentials in Authorization header")
            self.token = self.token or Token("stranger", "read")

    def _readable(self, kind: str | None, name: str) -> Repository:
        """A repository that may be seen: a private one is as good as absent."""
        repository = self.hub.repositories.get((kind or "models", name))
        if repository is None or (repository.private and not self._owns(name)):
            if self.token is None:
                raise _Refused(401, "Invalid username or password.", "RepoNotFound")
            raise _Refused(404, "Repository not found", "RepoNotFound")
        return repository

    def _downloadable(self, kind: str | None, name: str) -> Repository:
        """A repository whose files may be read."""
        repository = self._readable(kind, name)
        if repository.gated and not self._owns(name) and not (self.token and self.token.user in repository.granted):
            status = 403 if self.token else 401
            raise _Refused(status, f"Access to {name} is restricted: ask for access.", "GatedRepo")
        return repository

    def _writable(self, kind: str | None, name: str) -> Repository:
        repository = self._readable(kind, name)
        if self.token is None:
            raise _Refused(401, "Invalid username or password.", "RepoNotFound")
        self._allow_writing(name)
        return repository

    def _allow_writing(self, name: str) -> None:
        if self.token is None:
            raise _Refused(401, "Invalid username or password.")
        if self.token.role == "read":
            raise _Refused(403, "Forbidden: you must use a write token for this")
        if not self._owns(name):
            raise _Refused(403, f"You don't have the rights to write to {name}")

    def _owns(self, name: str) -> bool:
        return self.token is not None and name.split("/")[0] == self.token.user

    def _commit_at(self, repository: Repository, revision: str | None) -> Commit:
        commit = repository.find(revision or "main")
        if commit is None:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def _json(self) -> dict:
        return json.loads(self.body or b"{}")

    # Accounts and repositories

    def whoami(self):
        if self.token is None:
            raise _Refused(401, "Invalid username or password.")
        access = {"displayName": "test", "role": self.token.role, "createdAt": "2025-01-01T00:00:00.000Z"}
        auth = {"type": "access_token", "accessToken": access}
        user = self.token.user
        return {"type": "user", "id": user, "name": user, "fullname": user, "isPro": False, "orgs": [], "auth": auth}

    def create(self):
        payload = self._json()
        kind, name = self._named(payload)
        self._allow_writing(name)
        url = self._page(kind, name)
        if (kind, name) in self.hub.repositories:
            raise _Refused(409, "You already created this repo", url=url)
        private = payload.get("private") or payload.get("visibility") == "private"
        self.hub.repository(kind, name).private = bool(private)
        return {"url": url, "name": name, "id": name}

    def delete(self):
        kind, name = self._named(self._json())
        self._writable(kind, name)
        del self.hub.repositories[kind, name]
        return {}

    def _named(self, payload: dict) -> tuple[str, str]:
        """Kind and id that a payload of `create` or `delete` is about; without a namespace, the token's user's."""
        user = self.token.user if self.token else None
        return f"{payload.get('type') or 'model'}s", f"{payload.get('organization') or user}/{payload['name']}"

    def _page(self, kind: str | None, name: str) -> str:
        return f"{self.hub.url}/{name}" if kind in (None, "models") else f"{self.hub.url}/{kind}/{name}"

    def validate(self):
        try:
            card_metadata(self._json()["content"])
        except ValueError as error:
            errors = [{"message": str(error)}]
            return 400, {"Content-Type": "application/json"}, json.dumps({"errors": errors, "warnings": []}).encode()
        return {"errors": [], "warnings": []}

    # Reading

    def info(self, kind, name, revision):
        repository = self._readable(kind, name)
        commit = self._commit_at(repository, revision)
        try:
            card = card_metadata(commit.files.get("README.md", b"").decode())
        except ValueError:  # put there by a test
            card = {}
        siblings = []
        for path, content in commit.files.items():
            entry = _entry(path, content)
            sibling = {"rfilename": path, "size": entry["size"], "blobId": entry["oid"]}
            if "lfs" in entry:  # with names of their own here
                sibling["lfs"] = entry["lfs"] | {"sha256": entry["lfs"]["oid"]}
            siblings.append(sibling)
        return {
            "id": name,
            "modelId": name,
            "author": name.split("/")[0],
            "sha": commit.sha,
            "lastModified": commit.date,
            "createdAt": "2025-01-01T00:00:00.000Z",
            "private": repository.private,
            "gated": "manual" if repository.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": card.get("tags", []),
            "cardData": json.loads(json.dumps(card, default=str)),  # dates as text
            "siblings": siblings,
        } | {key: card[key] for key in ("library_name", "pipeline_tag") if key in card}

    def refs(self, kind, name):
        repository = self._readable(kind, name)
        branches = [
            {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": sha}
            for branch, sha in repository.branches.items()
        ]
        tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": sha} for tag, sha in repository.tags.items()]
        return {"branches": branches, "tags": tags, "converts": [], "pullRequests": []}

    def commits(self, kind, name, revision):
        repository = self._readable(kind, name)
        commit = self._commit_at(repository, revision)
        history = []
        while commit:
            item = {"id": commit.sha, "title": commit.title, "message": "", "date": commit.date}
            history.append(item | {"authors": [{"user": commit.author}]})
            commit = repository.commits.get(commit.parent)
        return history

    def tree(self, kind, name, revision, path):
        commit = self._commit_at(self._readable(kind, name), revision)
        prefix = f"{path}/" if path else ""
        inside = {file: content for file, content in commit.files.items() if file.startswith(prefix)}
        if prefix and not inside:
            raise _Refused(404, f"{path} does not exist on {revision}", "EntryNotFound")
        entries = {}
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        for file, content in sorted(inside.items()):
            parts = file[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                folder = prefix + "/".join(parts[:depth])
                entries[folder] = _folder_entry(folder)
            if recursive or len(parts) == 1:
                entries[file] = _entry(file, content)
        return list(entries.values())

    def paths_info(self, kind, name, revision):
        commit = self._commit_at(self._readable(kind, name), revision)
        entries = []
        for path in parse_qs(self.body.decode()).get("paths", []):
            if path in commit.files:
                entries.append(_entry(path, commit.files[path]))
            elif any(file.startswith(f"{path}/") for file in commit.files):
                entries.append(_folder_entry(path))
        return entries

    def resolve(self, kind, name, revision, path):
        commit = self._commit_at(self._downloadable(kind, name), revision)
        content = commit.files.get(path)
        if content is None:
            body = b"Entry not found"
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit.sha}, body
        entry = _entry(path, content)
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{entry["oid"]}"', "Accept-Ranges": "bytes"}
        if "lfs" in entry:
            headers |= {"X-Linked-Etag": f'"{entry["lfs"]["oid"]}"', "X-Linked-Size": str(len(content))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        if wanted is None:
            return 200, headers, content
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        if first > last:
            return 416, {"Content-Range": f"bytes */{len(content)}"}, b""
        return 206, headers | {"Content-Range": f"bytes {first}-{last}/{len(content)}"}, content[first : last + 1]

    # Writing

    def branch(self, kind, name, branch):
        repository = self._writable(kind, name)
        if branch in repository.branches:
            raise _Refused(409, f"Reference already exists: refs/heads/{branch}")
        repository.branches[branch] = self._commit_at(repository, self._json().get("startingPoint")).sha
        return {}

    def tag(self, kind, name, revision):
        repository = self._writable(kind, name)
        tag = self._json()["tag"]
        if tag in repository.tags:
            raise _Refused(409, f"Tag reference exists already: {tag}")
        repository.tags[tag] = self._commit_at(repository, revision).sha
        return {}

    def preupload(self, kind, name, revision):
        files = self._commit_at(self._writable(kind, name), revision).files
        modes = []
        for file in self._json()["files"]:
            path, size = file["path"], file["size"]
            mode = {"path": path, "uploadMode": "lfs" if is_lfs(path, size) else "regular", "shouldIgnore": False}
            if path in files:
                entry = _entry(path, files[path])
                mode["oid"] = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
            modes.append(mode)
        return {"files": modes}

    def lfs(self, kind, name):
        self._writable(kind, name)
        objects = []
        for wanted in self._json()["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:  # else the client does not upload it again
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}", "header": {}}}
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def upload(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refused(400, "the content is not that of this SHA-256")
        self.hub.objects[oid] = self.body
        return {}

    def commit(self, kind, name, revision):
        repository = self._writable(kind, name)
        if revision not in repository.branches:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        parent = repository.branches[revision]
        if header.get("parentCommit", parent) != parent:
            raise _Refused(412, "A commit has happened since. Please refresh and try again.")
        before = repository.commits[parent].files
        added, deleted = {}, set()
        for key, value in ((line["key"], line["value"]) for line in lines if line["key"] != "header"):
            if key == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise _Refused(400, f"LFS object {value['oid']} of {value['path']} was not uploaded")
                added[value["path"]] = self.hub.objects[value["oid"]]
            elif key in ("deletedFile", "deletedFolder"):
                folder = value["path"].rstrip("/") + "/"
                gone = {path for path in before if path == value["path"] or path.startswith(folder)}
                if not gone:
                    raise _Refused(404, "A file with this name doesn't exist", "EntryNotFound")
                deleted |= gone
            else:
                raise _Refused(400, f"unknown operation {key}")
        try:
            card_metadata(added.get("README.md", b"").decode())
        except ValueError as error:
            raise _Refused(400, "Invalid metadata in README.md", errors=[{"message": str(error)}]) from None
        sha = repository.commit(added, revision, deleted, header["summary"], self.token.user)
        return {"success": True, "commitOid": sha, "commitUrl": f"{self._page(kind, name)}/commit/{sha}"}


def _entry(path: str, content: bytes) -> dict:
    """A file in a listing; an LFS file is one blob id for git, that of its pointer, and the SHA-256 of its content."""
    if not is_lfs(path, len(content)):
        return {"type": "file", "path": path, "size": len(content), "oid": _blob_id(content)}
    sha256 = hashlib.sha256(content).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
    lfs = {"oid": sha256, "size": len(content), "pointerSize": len(pointer)}
    return {"type": "file", "path": path, "size": len(content), "oid": _blob_id(pointer), "lfs": lfs}


def _folder_entry(path: str) -> dict:
    return {"type": "directory", "path": path, "size": 0, "oid": _blob_id(path.encode())}


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
