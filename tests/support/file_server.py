"""A web server for one file, on loopback: whole and by ranges, and with whatever a rule makes of an answer.

``rule(ask, reply)`` is called with every request before it is answered, and may change the reply.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator

from tests.support.http_double import Ask, HttpDouble, Reply

Rule = Callable[[Ask, Reply], None]


class FileServer(HttpDouble):
    """``url`` is where ``data`` is; any other path has it too."""

    def __init__(self, data: bytes, *, rule: Rule = lambda ask, reply: None, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls=tls)
        self.data = data
        self.rule = rule
        self.etag: str | None = '"one"'
        self.ranges = True
        #: Status of every HEAD, instead of 200.
        self.head_status: int | None = None
        # Tests name the address before they serve.
        self.up()

    @property
    def url(self) -> str:
        return f"{self.origin}/file.bin"

    @contextlib.contextmanager
    def running(self) -> Iterator[FileServer]:
        try:
            yield self
        finally:
            self.close()

    @property
    def sent(self) -> int:
        """Bytes of bodies that were handed to sockets."""
        return sum(ask.sent for ask in self.asked)

    @property
    def gets(self) -> list[Ask]:
        return [ask for ask in self.asked if ask.method == "GET"]

    def answer(self, ask: Ask) -> Reply:
        reply = self.reply(ask)
        self.rule(ask, reply)
        return reply

    def reply(self, ask: Ask) -> Reply:
        if ask.method == "HEAD" and self.head_status is not None:
            return Reply(self.head_status)
        headers = {"Accept-Ranges": "bytes"} if self.ranges else {}
        if self.etag is not None:
            headers["ETag"] = self.etag
        data = memoryview(self.data)
        if ask.span is None or not self.ranges:
            return Reply(200, headers, data)
        first, last = ask.span
        if first >= len(data):
            return Reply(416, {"Content-Range": f"bytes */{len(data)}"})
        last = min(last, len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return Reply(206, headers, data[first : last + 1])
