"""ComfyUI's HTTP API, as recorded on a real server (contracts/comfyui.md).

Connections are kept alive: on loopback a new one per call costs as much as the whole of a small job. urllib3 is
used directly because requests adds half a millisecond to every call.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import orjson
import urllib3

from settee.base.errors import (
    ComfyError,
    ComfyUnavailable,
    InvalidRequest,
    OutputMissing,
    PayloadTooLarge,
    WorkflowRejected,
)
from settee.base.json_io import loads
from settee.comfyui.node_registry import NodeRegistry

#: A server that refuses every connection for so long is not there, and neither is its queue. (Within it, a proxy in
#: front of it may have been started anew.)
REFUSED_S = 10.0


#: Of an answer 413.
_MAX_UPLOAD = "this ComfyUI takes: start it with a higher --max-upload-size (MB)"


class NoAnswer(ComfyUnavailable):
    """ComfyUI does not answer."""

    #: True when it took the connection but said nothing in time (frozen or busy), False when it is not there.
    timed_out = False
    #: True when there was no connection, so that nothing of the request can have arrived.
    refused = False


@dataclass(frozen=True)
class Queue:
    """Prompt ids in ComfyUI's queue."""

    running: tuple[str, ...]
    #: In the order in which they will run.
    pending: tuple[str, ...]
    #: By id, running ones first, as ComfyUI has them: ``[number, id, prompt, extra_data, outputs]``.
    items: Mapping[str, list[Any]] = field(default_factory=dict)


def dumps(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:
        # orjson knows integers up to 64 bits and no lone surrogates. Python's encoder knows both; what it writes
        # is ASCII, and ComfyUI's own checks speak about the value.
        try:
            return json.dumps(value, allow_nan=False).encode("ascii")
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequest("the workflow or extra_data holds a value that JSON cannot carry") from error


class Client:
    """One ComfyUI server. Thread-safe; every call has a timeout in seconds and raises NoAnswer at its end."""

    def __init__(self, url: str, *, timeout_s: float = 10) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not an address of a ComfyUI server: {url!r}")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._base = parts.path.rstrip("/")
        self._timeout_s = timeout_s
        #: Since when (time.monotonic()) every connection has been refused; None when the last one was not.
        self.refused_since: float | None = None
        self._pool = urllib3.connectionpool.connection_from_url(
            f"{parts.scheme}://{parts.netloc}", maxsize=4, block=False, retries=False
        )

    # --- prompts ---------------------------------------------------------------------------------------

    def submit(
        self,
        prompt: dict[str, Any],
        *,
        prompt_id: str,
        client_id: str,
        extra_data: dict[str, Any],
        timeout_s: float = 60,
    ) -> dict[str, Any]:
        """POST /prompt; the ``node_errors`` of a prompt that was taken in part, {} when it was taken whole.

        Raises WorkflowRejected (details: ``error`` and ``node_errors`` as ComfyUI sent them), or NoAnswer, after
        which the prompt may or may not have been taken.
        """
        body: dict[str, Any] = {"prompt": prompt, "prompt_id": prompt_id, "client_id": client_id}
        if extra_data:  # never null: that kills ComfyUI's executor (worker_death.json)
            body["extra_data"] = extra_data
        # Validation may hash input files and ask custom nodes, so its limit is longer than that of other calls.
        status, raw = self._call("POST", "/prompt", body, timeout_s=timeout_s)
        if status == 200:
            node_errors = _object(raw).get("node_errors")
            return node_errors if isinstance(node_errors, dict) else {}
        if status == 400:
            answer = _object(raw)
            raise WorkflowRejected(
                details={"error": answer.get("error") or {}, "node_errors": answer.get("node_errors") or {}}
            )
        if status == 413:
            raise PayloadTooLarge(f"the workflow is larger than {_MAX_UPLOAD}, or send what it embeds under `files`")
        raise WorkflowRejected(f"ComfyUI failed while it checked the workflow (HTTP {status})")

    def history(self, prompt_id: str, *, timeout_s: float | None = None) -> dict[str, Any] | None:
        """The stored end of a prompt (prompt, outputs, status, meta), or None while there is none."""
        path = f"/history/{quote(prompt_id, safe='')}"
        entry = _object(self._get(path, timeout_s)).get(prompt_id)
        return entry if isinstance(entry, dict) else None

    def recent(self, count: int, *, timeout_s: float | None = None) -> dict[str, Any]:
        """The newest entries of history, by prompt id."""
        return _object(self._get(f"/history?max_items={count}", timeout_s))

    def queue(self, *, timeout_s: float | None = None) -> Queue:
        answer = _object(self._get("/queue", timeout_s))
        # Items are [number, id, prompt, …]; pending ones come in heap order (queue_shape_and_order.json).
        try:
            pending = sorted(answer.get("queue_pending") or (), key=lambda item: item[0])
            running = answer.get("queue_running") or []
            return Queue(
                tuple(str(item[1]) for item in running),
                tuple(str(item[1]) for item in pending),
                {str(item[1]): item for item in (*running, *pending)},
            )
        except (TypeError, LookupError) as error:
            raise ComfyError("ComfyUI's queue has another shape than expected") from error

    def delete(self, prompt_id: str, *, timeout_s: float | None = None) -> None:
        """Take a waiting prompt out of the queue; nothing happens to a running one."""
        self._post("/queue", {"delete": [prompt_id]}, timeout_s)

    def interrupt(self, prompt_id: str, *, timeout_s: float | None = None) -> None:
        """Stop this prompt at its next step, if it is the one that runs."""
        self._post("/interrupt", {"prompt_id": prompt_id}, timeout_s)

    def free(self) -> None:
        """Unload the models, and drop the execution cache before the next prompt.

        Two calls: with both flags in one the second was once deferred past the next prompt.
        """
        self._post("/free", {"unload_models": True}, None)
        self._post("/free", {"free_memory": True}, None)

    def forget(self, prompt_id: str) -> None:
        """Take a prompt (its texts too) out of ComfyUI's history."""
        self._post("/history", {"delete": [prompt_id]}, 2.0)

    # --- the server --------------------------------------------------------------------------------------

    def node_registry(self) -> NodeRegistry:
        """Ask for the node classes, and for those that they replace (since 0.33)."""
        classes = _object(self._get("/object_info", 60.0))
        status, raw = self._call("GET", "/node_replacements", None, timeout_s=self._timeout_s)
        return NodeRegistry(classes, _object(raw) if status == 200 else {})

    def system_stats(self, *, timeout_s: float | None = None) -> dict[str, Any]:
        return _object(self._get("/system_stats", timeout_s))

    # --- files -------------------------------------------------------------------------------------------

    def view(self, *, filename: str, subfolder: str, folder_type: str, chunk: int = 1024 * 1024) -> Iterator[bytes]:
        """Stream an output file. Raises OutputMissing when ComfyUI does not have it, or sends less than it said."""
        query = urlencode({"filename": filename, "subfolder": subfolder, "type": folder_type})
        try:
            response = self._pool.urlopen(
                "GET", f"{self._base}/view?{query}", preload_content=False, timeout=urllib3.Timeout(10, read=60)
            )
        except urllib3.exceptions.HTTPError as error:
            raise _no_answer(error) from error
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

    def upload(self, path: Path, *, name: str, subfolder: str) -> None:
        """Put a file into the input folder of a ComfyUI whose folders are not shared."""
        fields: dict[str, Any] = {
            "image": (name, path.read_bytes(), "application/octet-stream"),
            "subfolder": subfolder,
            "overwrite": "true",
        }
        body, content_type = urllib3.encode_multipart_formdata(fields)
        status, raw = self._send("POST", "/upload/image", body, {"Content-Type": content_type}, 120.0)
        if status == 413:
            raise PayloadTooLarge(f"the input file {name!r} is larger than {_MAX_UPLOAD}, or let it share its folders")
        stored = _object(raw) if status == 200 else {}
        if stored.get("name") != name or os.path.normpath(stored.get("subfolder") or ".") != os.path.normpath(
            subfolder or "."
        ):
            raise ComfyError(f"ComfyUI did not store the input {name!r} under its name (HTTP {status})")

    def close(self) -> None:
        self._pool.close()

    # --- one request -------------------------------------------------------------------------------------

    def _get(self, path: str, timeout_s: float | None) -> bytes:
        status, raw = self._call("GET", path, None, timeout_s=timeout_s or self._timeout_s)
        if status != 200:
            raise ComfyError(f"ComfyUI answered GET {path.split('?')[0]} with HTTP {status}")
        return raw

    def _post(self, path: str, body: Any, timeout_s: float | None) -> None:
        status, _ = self._call("POST", path, body, timeout_s=timeout_s or self._timeout_s)
        if status != 200:
            raise ComfyError(f"ComfyUI answered POST {path} with HTTP {status}")

    def _call(self, method: str, path: str, body: Any, *, timeout_s: float) -> tuple[int, bytes]:
        raw = None if body is None else dumps(body)
        return self._send(method, path, raw, {"Content-Type": "application/json"} if raw else {}, timeout_s)

    def _send(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], timeout_s: float
    ) -> tuple[int, bytes]:
        give_up = time.monotonic() + timeout_s
        try:
            response = self._pool.urlopen(
                method,
                self._base + path,
                body=body,
                headers=headers,
                redirect=False,
                preload_content=False,
                timeout=urllib3.Timeout(connect=min(timeout_s, 10), read=timeout_s),
            )
            self.refused_since = None
            try:
                return response.status, _body(response, give_up)
            finally:
                response.release_conn()
        except urllib3.exceptions.HTTPError as error:
            no_answer = _no_answer(error)
            self.refused_since = (self.refused_since or time.monotonic()) if no_answer.refused else None
            raise no_answer from error

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


def _no_answer(error: urllib3.exceptions.HTTPError) -> NoAnswer:
    # urllib3 counts a refused connection among the timeouts.
    refused = isinstance(error, urllib3.exceptions.NewConnectionError)
    timed_out = isinstance(error, urllib3.exceptions.TimeoutError) and not refused
    no_answer = NoAnswer("ComfyUI does not answer in time" if timed_out else "ComfyUI cannot be reached")
    no_answer.timed_out, no_answer.refused = timed_out, refused
    return no_answer


def _object(raw: bytes) -> dict[str, Any]:
    try:
        answer = loads(raw)
    except (ValueError, RecursionError) as error:
        raise ComfyError("ComfyUI sent an answer that is not JSON") from error
    if not isinstance(answer, dict):
        raise ComfyError("ComfyUI sent an answer of another shape than expected")
    return answer
