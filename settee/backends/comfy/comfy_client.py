"""The worker's requests to ComfyUI: each sent once, over connections that stay open, with errors of the worker's.

On loopback a new connection a call costs as much as the whole of a small job. urllib3 is used directly because requests
adds half a millisecond to every call.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import urllib3

from settee.base.errors import ComfyError, ComfyUnavailable, ConfigError, OutputMissing, PayloadTooLarge
from settee.base.json_io import dumps, loads
from settee.comfyui.history import Place, mapping
from settee.comfyui.http_api import MAX_UPLOAD, Form, HttpApi, Reply, Request, view_path
from settee.comfyui.node_registry import NodeRegistry

#: A server that refuses every connection for so long is not there, and neither is its queue. (Within it, a proxy in
#: front of it may have been restarted.)
REFUSED_S = 10.0


class NoAnswer(ComfyUnavailable):
    """ComfyUI does not answer."""

    def __init__(self, error: urllib3.exceptions.HTTPError | None = None) -> None:
        #: There was no connection, so that nothing of the request can have arrived. (urllib3 has it for a timeout.)
        self.refused = isinstance(error, urllib3.exceptions.NewConnectionError)
        #: It took the connection, and sent nothing in time: it is frozen or busy.
        self.timed_out = isinstance(error, urllib3.exceptions.TimeoutError) and not self.refused
        super().__init__("ComfyUI does not answer in time" if self.timed_out else "ComfyUI cannot be reached")


class ComfyDied(ComfyUnavailable):
    """ComfyUI went away while it ran the prompt.

    ``needs_restart``: its process, should it still run, is of no use any more. ``is_fatal``: the prompt itself is to
    blame, so that it must not run again.
    """

    #: The node that ran last, where that is known.
    node_id: str | None = None

    def __init__(self, message: str | None = None, *, needs_restart: bool = False, is_fatal: bool = False) -> None:
        super().__init__(message)
        self.needs_restart, self.is_fatal = needs_restart, is_fatal


class Client(HttpApi):
    """One server. Thread-safe; every call has a timeout in seconds, and raises NoAnswer at its end, else ComfyError."""

    def __init__(self, url: str, *, timeout_s: float = 10) -> None:
        """Raises ConfigError for an invalid address."""
        try:
            parts = urlsplit(url if "//" in url else f"http://{url}")
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(url)
            self._pool = urllib3.connectionpool.connection_from_url(
                f"{parts.scheme}://{parts.netloc}", maxsize=4, block=False, retries=False
            )
        except ValueError as error:  # urllib3's for a port is one, too
            raise ConfigError(
                f"COMFY_URL: not an address of a ComfyUI server: {url!r}; it looks like http://127.0.0.1:8188"
            ) from error
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._base = parts.path.rstrip("/")
        self._timeout_s = timeout_s
        #: Since when (time.monotonic()) every connection has been refused; None when the last one was not.
        self.refused_since: float | None = None

    def node_registry(self) -> NodeRegistry:
        return NodeRegistry(self.object_info(), self.replacements())

    def view(self, place: Place, *, chunk: int = 1024 * 1024) -> Iterator[bytes]:
        """Stream an output file. Raises OutputMissing when ComfyUI does not have it, or sends less than it said."""
        filename = place[2]
        try:
            response = self._open(Request("GET", view_path(place)), urllib3.Timeout(10, read=60))
        except urllib3.exceptions.HTTPError as error:
            raise NoAnswer(error) from error
        try:
            if response.status != 200:
                raise OutputMissing(
                    f"ComfyUI reported the output {filename!r}, but does not have it (HTTP {response.status})"
                )
            yield from response.stream(chunk)
        except urllib3.exceptions.HTTPError as error:
            raise OutputMissing(f"the output {filename!r} could not be read whole from ComfyUI") from error
        finally:
            response.release_conn()

    def put(self, path: Path, *, name: str, subfolder: str) -> None:
        """Put a file into the input folder of a ComfyUI whose folders are not shared."""
        reply = self.upload(name, path.read_bytes(), subfolder=subfolder, overwrite=True)
        if reply.status == 413:
            raise PayloadTooLarge(f"the input file {name!r} is larger than {MAX_UPLOAD}, or let it share its folders")
        stored = mapping(reply.data) if reply.status == 200 else {}
        folder = os.path.normpath(stored.get("subfolder") or ".")
        if stored.get("name") != name or folder != os.path.normpath(subfolder or "."):
            raise ComfyError(f"ComfyUI did not store the input {name!r} under its name (HTTP {reply.status})")

    def close(self) -> None:
        self._pool.close()

    # --- one request -------------------------------------------------------------------------------------

    def ask(self, request: Request) -> Reply:
        """As HttpApi has it; raises NoAnswer, and ComfyError for any other answer."""
        status, content = self._send(request)
        if status != 200 and status not in request.takes:
            raise ComfyError(f"ComfyUI answered {request.method} {request.path.split('?')[0]} with HTTP {status}")
        try:
            return Reply(status, loads(content) if content else None)
        except ValueError as error:
            if status != 200:
                return Reply(status)
            raise ComfyError("ComfyUI sent an answer that is not JSON") from error

    def misshapen(self) -> ComfyError:
        return ComfyError("ComfyUI sent an answer of another shape than expected")

    def _send(self, request: Request) -> tuple[int, bytes]:
        timeout_s = request.timeout_s or self._timeout_s
        give_up = time.monotonic() + timeout_s
        try:
            response = self._open(request, urllib3.Timeout(connect=min(timeout_s, 10), read=timeout_s))
            self.refused_since = None
            try:
                return response.status, _body(response, give_up)
            finally:
                response.release_conn()
        except urllib3.exceptions.HTTPError as error:
            no_answer = NoAnswer(error)
            self.refused_since = (self.refused_since or time.monotonic()) if no_answer.refused else None
            raise no_answer from error

    def _open(self, request: Request, timeout: urllib3.Timeout) -> urllib3.BaseHTTPResponse:
        form = request.body
        if form is not None and not isinstance(form, Form):
            form = Form(dumps(form), "application/json")
        return self._pool.urlopen(
            request.method,
            self._base + request.path,
            body=None if form is None else form.content,
            headers={} if form is None else {"Content-Type": form.content_type},
            redirect=False,
            preload_content=False,
            timeout=timeout,
        )

    @property
    def refused_for_s(self) -> float:
        """For how long every connection has been refused, seconds."""
        return 0.0 if self.refused_since is None else time.monotonic() - self.refused_since

    @property
    def is_gone(self) -> bool:
        return self.refused_for_s >= REFUSED_S


def _body(response: urllib3.BaseHTTPResponse, give_up: float) -> bytes:
    """The whole body. urllib3's limit is per read: a body that trickles would outlast it."""
    parts = []
    while part := response.read1(256 * 1024):
        parts.append(part)
        if time.monotonic() >= give_up:
            response.close()
            raise urllib3.exceptions.ReadTimeoutError(None, "", "the answer came too slowly")  # type: ignore[arg-type]
    return b"".join(parts)
