"""How :mod:`tests.support.hub` answers one request."""

from __future__ import annotations

import json
import re
import socket
import struct
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

if TYPE_CHECKING:
    from tests.support.hub import HubBlob, HubServer, Repo

#: Bytes handed to the kernel at a time: whole ranges at full speed, little pieces when the line is slow.
_PIECE = 8 << 20
_SLOW_PIECE = 64 << 10


class _Cut(Exception):
    """This connection ends here."""


class Handler(BaseHTTPRequestHandler):
    """One connection of the Hub or of the host for large files, as `server.role` says."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle(self) -> None:
        with self.hub.connected(self.connection):
            super().handle()

    @property
    def hub(self) -> HubServer:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are kept in `HubServer.requests` instead."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        faults = self.hub.faults
        self._status, self._sent, self._noted = 0, 0, False
        self.hub.begin()
        try:
            if faults.silent:
                self._stall()
            if faults.latency_s:
                self.hub.stopped.wait(faults.latency_s)
            if self.server.role == "cdn":  # type: ignore[attr-defined]
                self._large_file()
            else:
                self._hub_page()
        except (_Cut, OSError):
            self._reset()
        finally:
            self._note()

    def _stall(self) -> None:
        """Say nothing more until the server stops."""
        self._note()
        self.hub.stopped.wait()
        raise _Cut

    def _note(self) -> None:
        from tests.support.hub import Request

        if self._noted:
            return
        self._noted = True
        self.hub.note(
            Request(
                host=self.server.role,  # type: ignore[attr-defined]
                method=self.command,
                path=self.path,
                authorization=self.headers.get("Authorization"),
                range=self.headers.get("Range"),
                status=self._status,
                sent=self._sent,
                user_agent=self.headers.get("User-Agent", ""),
            )
        )

    def _reset(self) -> None:
        self.close_connection = True
        try:
            # Closing sends RST instead of FIN: the client cannot take it for the body's end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    # --- The Hub -------------------------------------------------------------------------------------
    def _hub_page(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if page := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+?))?/?", path):
            self._api(page[1], page[2] or "revision", page[3] or "main")
            return
        # Branch names with slashes arrive quoted: look at the path before it is unquoted.
        raw = urlsplit(self.path).path
        if page := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", raw):
            self._resolve(unquote(page[1]), unquote(page[2]), unquote(page[3]))
            return
        self._text(404, "no such page")

    def _resolve(self, name: str, revision: str, filename: str) -> None:
        if name in self.hub.moved:
            self._headers(307, {"Location": self.path.replace(name, self.hub.moved[name], 1), "Content-Length": "0"})
            return
        if self._planned():
            return
        if (found := self._open(name, revision)) is None:
            return
        repo, commit = found
        headers = {"X-Repo-Commit": commit}
        blob = repo.commits[commit].get(filename)
        if blob is None:
            self._text(404, "Entry not found", {**headers, "X-Error-Code": "EntryNotFound"})
            return
        headers |= {"ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
        if blob.xet:
            route = f"{self.hub.endpoint}/api/models/{name}/xet-read-token/{commit}"
            headers |= {"X-Xet-Hash": blob.sha256, "X-Xet-Refresh-Route": route}
        if blob.lfs and self.hub.redirects and not blob.xet:
            query = f"Signature={self.hub.generation}&name={quote(filename)}"
            headers |= {"Location": f"{self.hub.cdn}/blobs/{blob.sha256}?{query}", "Content-Length": "0"}
            self._headers(302, headers)
            return
        self._file(blob, headers)

    def _open(self, name: str, revision: str) -> tuple[Repo, str] | None:
        """The repository at a commit, or None once the answer says why not."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        if token is not None and token not in self.hub.tokens:
            self._text(401, "", {"X-Error-Message": "Invalid credentials in Authorization header"})
            return None
        repo = self.hub.repos.get(name)
        allowed = name in self.hub.tokens.get(token or "", ())
        if repo is None or (repo.private and not allowed):
            # Who sends no token is not told whether the repository is there.
            if token is None:
                self._text(401, "", {"X-Error-Message": "Invalid username or password."})
            else:
                self._text(404, "", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return None
        if repo.gated and not allowed and "/resolve/" in self.path:
            message = f"Access to model {name} is restricted. Visit {self.hub.endpoint}/{name} to ask for access."
            status = 401 if token is None else 403
            self._text(status, message, {"X-Error-Code": "GatedRepo", "X-Error-Message": message})
            return None
        commit = repo.commit_of(revision)
        if commit is None:
            message = f"Invalid rev id: {revision}"
            self._text(404, message, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": message})
            return None
        return repo, commit

    def _api(self, name: str, page: str, revision: str) -> None:
        if (found := self._open(name, revision)) is None:
            return
        repo, commit = found
        files = repo.commits[commit]
        answer: Any
        if page == "tree":
            answer = [_tree_entry(path, blob) for path, blob in sorted(files.items())]
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
                "siblings": [_sibling(path, blob, "blobs" in self.path) for path, blob in sorted(files.items())],
            }
        self._text(200, json.dumps(answer), {"Content-Type": "application/json"})

    # --- The other host ------------------------------------------------------------------------------
    def _large_file(self) -> None:
        parts = urlsplit(self.path)
        if self._planned():
            return
        if parse_qs(parts.query).get("Signature") != [str(self.hub.generation)]:
            self._text(403, "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>")
            return
        blob = self.hub.blob(parts.path.removeprefix("/blobs/"))
        if blob is None:
            self._text(404, "<Error><Code>NoSuchKey</Code></Error>")
            return
        # The store of large files has an ETag of its own, which is not the Hub's.
        self._file(blob, {"ETag": f'"{blob.sha256[:32]}"', "Accept-Ranges": "bytes"})

    # --- Bodies --------------------------------------------------------------------------------------
    def _planned(self) -> bool:
        """Give the next of `Faults.next_answers` or `Faults.heads`, if there is one, or refuse."""
        if self.hub.faults.library_only and self.command == "GET" and "hf_hub/" not in self.headers["User-Agent"]:
            self._text(403, "Not over plain HTTP")
            return True
        with self.hub.lock:
            planned = self.hub.faults.next_answers if self.command == "GET" else self.hub.faults.heads
            answer = planned.pop(0) if planned else None
        if answer is None:
            return False
        self._text(answer[0], "planned", answer[1])
        return True

    def _file(self, blob: HubBlob, headers: dict[str, str]) -> None:
        faults = self.hub.faults
        first, last, status = 0, blob.size - 1, 200
        if not faults.ranges:
            headers.pop("Accept-Ranges", None)
        elif (wanted := self._range(blob.size, headers["ETag"])) is not None:
            first, last = wanted
            if first >= blob.size:
                self._headers(416, {"Content-Range": f"bytes */{blob.size}", "Content-Length": "0"})
                return
            status = 206
            headers["Content-Range"] = f"bytes {first}-{last}/{blob.size if faults.lengths else '*'}"
        if faults.lengths or status == 206:
            headers["Content-Length"] = str(last - first + 1)
        else:
            headers["Connection"] = "close"
        self._headers(status, headers)
        if self.command == "GET":
            self._body(blob, first, last + 1)

    def _range(self, size: int, etag: str) -> tuple[int, int] | None:
        """First and last byte asked for; None is the whole file."""
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if match is None or not (match[1] or match[2]) or self.headers.get("If-Range", etag) != etag:
            return None
        if not match[1]:
            return max(0, size - int(match[2])), size - 1
        return int(match[1]), min(int(match[2] or size), size - 1)

    def _body(self, blob: HubBlob, start: int, end: int) -> None:
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
                self.hub.pay(piece)
                if wrong is not None and at <= wrong < at + piece:
                    stream.seek(at)
                    data = bytearray(stream.read(piece))
                    data[wrong - at] ^= 0xFF
                    self.connection.sendall(data)
                else:
                    self.connection.sendfile(stream, at, piece)
                at += piece
                self._sent += piece
        if stop == stall:
            self._stall()
        if stop < end:
            raise _Cut

    def _text(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        body = text.encode()
        headers = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body)), **(headers or {})}
        self._headers(status, headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _headers(self, status: int, headers: dict[str, str]) -> None:
        self._status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


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
