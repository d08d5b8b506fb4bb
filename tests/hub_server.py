"""The Hub's HTTP interface on loopback, for the real huggingface_hub client: model repositories, LFS uploads, downloads.

As strict as the Hub where a client can go wrong: tokens and owners, names, metadata of cards, the LFS decision, hashes and sizes
of what is uploaded, the commit's format, parents of commits. Xet is not spoken (clients set HF_HUB_DISABLE_XET=1).
"""

import base64
import fnmatch
import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_metadata import metadata_errors

LFS_PATTERNS = (
    "*.safetensors",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.h5",
    "*.onnx",
    "*.model",
    "*.spm",
    "*.tar",
    "*.pkl",
)
ATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS).encode()
WRITER, READER, NOBODY = ("hf_" + letter * 34 for letter in "WRN")  # tokens; the last is not the Hub's
MOST_REGULAR = 10 * 2**20
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")


class Refused(Exception):  # noqa: N818  # an answer, not a mistake of the server's
    """An answer other than 200."""

    def __init__(self, status: int, message: str, code: str = "", body: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


@dataclass
class Commit:
    id: str
    title: str
    files: dict[str, tuple[str, str]]  # path → ("regular" or "lfs", git SHA-1 or SHA-256)
    parent: str | None


@dataclass
class Repo:
    id: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def at(self, revision: str) -> Commit:
        found = self.commits.get(self.branches.get(revision, revision))
        if found is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def log(self, revision: str) -> list[Commit]:
        found: list[Commit] = [self.at(revision)]
        while found[-1].parent is not None:
            found.append(self.commits[found[-1].parent])
        return found


class Hub:
    """What the Hub holds, and what was asked of it. `received` counts the bytes of each LFS object that arrived whole."""

    def __init__(self) -> None:
        self.tokens = {WRITER: ("ada", "write"), READER: ("ada", "read")}
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}  # regular files by git SHA-1, LFS objects by SHA-256
        self.verified: set[tuple[str, str]] = set()  # (repository, SHA-256)
        self.received: list[tuple[str, int]] = []
        self.requests: list[str] = []
        self.stop: tuple[str, int] | None = None  # (beginning of a request, bytes of its body): read that far, once
        self.drop = False  # close the connection there, in place of waiting
        self.stopped = threading.Event()
        self.released = threading.Event()
        self.lock = threading.RLock()

    def stop_at(self, request: str, bytes_read: int, drop: bool = False) -> None:
        """Stop in the next request that begins so, after so many bytes: `stopped` says when, and the client waits for ever."""
        self.stopped.clear()
        self.released.clear()
        self.stop, self.drop = (request, bytes_read), drop

    # ---- Who asks

    def user(self, token: str | None) -> tuple[str, str] | None:
        if token is None:
            return None
        if token not in self.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.tokens[token]

    def repo(self, name: str, token: str | None, write: bool = False) -> Repo:
        user = self.user(token)
        found = self.repos.get(name)
        if found is None or (found.private and (user is None or user[0] != name.split("/")[0])):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        if write:
            self.may_write(user, name.split("/")[0])
        return found

    def may_write(self, user: tuple[str, str] | None, owner: str) -> None:
        if user is None:
            raise Refused(401, "Invalid username or password.")
        if user[0] != owner or user[1] != "write":
            raise Refused(403, f"You don't have the rights to write to {owner}")

    # ---- Repositories

    def create(self, token: str | None, body: dict[str, Any]) -> dict[str, Any]:
        user = self.user(token)
        owner = body.get("organization") or (user[0] if user else "")
        self.may_write(user, owner)
        name = body["name"]
        if not NAME.fullmatch(name) or ".." in name or "--" in name or name.endswith(".git"):
            raise Refused(400, f"Invalid repo name: {name}")
        if body.get("type", "model") != "model":
            raise Refused(400, "only models here")
        full = f"{owner}/{name}"
        if full in self.repos:
            raise Refused(409, "You already created this model repo", body={"url": f"/{full}"})
        repo = self.repos[full] = Repo(full, body.get("visibility") == "private" or bool(body.get("private")))
        blob = git_sha(ATTRIBUTES)
        self.blobs[blob] = ATTRIBUTES
        self.add(repo, "main", "initial commit", {".gitattributes": ("regular", blob)}, None)
        return {"url": f"/{full}", "name": full}

    def add(self, repo: Repo, branch: str, title: str, files: dict[str, tuple[str, str]], parent: str | None) -> Commit:
        stamp = json.dumps([repo.id, branch, title, sorted(files.items()), parent, len(repo.commits)])
        commit = Commit(hashlib.sha1(stamp.encode()).hexdigest(), title, files, parent)
        repo.commits[commit.id] = commit
        repo.branches[branch] = commit.id
        return commit

    def commit(self, repo: Repo, revision: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        if revision not in repo.branches:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if not lines or lines[0].get("key") != "header" or not lines[0]["value"].get("summary"):
            raise Refused(400, "a commit begins with a header that has a summary")
        head = repo.at(revision)
        if (parent := lines[0]["value"].get("parentCommit")) not in (None, head.id):
            raise Refused(412, f"{revision} is not at {parent} any more")
        if len(lines) == 1:
            raise Refused(400, "an empty commit")
        files = dict(head.files)
        for line in lines[1:]:
            path, entry = self.entry(repo, line["key"], line["value"])
            files[path] = entry
        if card := files.get("README.md"):
            refuse_metadata(self.blobs[card[1]].decode())
        made = self.add(repo, revision, lines[0]["value"]["summary"], files, head.id)
        return {"success": True, "commitOid": made.id, "commitUrl": f"/{repo.id}/commit/{made.id}", "hookOutput": ""}

    def entry(self, repo: Repo, key: str, value: dict[str, Any]) -> tuple[str, tuple[str, str]]:
        path = value["path"]
        if path.startswith("/") or ".." in path.split("/") or ".git" in path.split("/"):
            raise Refused(400, f"Invalid path: {path}")
        if key == "file":
            content = base64.b64decode(value["content"], validate=True)
            if value.get("encoding") != "base64" or len(content) > MOST_REGULAR or is_lfs(path, len(content), content):
                raise Refused(400, f"{path} must be uploaded by LFS")
            self.blobs[git_sha(content)] = content
            return path, ("regular", git_sha(content))
        if key == "lfsFile":
            oid = value["oid"]
            if value.get("algo") != "sha256" or (repo.id, oid) not in self.verified:
                raise Refused(400, f"LFS pointer of {path} points to an object that was not uploaded")
            if len(self.blobs[oid]) != value["size"]:
                raise Refused(400, f"size of {path}")
            return path, ("lfs", oid)
        raise Refused(400, f"unknown operation {key}")

    def branch(self, repo: Repo, name: str, start: str | None) -> dict[str, Any]:
        if name in repo.branches:
            raise Refused(409, f"branch {name} exists")
        repo.branches[name] = repo.at(start or "main").id
        return {}

    def preupload(self, repo: Repo, revision: str, body: dict[str, Any]) -> dict[str, Any]:
        there = repo.at(revision).files
        answers = []
        for file in body["files"]:
            sample = base64.b64decode(file["sample"], validate=True)
            if len(sample) != min(512, file["size"]):
                raise Refused(400, f"sample of {file['path']}")
            mode = "lfs" if is_lfs(file["path"], file["size"], sample) else "regular"
            known = there.get(file["path"])
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False,
                            **({"oid": known[1]} if known else {})})  # fmt: skip
        return {"files": answers}

    # ---- Large files

    def batch(self, repo: Repo, base: str, body: dict[str, Any]) -> dict[str, Any]:
        if body.get("operation") != "upload" or body.get("hash_algo") != "sha256" or "basic" not in body["transfers"]:
            raise Refused(400, "LFS batch: upload by basic transfer with sha256")
        found = []
        for wanted in body["objects"]:
            one: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] in self.blobs:
                self.verified.add((repo.id, wanted["oid"]))
            else:
                one["actions"] = {
                    "upload": {"href": f"{base}/lfs/{wanted['oid']}?size={wanted['size']}"},
                    "verify": {"href": f"{base}/{repo.id}.git/info/lfs/verify"},
                }
            found.append(one)
        return {"transfer": "basic", "objects": found}

    def verify(self, repo: Repo, body: dict[str, Any]) -> dict[str, Any]:
        if len(self.blobs.get(body["oid"], b"")) != body["size"]:
            raise Refused(404, "object not found")
        self.verified.add((repo.id, body["oid"]))
        return {"success": True}

    def keep(self, oid: str, size: int, content: bytes) -> None:
        if len(content) != size or hashlib.sha256(content).hexdigest() != oid:
            raise Refused(400, "content and its SHA-256 differ")
        self.blobs[oid] = content
        self.received.append((oid, size))

    # ---- Reading

    def info(self, repo: Repo, revision: str) -> dict[str, Any]:
        commit = repo.at(revision)
        return {
            "_id": "0" * 24, "id": repo.id, "modelId": repo.id, "sha": commit.id, "private": repo.private,
            "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z",
            "tags": [], "downloads": 0, "likes": 0, "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        }  # fmt: skip

    def tree(self, repo: Repo, revision: str) -> list[dict[str, Any]]:
        rows = []
        for path, (mode, oid) in sorted(repo.at(revision).files.items()):
            row = {"type": "file", "path": path, "oid": oid, "size": len(self.blobs[oid])}
            if mode == "lfs":
                row["lfs"] = {"oid": oid, "size": row["size"], "pointerSize": 130}
            rows.append(row)
        return rows

    def content(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a repository, as a test reads them."""
        return {path: self.blobs[oid] for path, (_, oid) in self.repos[repo_id].at(revision).files.items()}


def git_sha(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def is_lfs(path: str, size: int, sample: bytes) -> bool:
    """The Hub's decision: by .gitattributes, by size, and by whether the first bytes are text."""
    if any(fnmatch.fnmatch(path.rpartition("/")[2], pattern) for pattern in LFS_PATTERNS) or size > MOST_REGULAR:
        return True
    return b"\0" in sample


def refuse_metadata(text: str) -> None:
    if errors := metadata_errors(text)[0]:
        raise Refused(400, "Invalid metadata in README.md", body={"errors": [{"message": e} for e in errors]})


# ---- HTTP


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Server"

    def log_message(self, *args: Any) -> None:
        pass

    @property
    def token(self) -> str | None:
        given = self.headers.get("Authorization")
        return given.removeprefix("Bearer ") if given else None

    def handle_any(self) -> None:
        if self.server.closed:  # a connection that was kept
            self.close_connection = True
            return
        hub, url = self.server.hub, urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        try:
            body = self.body(path)
            with hub.lock:
                hub.requests.append(f"{self.command} {path}")
                self.answer(path, url.path, query, body)
        except Refused as no:
            headers = {"X-Error-Message": no.message, **({"X-Error-Code": no.code} if no.code else {})}
            self.say(no.status, {"error": no.message, **(no.body or {})}, headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815  # http.server's names

    def body(self, path: str) -> bytes:
        length = self.headers.get("Content-Length")
        if length is None and self.headers.get("Transfer-Encoding") == "chunked":
            return self.chunks()
        whole, hub = int(length or 0), self.server.hub
        if hub.stop is not None and f"{self.command} {path}".startswith(hub.stop[0]):
            self.rfile.read(min(hub.stop[1], whole))
            hub.stop = None
            hub.stopped.set()
            if hub.drop:
                raise ConnectionResetError
            hub.released.wait(60)
            raise ConnectionResetError
        content = self.rfile.read(whole)
        if len(content) != whole:
            raise ConnectionResetError
        return content

    def chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, path: str, raw: str, query: dict[str, list[str]], body: bytes) -> None:
        hub, token, base = self.server.hub, self.token, self.server.url
        if path == "/api/whoami-v2":
            user = hub.user(token)
            if user is None:
                raise Refused(401, "Invalid username or password.")
            role = {"accessToken": {"role": user[1]}}
            return self.say(200, {"type": "user", "name": user[0], "fullname": user[0], "orgs": [], "auth": role})
        if path == "/api/validate-yaml":
            errors, warnings = metadata_errors(json.loads(body)["content"])
            said = {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}
            return self.say(400 if errors else 200, said)
        if path == "/api/repos/create":
            made = hub.create(token, json.loads(body))
            return self.say(200, {**made, "url": base + made["url"]})
        if found := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            if self.command == "PUT":
                hub.keep(found.group(1), int(query["size"][0]), body)
                return self.say(200, {})
            return self.send(hub.blobs[found.group(1)], {"ETag": f'"{found.group(1)}"'})
        if found := re.fullmatch(r"/(.+)\.git/info/lfs/(objects/batch|verify)", path):
            repo = hub.repo(found.group(1), token, write=True)
            given = json.loads(body)
            return self.say(200, hub.batch(repo, base, given) if "batch" in path else hub.verify(repo, given))
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", raw):
            return self.resolve(*map(unquote, found.groups()))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/([a-z-]+)(?:/(.+))?)?", raw):
            return self.model(unquote(found.group(1)), found.group(2), unquote(found.group(3) or "main"), body)
        raise Refused(404, f"no such address: {self.command} {path}")

    def model(self, name: str, what: str | None, revision: str, body: bytes) -> None:
        hub = self.server.hub
        repo = hub.repo(name, self.token, write=self.command == "POST" and what != "paths-info")
        match (self.command, what):
            case ("GET", None | "revision"):
                return self.say(200, hub.info(repo, revision))
            case ("GET", "tree"):
                return self.say(200, hub.tree(repo, revision.split("/")[0]))
            case ("GET", "commits"):
                when = "2026-01-01T00:00:00.000Z"
                rows = [
                    {"id": c.id, "title": c.title, "message": "", "authors": [], "date": when}
                    for c in repo.log(revision)
                ]
                return self.say(200, rows)
            case ("POST", "branch"):
                return self.say(200, hub.branch(repo, revision, json.loads(body or b"{}").get("startingPoint")))
            case ("POST", "preupload"):
                return self.say(200, hub.preupload(repo, revision, json.loads(body)))
            case ("POST", "commit"):
                if self.headers.get("Content-Type") != "application/x-ndjson":
                    raise Refused(400, "a commit is ndjson")
                lines = [json.loads(line) for line in body.splitlines()]
                made = hub.commit(repo, revision, lines)
                return self.say(200, {**made, "commitUrl": self.server.url + made["commitUrl"]})
            case ("POST", "paths-info"):
                wanted = set(parse_qs(body.decode()).get("paths", []))
                return self.say(200, [row for row in hub.tree(repo, revision) if row["path"] in wanted])
        raise Refused(404, f"no such address: {self.command} {what}")

    def resolve(self, name: str, revision: str, path: str) -> None:
        hub = self.server.hub
        repo = hub.repo(name, self.token)
        commit = repo.at(revision)
        if path not in commit.files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        mode, oid = commit.files[path]
        headers = {"X-Repo-Commit": commit.id, "ETag": f'"{oid}"', "Accept-Ranges": "bytes"}
        if mode == "lfs":
            headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(hub.blobs[oid]))}
            return self.send(b"", {**headers, "Location": f"{self.server.cdn}/lfs/{oid}"}, 302)
        self.send(hub.blobs[oid], headers)

    def say(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        self.send(json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})}, status)

    def send(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


class Server(ThreadingHTTPServer):
    """`with Server() as server:` serves `server.hub` at `server.url` until the end of the block."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = Hub()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.cdn = f"http://localhost:{self.server_address[1]}"  # another host: clients do not follow a HEAD there
        self.closed = False
        self.thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> "Server":
        self.thread.start()
        return self

    def __exit__(self, *args: Any) -> None:
        self.closed = True
        self.hub.released.set()
        self.shutdown()
        self.server_close()


if __name__ == "__main__":  # to look at by hand
    with Server() as running:
        print(running.url, *running.hub.tokens, flush=True)
        while True:
            time.sleep(60)
