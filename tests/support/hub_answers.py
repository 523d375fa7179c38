"""How :mod:`tests.support.hub` answers one request."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from tests.support.http_double import Ask, HttpDouble, Reply

if TYPE_CHECKING:
    from tests.support.hub import HubBlob, HubServer, Repo

#: Bytes handed to the kernel at a time: whole ranges at full speed, little pieces when the line is slow.
_PIECE = 8 << 20
_SLOW_PIECE = 64 << 10

Headers = dict[str, str]


class Host(HttpDouble):
    """The Hub ("hub"), or the host for large files ("cdn")."""

    def __init__(self, hub: HubServer, role: str) -> None:
        # Another name on purpose: clients that compare host names only must drop the token as well.
        super().__init__(host="127.0.0.1" if role == "hub" else "localhost")
        self.hub = hub
        self.role = role

    def answer(self, ask: Ask) -> Reply:
        faults = self.hub.faults
        if faults.silent:
            return Reply(silent_after=-1)
        if faults.latency_s:
            self.released.wait(faults.latency_s)
        return self._large_file(ask) if self.role == "cdn" else self._hub_page(ask)

    # --- The Hub -------------------------------------------------------------------------------------
    def _hub_page(self, ask: Ask) -> Reply:
        if page := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+?))?/?", unquote(ask.route)):
            return self._api(ask, page[1], page[2] or "revision", page[3] or "main")
        # Branch names with slashes arrive quoted: look at the path before it is unquoted.
        if page := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", ask.route):
            return self._resolve(ask, unquote(page[1]), unquote(page[2]), unquote(page[3]))
        return _text(404, "no such page")

    def _resolve(self, ask: Ask, name: str, revision: str, filename: str) -> Reply:
        if name in self.hub.moved:
            return Reply(307, {"Location": ask.path.replace(name, self.hub.moved[name], 1)})
        if planned := self._planned(ask):
            return planned
        found = self._open(ask, name, revision)
        if isinstance(found, Reply):
            return found
        repo, commit = found
        headers = {"X-Repo-Commit": commit}
        blob = repo.commits[commit].get(filename)
        if blob is None:
            return _text(404, "Entry not found", {**headers, "X-Error-Code": "EntryNotFound"})
        headers |= {"ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
        if blob.xet:
            route = f"{self.hub.endpoint}/api/models/{name}/xet-read-token/{commit}"
            headers |= {"X-Xet-Hash": blob.sha256, "X-Xet-Refresh-Route": route}
        if blob.lfs and self.hub.redirects and not blob.xet:
            query = f"Signature={self.hub.generation}&name={quote(filename)}"
            return Reply(302, {**headers, "Location": f"{self.hub.cdn}/blobs/{blob.sha256}?{query}"})
        return self._file(ask, blob, headers)

    def _open(self, ask: Ask, name: str, revision: str) -> tuple[Repo, str] | Reply:
        """The repository at a commit, or the answer that says why not."""
        token = ask.headers.get("Authorization", "").removeprefix("Bearer ") or None
        if token is not None and token not in self.hub.tokens:
            return _text(401, "", {"X-Error-Message": "Invalid credentials in Authorization header"})
        repo = self.hub.repos.get(name)
        allowed = name in self.hub.tokens.get(token or "", ())
        if repo is None or (repo.private and not allowed):
            # Callers without a token do not learn whether the repository exists.
            if token is None:
                return _text(401, "", {"X-Error-Message": "Invalid username or password."})
            return _text(404, "", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        if repo.gated and not allowed and "/resolve/" in ask.path:
            message = f"Access to model {name} is restricted. Visit {self.hub.endpoint}/{name} to ask for access."
            status = 401 if token is None else 403
            return _text(status, message, {"X-Error-Code": "GatedRepo", "X-Error-Message": message})
        commit = repo.commit_of(revision)
        if commit is None:
            message = f"Invalid rev id: {revision}"
            return _text(404, message, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": message})
        return repo, commit

    def _api(self, ask: Ask, name: str, page: str, revision: str) -> Reply:
        found = self._open(ask, name, revision)
        if isinstance(found, Reply):
            return found
        repo, commit = found
        files = sorted(repo.commits[commit].items())
        answer: Any
        if page == "tree":
            answer = [_tree_entry(path, blob) for path, blob in files]
        else:
            answer = {
                "_id": commit[:24],
                "id": name,
                "modelId": name,
                "author": name.partition("/")[0],
                "sha": commit,
                "private": repo.private,
                "gated": "auto" if repo.gated else False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": [_sibling(path, blob, "blobs" in ask.path) for path, blob in files],
            }
        return _text(200, json.dumps(answer), {"Content-Type": "application/json"})

    # --- The other host ------------------------------------------------------------------------------
    def _large_file(self, ask: Ask) -> Reply:
        if planned := self._planned(ask):
            return planned
        if ask.query.get("Signature") != [str(self.hub.generation)]:
            return _text(403, "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>")
        blob = self.hub.blob(ask.route.removeprefix("/blobs/"))
        if blob is None:
            return _text(404, "<Error><Code>NoSuchKey</Code></Error>")
        # The store of large files has an ETag of its own, which is not the Hub's.
        return self._file(ask, blob, {"ETag": f'"{blob.sha256[:32]}"', "Accept-Ranges": "bytes"})

    # --- Bodies --------------------------------------------------------------------------------------
    def _planned(self, ask: Ask) -> Reply | None:
        """The next of `Faults.next_answers` or `Faults.heads`, or a refusal, if there is one."""
        faults = self.hub.faults
        if faults.library_only and ask.method == "GET" and "hf_hub/" not in ask.headers["User-Agent"]:
            return _text(403, "Not over plain HTTP")
        with self.hub.lock:
            planned = faults.next_answers if ask.method == "GET" else faults.heads
            answer = planned.pop(0) if planned else None
        return None if answer is None else _text(answer[0], "planned", answer[1])

    def _file(self, ask: Ask, blob: HubBlob, headers: Headers) -> Reply:
        faults = self.hub.faults
        first, last, status = 0, blob.size - 1, 200
        if not faults.ranges:
            headers.pop("Accept-Ranges", None)
        elif (wanted := _range(ask, blob.size, headers["ETag"])) is not None:
            first, last = wanted
            if first >= blob.size:
                return Reply(416, {"Content-Range": f"bytes */{blob.size}"})
            status = 206
            headers["Content-Range"] = f"bytes {first}-{last}/{blob.size if faults.lengths else '*'}"
        if faults.lengths or status == 206:
            headers["Content-Length"] = str(last - first + 1)
        else:
            headers["Connection"] = "close"
        return Reply(status, headers, lambda ask: self._body(ask, blob, first, last + 1))

    def _body(self, ask: Ask, blob: HubBlob, start: int, end: int) -> None:
        """Send bytes ``start`` to ``end``, unless something is planned to go wrong on the way."""
        faults = self.hub.faults
        with self.hub.lock:
            cut = min((at for at in faults.cuts if start <= at < end), default=None)
            if cut is not None:
                faults.cuts.discard(cut)
            stall, wrong = faults.stall_at, faults.corrupt_at
            if stall is not None and start <= stall < end:
                faults.stall_at = None
            else:
                stall = None
            if wrong is not None and start <= wrong < end and faults.corrupt_times > 0:
                faults.corrupt_times -= 1
            else:
                wrong = None
        stop = min(at for at in (end, cut, stall) if at is not None)
        with blob.path.open("rb") as stream:
            at = start
            while at < stop:
                piece = min(_PIECE if faults.rate is None else _SLOW_PIECE, stop - at)
                self._pay(piece)
                if wrong is not None and at <= wrong < at + piece:
                    stream.seek(at)
                    data = bytearray(stream.read(piece))
                    data[wrong - at] ^= 0xFF
                    ask.connection.sendall(data)
                else:
                    ask.connection.sendfile(stream, at, piece)
                at += piece
                ask.sent += piece
        if stop == stall:
            self.hang()
        if stop < end:
            raise ConnectionResetError("the planned end of a connection")

    def _pay(self, size: int) -> None:
        """Wait for ``size`` bytes' turn on the line that all answers share."""
        if (rate := self.hub.faults.rate) is None:
            return
        with self.hub.lock:
            now = time.monotonic()
            self.hub.free_at = max(self.hub.free_at, now) + size / rate
            wait_s = self.hub.free_at - now
        self.released.wait(wait_s)


def _range(ask: Ask, size: int, etag: str) -> tuple[int, int] | None:
    """First and last byte asked for; None is the whole file."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", ask.headers.get("Range", ""))
    if match is None or not (match[1] or match[2]) or ask.headers.get("If-Range", etag) != etag:
        return None
    if not match[1]:
        return max(0, size - int(match[2])), size - 1
    return int(match[1]), min(int(match[2] or size), size - 1)


def _text(status: int, text: str, headers: Headers | None = None) -> Reply:
    return Reply(status, {"Content-Type": "text/plain; charset=utf-8", **(headers or {})}, text.encode())


def _sibling(path: str, blob: HubBlob, with_blobs: bool) -> dict[str, Any]:
    if not with_blobs:
        return {"rfilename": path}
    found: dict[str, Any] = {"rfilename": path, "size": blob.size, "blobId": blob.etag[:40]}
    return found | ({"lfs": {"sha256": blob.sha256, "size": blob.size, "pointerSize": 134}} if blob.lfs else {})


def _tree_entry(path: str, blob: HubBlob) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": blob.etag[:40], "size": blob.size, "path": path}
    if blob.lfs:
        entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 134}
    return entry
