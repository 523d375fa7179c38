"""ComfyUI's HTTP API: its routes, and the shapes of their answers as recorded on real servers (tests/contract).

The worker and the client's bare ComfyUI send requests in ways of their own; what they send and read is here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from settee.base.errors import PayloadTooLarge, WorkflowRejected
from settee.comfyui.history import Place, mapping

#: Of an answer 413.
MAX_UPLOAD = "this ComfyUI takes: start it with a higher --max-upload-size (MB)"
#: What ComfyUI answers in addition to 200 to a prompt or an upload: refused, too large, failed while it checked.
_REFUSALS = (400, 413, 500)


@dataclass(frozen=True)
class Request:
    """A request to a server that answers in JSON."""

    method: str
    path: str
    #: A Form, or a JSON value.
    body: Any = field(default=None, repr=False)
    #: HTTP statuses whose answer is wanted in addition to a success.
    takes: Collection[int] = ()
    timeout_s: float | None = None
    #: It must not be repeated, as the server may have acted on it.
    once: bool = False


@dataclass(frozen=True)
class Reply:
    """An answer. Header names are in lower case."""

    status: int
    #: Its JSON; None where it has none, which only an answer that is not a success may lack.
    data: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Form:
    """A body that is not JSON."""

    content: bytes = field(repr=False)
    content_type: str


@dataclass(frozen=True)
class Queue:
    """Prompt ids in ComfyUI's queue."""

    running: tuple[str, ...] = ()
    #: In the order in which they will run.
    pending: tuple[str, ...] = ()
    #: By id, running ones first, as ComfyUI has them: ``[number, id, prompt, extra_data, outputs]``.
    items: Mapping[str, list[Any]] = field(default_factory=dict)


class HttpApi(ABC):
    """One server. Every method raises what :meth:`ask` and :meth:`misshapen` raise; ``timeout_s`` limits one call."""

    @abstractmethod
    def ask(self, request: Request) -> Reply:
        """Send one request and return its answer: a success with its JSON, or a status that it takes."""

    @abstractmethod
    def misshapen(self) -> Exception:
        """Return the error for an answer of another shape than ComfyUI's."""

    # --- prompts ---------------------------------------------------------------------------------------------

    def submit(
        self, graph: Mapping[str, Any], prompt_id: str, client_id: str, extra_data: Mapping[str, Any], timeout_s: float
    ) -> dict[str, Any]:
        """POST /prompt; return the ``node_errors`` of a prompt that was taken in part, {} when it was taken whole.

        ``timeout_s`` is long: validation may hash input files and ask custom nodes. Raises PayloadTooLarge, and
        WorkflowRejected (details: ``error`` and ``node_errors`` as ComfyUI sent them). When no answer comes the prompt
        may have been taken all the same.
        """
        body: dict[str, Any] = {"prompt": graph, "prompt_id": prompt_id, "client_id": client_id}
        if extra_data:  # never null: that kills ComfyUI's executor (worker_death.json)
            body["extra_data"] = extra_data
        reply = self.ask(Request("POST", "/prompt", body, _REFUSALS, timeout_s, once=True))
        answer = mapping(reply.data)
        if reply.status == 200:
            return mapping(answer.get("node_errors"))
        if reply.status == 400:
            raise WorkflowRejected(details={name: mapping(answer.get(name)) for name in ("error", "node_errors")})
        if reply.status == 413:
            raise PayloadTooLarge(f"the workflow is larger than {MAX_UPLOAD}, or send what it embeds under `files`")
        raise WorkflowRejected(f"ComfyUI failed while it checked the workflow (HTTP {reply.status}): see its log")

    def history(self, prompt_id: str, *, timeout_s: float | None = None) -> dict[str, Any] | None:
        """Return the stored end of a prompt (prompt, outputs, status, meta); None while there is none."""
        # An empty one, which ComfyUI has never had, would be neither an end nor an absence.
        return mapping(self._object(f"/history/{quote(prompt_id, safe='')}", timeout_s).get(prompt_id)) or None

    def recent(self, count: int, *, timeout_s: float | None = None) -> dict[str, Any]:
        """Return the newest entries of history, by prompt id."""
        return self._object(f"/history?max_items={count}", timeout_s)

    def queue(self, *, timeout_s: float | None = None) -> Queue:
        answer = self._object("/queue", timeout_s)
        try:
            running = answer["queue_running"]
            # Pending ones come in heap order (queue_shape_and_order.json).
            pending = sorted(answer["queue_pending"], key=lambda item: float(item[0]))
            items = {str(item[1]): item for item in (*running, *pending)}
            return Queue(tuple(str(item[1]) for item in running), tuple(str(item[1]) for item in pending), items)
        except (TypeError, LookupError, ValueError) as error:
            raise self.misshapen() from error

    def delete(self, prompt_id: str, *, timeout_s: float | None = None) -> None:
        """Take a waiting prompt out of the queue; nothing happens to a running one."""
        self.ask(Request("POST", "/queue", {"delete": [prompt_id]}, timeout_s=timeout_s))

    def interrupt(self, prompt_id: str, *, timeout_s: float | None = None) -> None:
        """Stop this prompt at its next step, if it runs. An older ComfyUI stops whichever runs."""
        self.ask(Request("POST", "/interrupt", {"prompt_id": prompt_id}, timeout_s=timeout_s))

    def forget(self, prompt_id: str) -> None:
        """Take a prompt (its texts too) out of ComfyUI's history."""
        self.ask(Request("POST", "/history", {"delete": [prompt_id]}, timeout_s=2.0))

    # --- the server ------------------------------------------------------------------------------------------

    def free(self) -> None:
        """Unload the models, and drop the execution cache before the next prompt.

        Two calls: with both flags in one the second was once deferred past the next prompt.
        """
        self.ask(Request("POST", "/free", {"unload_models": True}))
        self.ask(Request("POST", "/free", {"free_memory": True}))

    def object_info(self) -> dict[str, Any]:
        """Return its node classes."""
        return self._object("/object_info", 60.0)

    def replacements(self) -> dict[str, Any]:
        """Return the classes that it replaces by others (since 0.33)."""
        reply = self.ask(Request("GET", "/node_replacements", takes=range(300, 600)))
        return mapping(reply.data) if reply.status == 200 else {}

    def system_stats(self, *, timeout_s: float | None = None) -> dict[str, Any]:
        return self._object("/system_stats", timeout_s)

    def upload(self, name: str, content: bytes, *, subfolder: str, overwrite: bool = False) -> Reply:
        """Put a file below the input folder; 200 with the ``name`` and ``subfolder`` under which it is stored."""
        from urllib3.filepost import encode_multipart_formdata

        fields: list[Any] = [
            ("image", (name, content, "application/octet-stream")),
            ("type", "input"),
            ("subfolder", subfolder),
        ]
        form = Form(*encode_multipart_formdata([*fields, ("overwrite", str(overwrite).lower())]))
        return self.ask(Request("POST", "/upload/image", form, takes=_REFUSALS, timeout_s=120.0))

    def _object(self, path: str, timeout_s: float | None) -> dict[str, Any]:
        answer = self.ask(Request("GET", path, timeout_s=timeout_s)).data
        if not isinstance(answer, dict):
            raise self.misshapen()
        return answer


def view_path(place: Place) -> str:
    """Return where a file is read."""
    return "/view?" + urlencode(dict(zip(("type", "subfolder", "filename"), place, strict=True)))
