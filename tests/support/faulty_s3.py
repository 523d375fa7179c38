"""An S3 server that fails on request, for what a healthy one never does.

It keeps objects in memory, believes every signature and speaks just enough of the protocol for uploads. ``faults``
are used up one per request that stores something; when there are none left, it works.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import ssl
from collections.abc import Callable, Iterator
from urllib.parse import unquote

from tests.support.http_double import Ask, HttpDouble, Reply

OK, CUT, LOST, ERROR, HTML, HANG, SHORT = ["ok", "cut", "lost", "error", "html", "hang", "short"]
DENIED = "denied"


class FaultyS3(HttpDouble):
    """``endpoint_url``, what it holds (``objects``, ``uploads``), what it was asked (``requests``), and its faults.

    cut     the connection ends in the middle of the body
    lost    the object is stored, but the connection ends before the answer
    error   500 InternalError
    denied  403 AccessDenied
    html    200 with a web page
    hang    no answer until the server ends
    short   an object loses its last byte
    """

    access_key = "any"
    secret_key = "any-secret"
    reads_lazily = True

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls=tls)
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.faults: list[str] = []
        #: Used whenever ``faults`` is empty.
        self.then = OK
        #: Whether the keys may ask for a bucket, and list it.
        self.may_look = True
        #: Called with each request's line before it is answered.
        self.on_request: Callable[[str], None] = lambda line: None
        #: Whether the last multipart upload had parts of one size, as Cloudflare's R2 insists.
        self.even = False
        self.up()
        self.endpoint_url = self.origin

    @contextlib.contextmanager
    def running(self) -> Iterator[FaultyS3]:
        try:
            yield self
        finally:
            self.close()

    @property
    def requests(self) -> list[str]:
        return [f"{ask.method} {ask.path}" for ask in self.asked]

    @property
    def received(self) -> int:
        """Bytes of bodies."""
        return sum(ask.received for ask in self.asked)

    def fault(self) -> str:
        return self.faults.pop(0) if self.faults else self.then

    def answer(self, ask: Ask) -> Reply:
        self.on_request(f"{ask.method} {ask.path}")
        key = unquote(ask.route.lstrip("/"))
        is_bucket = "/" not in key  # all are there
        if ask.method == "HEAD":
            found = b"" if is_bucket else self.objects.get(key)
            if is_bucket and not self.may_look:
                return Reply(403)
            return Reply(404) if found is None else Reply(200, {"ETag": '"x"'}, found)
        if ask.method == "DELETE":
            return self._delete(key, ask.query)
        if ask.method == "GET" and is_bucket and not self.may_look:
            return _refused(403, "AccessDenied")
        if "uploads" in ask.query:
            ask.read()
            upload = f"upload-{len(self.asked)}"
            self.uploads[upload] = {}
            return Reply(200, {"Content-Type": "application/xml"}, f"<R><UploadId>{upload}</UploadId></R>".encode())
        if ask.method == "POST" and ask.query["uploadId"][0] not in self.uploads:
            ask.read()
            return _refused(404, "NoSuchUpload")
        return self._broken(ask, key) or (self._get(ask, key) if ask.method == "GET" else self._put(ask, key))

    def _broken(self, ask: Ask, key: str) -> Reply | None:
        """What becomes of this request by its fault, if it has one."""
        fault = self.fault()
        if fault == CUT:
            ask.read(50_000)
            return Reply(cut_after=-1)
        body = ask.read()
        if fault in (LOST, SHORT):
            self._store(ask, key, body[: -1 if fault == SHORT else None])
            return Reply(cut_after=-1) if fault == LOST else Reply(200, {"ETag": '"0"'})
        page = b"<!doctype html><title>Welcome</title><p>It works!"
        return {
            ERROR: _refused(500, "InternalError"),
            DENIED: _refused(403, "AccessDenied"),
            HTML: Reply(200, {"Content-Type": "text/html"}, page),
            HANG: Reply(silent_after=-1),
        }.get(fault)

    def _store(self, ask: Ask, key: str, body: bytes) -> None:
        if ask.method == "PUT" and "uploadId" in ask.query:
            self.uploads[ask.query["uploadId"][0]][int(ask.query["partNumber"][0])] = body
        elif ask.method == "PUT":
            self.objects[key] = body
        elif "uploadId" in ask.query:
            parts = self.uploads.pop(ask.query["uploadId"][0])
            lengths = [len(parts[number]) for number in sorted(parts)]
            self.even = len(set(lengths[:-1])) == 1 and 0 < lengths[-1] <= lengths[0]
            self.objects[key] = b"".join(parts[number] for number in sorted(parts))

    def _put(self, ask: Ask, key: str) -> Reply:
        body = ask.raw
        if ask.method == "POST":
            named = [int(number) for number in re.findall(rb"<PartNumber>(\d+)<", body)]
            assert named == sorted(self.uploads[ask.query["uploadId"][0]])
            self._store(ask, key, b"")
            return Reply(200, {"Content-Type": "application/xml"}, b'<R><ETag>"x"</ETag></R>')
        self._store(ask, key, body)
        return Reply(200, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    def _get(self, ask: Ask, key: str) -> Reply:
        body = self.objects.get(key)
        if body is None:
            return _refused(404, "NoSuchKey")
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", ask.headers.get("Range", ""))
        if asked is None:
            return Reply(200, {"ETag": '"x"', "Accept-Ranges": "bytes"}, body)
        first, last = int(asked[1]), min(int(asked[2] or len(body)), len(body) - 1)
        headers = {"ETag": '"x"', "Content-Range": f"bytes {first}-{last}/{len(body)}"}
        return Reply(206, headers, body[first : last + 1])

    def _delete(self, key: str, query: dict[str, list[str]]) -> Reply:
        if "uploadId" not in query:
            self.objects.pop(key, None)
        elif self.uploads.pop(query["uploadId"][0], None) is None:
            return _refused(404, "NoSuchUpload")
        return Reply(204)


def _refused(status: int, code: str) -> Reply:
    return Reply(status, {}, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())
