"""A stand-in for the Hugging Face Hub: its HTTP API as far as the files of a soft prompt need it, in memory.

Run as a program it listens on a free port of 127.0.0.1 and prints it; `hub_stand_in()` starts it in its own process.
Repositories, commits, branches, private and gated ones, LFS uploads, pull requests and the Hub's error codes are as the
real client (huggingface_hub) expects them. `POST /_test/ANYTHING` changes what cannot be changed as a user.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    import pytest

TOKEN = "hf_writer"  # of the user "org"
LARGE = 10 * 2**20


@dataclass
class Repository:
    """Commits by id, each with its files, and the commit of every branch."""

    name: str
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        seed = json.dumps([self.name, branch, message, len(self.commits)])
        oid = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        self.messages.append(message)
        return oid


REPOSITORIES: dict[str, Repository] = {}
OBJECTS: dict[str, bytes] = {}  # of LFS, by sha256
LOG: list[str] = []
SIZES: dict[str, int] = {}  # that the API claims, by file name


def is_lfs(path: str, size: int) -> bool:
    return path.endswith((".safetensors", ".png")) or size > LARGE


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class RefusedError(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        pass

    def answer(self, status: int, body: bytes | Any, headers: dict[str, str] | None = None) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = dict(headers or {})
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def do_GET(self) -> None:
        self.serve()

    def do_HEAD(self) -> None:
        self.serve()

    def do_POST(self) -> None:
        self.serve()

    def do_PUT(self) -> None:
        self.serve()

    def serve(self) -> None:
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        self.query = parse_qs(url.query)
        body = self.body()
        LOG.append(f"{self.command} {url.path}")
        try:
            self.route(parts, body)
        except RefusedError as error:
            codes = {"X-Error-Code": error.code, "X-Error-Message": error.message}
            self.answer(error.status, {"error": error.message}, {k: v for k, v in codes.items() if v})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = list[bytes]()
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def route(self, parts: list[str], body: bytes) -> None:
        match parts:
            case ["_test", what]:
                self.control(what, json.loads(body or b"{}"))
            case ["_lfs", oid]:
                if hashlib.sha256(body).hexdigest() != oid:
                    raise RefusedError(400, message="another digest")
                OBJECTS[oid] = body
                self.answer(200, b"", {"ETag": oid})
            case ["api", "validate-yaml"]:
                front = json.loads(body)["content"].split("---\n")[1]
                self.answer(200, {"errors": [] if "library_name" in front else [{"message": "?"}], "warnings": []})
            case ["api", "repos", "create"]:
                self.create(json.loads(body))
            case ["api", "models", owner, name, *rest]:
                self.model(self.repository(f"{owner}/{name}"), rest, body)
            case [owner, name, "info", "lfs", "objects", "batch"]:
                self.writer()
                self.batch(self.repository(f"{owner}/{name.removesuffix('.git')}"), json.loads(body))
            case [owner, name, "resolve", revision, *path]:
                self.resolve(self.repository(f"{owner}/{name}"), revision, "/".join(path))
            case _:
                raise RefusedError(404, message="no such route")

    def control(self, what: str, given: dict[str, Any]) -> None:
        if what == "repository":
            made = Repository(given["name"], given.get("private", False), given.get("gated", False))
            made.commit("main", {k: v.encode() for k, v in given.get("files", {}).items()}, "initial")
            REPOSITORIES[made.name] = made
        elif what == "sizes":
            SIZES.clear()
            SIZES.update(given)
        log, state = list(LOG), {name: self.state(repo) for name, repo in REPOSITORIES.items()}
        if what == "log":
            LOG.clear()
        self.answer(200, {"log": log, "repositories": state})

    def state(self, repo: Repository) -> dict[str, Any]:
        files = {branch: sorted(repo.commits[oid]) for branch, oid in repo.branches.items()}
        return {"files": files, "branches": repo.branches, "private": repo.private, "messages": repo.messages}

    @property
    def token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def writer(self) -> None:
        if self.token != TOKEN:
            raise RefusedError(403 if self.token == "hf_reader" else 401, message="You must have write access")

    def repository(self, name: str) -> Repository:
        if self.token not in ("", TOKEN, "hf_reader"):
            raise RefusedError(401, message="Invalid credentials in Authorization header")
        repo = REPOSITORIES.get(name)
        if repo is None or (repo.private and self.token != TOKEN):
            raise RefusedError(401 if not self.token else 404, "RepoNotFound", "Repository not found")
        return repo

    def commit_of(self, repo: Repository, revision: str) -> str:
        oid = repo.branches.get(revision, revision)
        if oid not in repo.commits:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid

    def create(self, given: dict[str, Any]) -> None:
        self.writer()
        name = f"{given['organization'] or 'org'}/{given['name']}"
        if given["organization"] not in (None, "org"):
            raise RefusedError(
                403, message=f"You don't have the rights to create a model under {given['organization']}"
            )
        if name in REPOSITORIES:
            raise RefusedError(409, message="You already created this model repo")
        private = given.get("private") or given.get("visibility") == "private"
        REPOSITORIES[name] = Repository(name, private)
        REPOSITORIES[name].commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self.answer(200, {"url": f"http://{self.headers['Host']}/{name}", "name": name})

    def model(self, repo: Repository, rest: list[str], body: bytes) -> None:
        match rest:
            case [] | ["revision", _]:
                oid = self.commit_of(repo, rest[1] if rest else "main")
                siblings = [self.entry(p, c) for p, c in repo.commits[oid].items()]
                named = [{"rfilename": e["path"], "size": e["size"], "blobId": e["oid"]} for e in siblings]
                facts = {"id": repo.name, "modelId": repo.name, "sha": oid, "private": repo.private}
                self.answer(200, {**facts, "gated": "auto" if repo.gated else False, "siblings": named})
            case ["tree", revision, *_]:
                oid = self.commit_of(repo, revision)
                self.answer(200, [self.entry(p, c) for p, c in repo.commits[oid].items()])
            case ["branch", branch]:
                self.writer()
                start = json.loads(body or b"{}").get("startingPoint") or "main"
                repo.branches[branch] = self.commit_of(repo, start)
                self.answer(200, {})
            case ["preupload", _]:
                self.writer()
                files = json.loads(body)["files"]
                modes = [(f["path"], "lfs" if is_lfs(f["path"], f["size"]) else "regular") for f in files]
                self.answer(200, {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes]})
            case ["commit", branch]:
                self.commit(repo, branch, body)
            case _:
                raise RefusedError(404, message="no such route")

    def entry(self, path: str, content: bytes) -> dict[str, Any]:
        size = SIZES.get(path, len(content))
        entry: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": blob_id(content)}
        if is_lfs(path, len(content)):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 130}
        return entry

    def batch(self, repo: Repository, given: dict[str, Any]) -> None:
        here = f"http://{self.headers['Host']}/_lfs/"
        objects = [
            o if o["oid"] in OBJECTS else {**o, "actions": {"upload": {"href": here + o["oid"]}}}
            for o in given["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": objects})

    def commit(self, repo: Repository, branch: str, body: bytes) -> None:
        self.writer()
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        parent = self.commit_of(repo, branch)
        if header.get("parentCommit") not in (None, parent):
            raise RefusedError(412, message="A commit has happened since")
        files = dict(repo.commits[parent])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = OBJECTS[value["oid"]]
        here, pull_request = f"http://{self.headers['Host']}/{repo.name}", "create_pr" in self.query
        oid = repo.commit("refs/pr/1" if pull_request else branch, files, header["summary"])
        answer = {"commitUrl": f"{here}/commit/{oid}", "commitOid": oid}
        self.answer(200, answer | ({"pullRequestUrl": f"{here}/discussions/1"} if pull_request else {}))

    def resolve(self, repo: Repository, revision: str, path: str) -> None:
        if repo.gated and self.token != TOKEN:
            raise RefusedError(403, "GatedRepo", "Access to this model is restricted")
        oid = self.commit_of(repo, revision)
        content = repo.commits[oid].get(path)
        if content is None:
            raise RefusedError(404, "EntryNotFound", "Entry not found")
        etag = hashlib.sha256(content).hexdigest() if is_lfs(path, len(content)) else blob_id(content)
        self.answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": oid, "Accept-Ranges": "bytes"})


@dataclass
class HubStandIn:
    """The stand-in as its tests see it."""

    url: str

    def control(self, what: str, **given: Any) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.url}/_test/{what}", json.dumps(given).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)

    def files(self, repo: str, branch: str = "main") -> list[str]:
        return self.control("state")["repositories"][repo]["files"][branch]


@contextlib.contextmanager
def hub_stand_in() -> Iterator[HubStandIn]:
    """The stand-in in a process of its own."""
    with subprocess.Popen([sys.executable, "-I", str(Path(__file__))], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield HubStandIn(f"http://127.0.0.1:{int(process.stdout.readline())}")
        finally:
            process.terminate()


def use_hub(running: HubStandIn, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the test ends huggingface_hub knows this Hub alone, with an empty cache and the token of a writer."""
    from huggingface_hub import constants

    from softprompt.prompts import hub, store

    own = {"ENDPOINT": running.url, "HF_HUB_CACHE": str(cache)}
    own["HUGGINGFACE_CO_URL_TEMPLATE"] = running.url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {**own, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(store, "_found", {})
    monkeypatch.setattr(hub, "HUB_TIMEOUT_S", 2.0)
    running.control("log")
    running.control("sizes")


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
