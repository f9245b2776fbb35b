"""A Hugging Face hub on loopback: what huggingface_hub asks for, with faults on request.

Like the real one it redirects files in LFS to another host, here `localhost` instead of `127.0.0.1`, which must never
see a token; it names commits, checksums and kinds of errors in headers. Source: huggingface_hub's file_download.py and
utils/_http.py, which say what they read of an answer.
"""

import contextlib
import hashlib
import http.server
import json
import re
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

TOKEN = "hf_secret"  # noqa: S105  what the owner of private and gated repositories has


class Repo:
    """Files by revision. access: "", "private" or "gated"."""

    def __init__(self, files: dict[str, bytes], access: str = "", lfs: bool = True):
        self.access, self.lfs = access, lfs
        self.revisions: dict[str, dict[str, bytes]] = {}
        self.update(files)

    def update(self, files: dict[str, bytes], revision: str = "main") -> str:
        """A further commit, which `revision` is from now on."""
        commit = hashlib.sha1(repr((revision, sorted(files.items()))).encode()).hexdigest()
        self.revisions |= {revision: files, commit: files}
        return commit

    def commit(self, revision: str) -> str | None:
        """The full name of a revision; None if there is none."""
        if revision not in self.revisions:
            return None
        return next(c for c, files in self.revisions.items() if len(c) == 40 and files is self.revisions[revision])

    def digest(self, content: bytes) -> str:
        if self.lfs:
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub:
    """The server and its faults. `requests`: (method, host, path, Range, token) of every one, in order."""

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str, str, str | None, str | None]] = []
        self.cuts: list[int] = []  # after so many bytes of a file the connection ends, once for each
        self.refusals: list[int] = []  # the answers to the next requests for files' bytes
        self.reset = False  # a cut is a reset, not an end
        self.etag = ""  # what a file's headers call its checksum, if not as the answer about the repository does
        self.excess = b""  # what comes behind a file's bytes
        self.ranges = True  # whether a part of a file may be asked for
        self.damage = False  # one byte of a file differs from what its checksum says
        self.pace = 0.0  # seconds before each 64 KiB of a file
        self.status = 0  # the answer to everything, if not 0
        self.page = b""  # what the hub says instead of an answer about a repository
        self.silent = 0.0  # seconds before an answer about a repository
        hub = self

        class Handler(_Handler):
            owner = hub

        self.server = _Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def asked(self, method: str = "GET", beginning: str = "") -> list[tuple[str, str, str, str | None, str | None]]:
        return [each for each in self.requests if each[0] == method and each[2].startswith(beginning)]

    def transfers(self) -> list[str | None]:
        """The ranges that were asked for of files' bytes."""
        return [each[3] for each in self.requests if each[0] == "GET" and each[2].startswith("/cdn/")]


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that has left is no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    owner: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing on the tests' stderr."""

    def do_HEAD(self) -> None:  # noqa: N802  the base class's name
        self.answer()

    def do_GET(self) -> None:  # noqa: N802
        self.answer()

    def answer(self) -> None:
        hub, path = self.owner, urllib.parse.unquote(self.path.partition("?")[0])
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        hub.requests.append((self.command, self.headers["Host"], path, self.headers.get("Range"), token))
        if hub.status:
            self.refuse(hub.status, "", "the hub is tired")
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            time.sleep(hub.silent)
            self.about(found[1], found[2], token)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.resolve(*found.groups(), token)
        elif found := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(\w+)", path):
            self.send_file(self.content(*found.groups()), {})
        else:
            self.refuse(404, "", "no such page")

    def refuse(self, status: int, code: str, message: str) -> None:
        self.reply(status, {"X-Error-Code": code, "X-Error-Message": message}, json.dumps({"error": message}).encode())

    def reply(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def found(self, name: str, revision: str, token: str | None) -> tuple[Repo, str] | None:
        """The repository and the commit, if the token may see them; else the answer is given."""
        repo = self.owner.repos.get(name)
        if token not in (None, TOKEN):
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif repo is None or (repo.access == "private" and token != TOKEN):
            self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif (commit := repo.commit(revision)) is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repo, commit
        return None

    def about(self, name: str, revision: str, token: str | None) -> None:
        """What is in a repository. That of a gated one is public."""
        if self.owner.page:
            self.reply(200, {"Content-Type": "text/html"}, self.owner.page)
        elif found := self.found(name, revision, token):
            repo, commit = found
            siblings = []
            for file, content in repo.revisions[commit].items():
                about: dict[str, Any] = {"rfilename": file, "size": len(content), "blobId": repo.digest(content)}
                if repo.lfs:
                    about["lfs"] = {"sha256": repo.digest(content), "size": len(content), "pointerSize": 134}
                siblings.append(about)
            about = {"_id": "1", "id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []}
            self.reply(200, {"Content-Type": "application/json"}, json.dumps(about).encode())

    def resolve(self, name: str, revision: str, file: str, token: str | None) -> None:
        """A file, or where it is."""
        if not (found := self.found(name, revision, token)):
            return
        repo, commit = found
        if repo.access == "gated" and token != TOKEN:
            self.refuse(401 if token is None else 403, "GatedRepo", "Access to this model is restricted")
        elif self.command == "GET" and self.owner.refusals:
            self.refuse(self.owner.refusals.pop(0), "", "the hub is tired")
        elif file not in repo.revisions[commit]:
            self.refuse(404, "EntryNotFound", "Entry not found")
        else:
            content = repo.revisions[commit][file]
            etag = f'"{self.owner.etag or repo.digest(content)}"'
            headers = {"X-Repo-Commit": commit, "ETag": etag}
            if not repo.lfs:
                self.send_file(content, headers)
                return
            linked = {"X-Linked-Size": str(len(content)), "X-Linked-Etag": etag}
            place = f"http://localhost:{self.owner.port}/cdn/{name}/{repo.digest(content)}"
            self.reply(302, headers | linked | {"Location": place})

    def content(self, name: str, digest: str) -> bytes:
        repo = self.owner.repos[name]
        return next(c for files in repo.revisions.values() for c in files.values() if repo.digest(c) == digest)

    def send_file(self, content: bytes, headers: dict[str, str]) -> None:
        """A file's bytes, all or from a position on, with the hub's faults."""
        hub, start = self.owner, 0
        content += hub.excess
        if hub.damage:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if hub.ranges and (found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))):
            start = int(found[1])
            headers = headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        self.send_response(206 if start else 200)
        for key, value in (headers | {"Content-Length": str(len(content) - start)}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "GET":
            return
        end = start + hub.cuts.pop(0) if hub.cuts else len(content)
        with contextlib.suppress(OSError):  # the client may be gone
            for at in range(start, min(end, len(content)), 1 << 16):
                time.sleep(hub.pace)
                self.wfile.write(content[at : min(at + (1 << 16), end)])
        if end < len(content):
            if hub.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
