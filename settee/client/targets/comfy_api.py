"""ComfyUI's HTTP API, as far as a client of it goes (contracts/comfyui.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from settee.client.client_errors import NetworkError, Rejected, StatusError, UsageError
from settee.client.targets.comfy_request import Upload
from settee.client.targets.comfy_result import File, Place
from settee.client.targets.json_http import Http, Reply, Request, json_bytes
from settee.comfyui.history import mapping
from settee.comfyui.node_registry import NodeRegistry

#: ComfyUI answers POST /prompt when it has validated, which may hash files and ask custom nodes; seconds.
SUBMIT_S = 120.0
#: A larger file is not sent before its size has been compared with what ComfyUI accepts (100 MB by default).
ASK_FIRST_BYTES = 20_000_000


@dataclass(frozen=True)
class Queue:
    #: Items as ComfyUI has them: [number, id, prompt, extra_data, outputs].
    running: tuple[list[Any], ...]
    #: In the order in which they will run.
    pending: tuple[list[Any], ...]

    def item(self, job_id: str) -> list[Any] | None:
        return next((item for item in (*self.running, *self.pending) if item[1] == job_id), None)

    def started_by(self, job_id: str) -> list[str]:
        """Ids of the prompts that a job's nodes started: they repeat its graph, and so its salt."""
        items = (*self.running, *self.pending)
        return [item[1] for item in items if item[1] != job_id and len(item) > 2 and job_id in json.dumps(item[2])]

    def runs(self, job_id: str) -> bool:
        return any(item[1] == job_id for item in self.running)

    def ahead(self, job_id: str) -> int:
        """Return how many run or wait before a job that waits."""
        return len(self.running) + [item[1] for item in self.pending].index(job_id)


class Wire:
    """One server. Its methods may be called from any thread, and raise NetworkError when it does not answer."""

    def __init__(self, base_url: str, *, name: str) -> None:
        """Make no request yet. Raises UsageError for an invalid address."""
        self.name = name
        self._http = Http(base_url, name=name, key_name=None)
        self._base = base_url.rstrip("/")

    def close(self) -> None:
        self._http.close()

    # --- prompts -----------------------------------------------------------------------------------------------

    def prompt(self, body: Mapping[str, Any]) -> Reply:
        """POST /prompt: 200 with the ``node_errors`` of a prompt that was taken in part, 400 with those of one that
        was not, 500. Raises Unsure when it is not known whether it was accepted."""
        request = Request("POST", "/prompt", content=json_bytes(body), takes=frozenset((200, 400, 413, 500)))
        return self._http.exchange(request, repeatable=False, timeout_s=SUBMIT_S)

    def item(self, job_id: str) -> list[Any] | None:
        """Return a prompt as queue or history has it: [number, id, prompt, extra_data, outputs]."""
        item = self.queue().item(job_id)
        if item is None:
            prompt = mapping(self.history(job_id)).get("prompt")
            item = prompt if isinstance(prompt, list) else None
        return item

    def history(self, job_id: str) -> dict[str, Any] | None:
        """Return the history entry of a prompt that has ended."""
        entry = self._object(f"/history/{quote(job_id, safe='')}").get(job_id)
        return entry if isinstance(entry, dict) else None

    def started_by(self, job_id: str) -> list[dict[str, Any]]:
        """Return the history entries of the prompts that a job's nodes started, if they are among the newest."""
        entries = {each: mapping(entry) for each, entry in self._object("/history?max_items=100").items()}
        return [
            entry for each, entry in entries.items() if each != job_id and job_id in json.dumps(entry.get("prompt"))
        ]

    def queue(self) -> Queue:
        answer = self._object("/queue")
        try:
            # Pending ones come in heap order (queue_shape_and_order.json).
            pending = sorted(answer["queue_pending"], key=lambda item: float(item[0]))
            queue = Queue(tuple(answer["queue_running"]), tuple(pending))
            if all(isinstance(item, list) and len(item) > 1 for item in (*queue.running, *queue.pending)):
                return queue
        except (LookupError, TypeError, ValueError):
            pass
        raise NetworkError(f"{self.name}: its queue is not like ComfyUI's: check the address")

    def delete(self, job_id: str) -> None:
        """Take a prompt that waits out of the queue; nothing happens to one that runs."""
        self._post("/queue", {"delete": [job_id]})

    def interrupt(self, job_id: str) -> None:
        """Stop a prompt at its next step. Only for one that runs: an older ComfyUI stops whichever runs."""
        self._post("/interrupt", {"prompt_id": job_id})

    # --- files -------------------------------------------------------------------------------------------------

    def put(self, name: str, form: Upload) -> str:
        """Upload a file, unless the server has it already. Returns its name for a loader."""
        place = Place("", form.filename, form.subfolder, "input")
        known = self.look(place)
        if known is not None and known.size == form.size:
            return f"{form.subfolder}/{form.filename}"
        request = Request(
            "POST",
            "/upload/image",
            content=form.content,
            content_type=form.content_type,
            takes=frozenset((200, 400, 413, 500)),
        )
        # While a body comes that is too long, ComfyUI may answer and close; a slow line then only sees it closed.
        if form.size > ASK_FIRST_BYTES and len(form.content) > self._max_upload_bytes():
            reply = Reply(413, {}, b"")
        else:
            reply = self._http.exchange(request, repeatable=True, timeout_s=SUBMIT_S)
        if reply.status == 413:
            raise Rejected(
                f"{name} has {form.size / 1e6:.1f} MB, more than this ComfyUI takes: start it with a higher "
                "--max-upload-size",
                code="payload_too_large",
            )
        stored = json_of(reply) if reply.status == 200 else {}
        if not isinstance(stored.get("name"), str) or stored.get("subfolder") != form.subfolder:
            raise NetworkError(f"{self.name} did not store {name} (HTTP {reply.status}): see its log")
        # Another name where a file of that name and other bytes was there, such as a part of this one.
        return f"{form.subfolder}/{stored['name']}"

    def _max_upload_bytes(self) -> float:
        try:
            limit = mapping(self._http.get("/features")).get("max_upload_size")
        except StatusError:
            limit = None  # an older ComfyUI
        return limit if isinstance(limit, (int, float)) else float("inf")

    def look(self, place: Place) -> File | None:
        """Return a file's address and size; None when it does not exist."""
        takes = frozenset((200, 400, 403, 404, 405, 501))
        reply = self._http.exchange(Request("HEAD", "/view", place.params, takes=takes), repeatable=True)
        if reply.status in (400, 403, 404):
            return None
        length = reply.headers.get("content-length", "")
        is_size = reply.status == 200 and length.isdigit() and "content-encoding" not in reply.headers
        return File(f"{self._base}/view?{urlencode(place.params)}", int(length) if is_size else None)

    # --- the server ---------------------------------------------------------------------------------------------

    def system_stats(self) -> dict[str, Any]:
        return self._object("/system_stats")

    def node_registry(self) -> NodeRegistry:
        """Return its node registry, without the classes that are not described properly."""
        return well_described(self._object("/object_info", timeout_s=60.0))

    def extensions(self) -> list[str]:
        """Return the scripts that its custom nodes show to the editor."""
        answer = self._get("/extensions", None)
        if not isinstance(answer, list) or not all(isinstance(path, str) for path in answer):
            raise NetworkError(f"{self.name}: it does not answer as ComfyUI does: check the address")
        return answer

    def _object(self, path: str, timeout_s: float | None = None) -> dict[str, Any]:
        answer = self._get(path, timeout_s)
        if not isinstance(answer, dict):
            raise NetworkError(f"{self.name}: it does not answer as ComfyUI does: check the address")
        return answer

    def _get(self, path: str, timeout_s: float | None) -> Any:
        try:
            return self._http.get(path, timeout_s=timeout_s)
        except StatusError as error:
            if error.status == 404:
                raise NetworkError(f"{self.name}: there is no ComfyUI (HTTP 404): check the address") from error
            raise

    def _post(self, path: str, body: Any) -> None:
        self._http.post(path, body, repeatable=True, empty_ok=True)


def json_of(reply: Reply) -> dict[str, Any]:
    """Return the reply's JSON object; an empty one when it has none."""
    try:
        return mapping(json.loads(reply.content))
    except (ValueError, RecursionError):
        return {}


def read_registry(where: str | PathLike[str]) -> NodeRegistry:
    """Read a registry from a server or a file. Raises NetworkError for a server that does not answer as ComfyUI does,
    UsageError for anything that is not a registry."""
    text = str(where)
    if text.startswith(("http://", "https://")):
        with closing(_wire(text)) as wire:
            known = wire.node_registry()
    else:
        data = _from_file(Path(text))
        known = well_described(data if isinstance(data, dict) else {})
    if not known:
        raise UsageError(f"--registry {text}: that is not a node registry: name a ComfyUI, or its saved /object_info")
    return known


def well_described(data: Mapping[str, Any]) -> NodeRegistry:
    """Return the classes that are described as ComfyUI describes them; the others, which a custom node describes
    wrongly, count as unknown."""
    return NodeRegistry(
        {
            name: entry
            for name, entry in data.items()
            if isinstance(entry, dict)
            and isinstance(inputs := entry.get("input"), dict)
            and all(isinstance(group, dict) for group in inputs.values())
            and isinstance(entry.get("output") or [], list)
        }
    )


def _from_file(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"--registry {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--registry {path}: it is not valid JSON") from error


def extensions_of(where: str | PathLike[str]) -> list[str] | None:
    """Return the scripts that the server's custom nodes show to the editor; None for a file, which does not have them.

    Raises NetworkError.
    """
    text = str(where)
    if not text.startswith(("http://", "https://")):
        return None
    with closing(_wire(text)) as wire:
        return wire.extensions()


def _wire(url: str) -> Wire:
    address = url.rstrip("/").removesuffix("/object_info")
    return Wire(address, name=f"--registry {address}")
