"""The client's requests to a ComfyUI: its HTTP API, tried again as :mod:`settee.client.targets.json_http` does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import closing
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from settee.client.client_errors import NetworkError, Rejected, StatusError, UsageError
from settee.client.targets.json_http import Http
from settee.comfyui.history import Place, mapping
from settee.comfyui.http_api import HttpApi, Reply, Request, view_path
from settee.comfyui.node_registry import NodeRegistry

#: Below ComfyUI's input folder.
FOLDER = "settee"
#: ComfyUI answers POST /prompt when it has validated, which may hash files and ask custom nodes; seconds.
SUBMIT_S = 120.0
#: A larger file is not sent before its size has been compared with what ComfyUI accepts (100 MB by default).
ASK_FIRST_BYTES = 20_000_000


class File(NamedTuple):
    """A file as the server has it. ``size``: bytes, None when the server does not state it."""

    url: str
    size: int | None


class Wire(HttpApi):
    """One server. Its methods may be called from any thread, and raise NetworkError when it does not answer."""

    def __init__(self, base_url: str, *, name: str) -> None:
        """Make no request yet. Raises UsageError for an invalid address."""
        self.name = name
        self._http = Http(base_url, name=name, key_name=None)
        self.base_url = self._http.base_url

    def close(self) -> None:
        self._http.close()

    def ask(self, request: Request) -> Reply:
        """As HttpApi has it. Raises Unsure when it is not known whether what is sent once was accepted."""
        try:
            return self._http.ask(request)
        except StatusError as error:
            if error.status == 404:
                raise NetworkError(f"{self.name}: not a ComfyUI (HTTP 404): check the address") from error
            raise

    def misshapen(self) -> NetworkError:
        return NetworkError(f"{self.name}: it does not answer as ComfyUI does: check the address")

    def item(self, job_id: str) -> list[Any] | None:
        """Return a prompt as queue or history has it: [number, id, prompt, extra_data, outputs]."""
        item = self.queue().items.get(job_id) or mapping(self.history(job_id)).get("prompt")
        return item if isinstance(item, list) else None

    def node_registry(self) -> NodeRegistry:
        """Return its node registry, without the classes that are not described properly."""
        return well_described(self.object_info())

    def extensions(self) -> list[str]:
        """Return the scripts that its custom nodes show to the editor."""
        answer = self.ask(Request("GET", "/extensions")).data
        if not isinstance(answer, list) or not all(isinstance(path, str) for path in answer):
            raise self.misshapen()
        return answer

    # --- files -------------------------------------------------------------------------------------------------

    def put(self, name: str, content: bytes) -> str:
        """Upload a file, unless the server has it already. Returns its name for a loader.

        Its folder is named after its content: sent again it is the same file, so nothing is stored twice, ComfyUI's
        cache still knows what it made of it, and no two files can be taken for each other.
        """
        subfolder = f"{FOLDER}/{hashlib.sha256(content).hexdigest()[:16]}"
        # urllib3 writes quotes as browsers do, and ComfyUI keeps percent-encoded names so (uploads.json).
        stored = name.rpartition("/")[2].replace('"', "%22")
        known = self.file_at(("input", subfolder, stored))
        if known is not None and known.size == len(content):
            return f"{subfolder}/{stored}"
        # While a body comes that is too long, ComfyUI may answer and close; a slow line then only sees it closed.
        if ASK_FIRST_BYTES < len(content) > self._max_upload_bytes():
            reply = Reply(413)
        else:
            reply = self.upload(name.rpartition("/")[2], content, subfolder=subfolder)
        if reply.status == 413:
            raise Rejected(
                f"{name} has {len(content) / 1e6:.1f} MB, more than this ComfyUI takes: start it with a higher "
                "--max-upload-size",
                code="payload_too_large",
            )
        answer = mapping(reply.data) if reply.status == 200 else {}
        if not isinstance(answer.get("name"), str) or answer.get("subfolder") != subfolder:
            raise NetworkError(f"{self.name} did not store {name} (HTTP {reply.status}): see its log")
        # Another name where a file of that name and other bytes was there, such as a part of this one.
        return f"{subfolder}/{answer['name']}"

    def _max_upload_bytes(self) -> float:
        # An older ComfyUI has no such route, and what is in front of it answers in its own way.
        limit = mapping(self.ask(Request("GET", "/features", takes=range(400, 600))).data).get("max_upload_size")
        return limit if isinstance(limit, (int, float)) else float("inf")

    def file_at(self, place: Place) -> File | None:
        """Return a file's address and size; None when it does not exist."""
        path = view_path(place)
        reply = self.ask(Request("HEAD", path, takes=(400, 403, 404, 405, 501)))
        if reply.status in (400, 403, 404):
            return None
        length = reply.headers.get("content-length", "")
        is_size = reply.status == 200 and length.isdigit() and "content-encoding" not in reply.headers
        return File(self.base_url + path, int(length) if is_size else None)


# --- node registries ---------------------------------------------------------------------------------------------


def read_registry(where: str | PathLike[str]) -> NodeRegistry:
    """Read a registry from a server or a file. Raises NetworkError for a server that does not answer as ComfyUI does,
    UsageError for anything that is not a registry."""
    text = str(where)
    if text.startswith(("http://", "https://")):
        with closing(_wire(text)) as wire:
            known = wire.node_registry()
    else:
        try:
            known = well_described(mapping(json.loads(Path(text).read_bytes())))
        except OSError as error:
            raise UsageError(f"--registry {text}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise UsageError(f"--registry {text}: it is not valid JSON") from error
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


def extensions_of(where: str | PathLike[str]) -> list[str] | None:
    """Return the scripts that the server's custom nodes show to the editor; None for a file, which does not have them.

    Raises NetworkError.
    """
    if not str(where).startswith(("http://", "https://")):
        return None
    with closing(_wire(str(where))) as wire:
        return wire.extensions()


def _wire(url: str) -> Wire:
    address = url.rstrip("/").removesuffix("/object_info")
    return Wire(address, name=f"--registry {address}")
