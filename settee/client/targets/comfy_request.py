"""A request as docs/api.md has it, read for a bare ComfyUI: what it can do is done here in the worker's place, what it
cannot is an error before anything is sent."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from settee.base.json_io import decode_base64
from settee.client.client_errors import UsageError
from settee.comfyui.isolation import salted as with_salt
from settee.comfyui.node_registry import NodeRegistry
from settee.comfyui.problems import explain, registry_problems, sentence
from settee.comfyui.workflow import (
    Workflow,
    link_problems,
    links,
    measure,
    shape_problems,
    shown_node,
    unwrapped,
)

#: Below ComfyUI's input folder.
FOLDER = "settee"

_KEYS = frozenset(
    ["workflow", "images", "files", "models", "delivery", "timeout_s", "debug", "allow_partial", "extra_data"]
) | {"comfy_org_api_key", "encrypted_input", "is_encrypted"}
#: Keys of `delivery`; the others change files on their way, which is not done here.
_DELIVERY = frozenset(("mode", "include_temp"))
_DATA_URI = re.compile(r"data:[^,]{0,1024};base64,", re.IGNORECASE)
#: ComfyUI cuts these off a file name and looks in that folder instead.
_ANNOTATIONS = ("[input]", "[output]", "[temp]")
_MAX_NODES = 100_000


@dataclass(frozen=True)
class Asked:
    """The content of a request."""

    workflow: Workflow = field(repr=False)
    #: Base64 by name.
    files: dict[str, str] = field(repr=False)
    extra_data: dict[str, Any] = field(repr=False)
    include_temp: bool
    allow_partial: bool
    timeout_s: float | None


@dataclass(frozen=True)
class Upload:
    """A file as it goes to POST /upload/image: the whole form."""

    filename: str
    #: Below ComfyUI's input folder.
    subfolder: str
    #: Bytes of the file alone.
    size: int
    content: bytes = field(repr=False)
    content_type: str


def read(payload: Mapping[str, Any]) -> Asked:
    """Read a request. Raises UsageError for what a bare ComfyUI cannot do, or what would harm it."""
    asked = payload.get("input")
    if not isinstance(asked, Mapping):
        raise UsageError('the request has no "input" object')
    if asked.get("encrypted_input"):
        raise UsageError("a bare ComfyUI cannot open a sealed job: send it without a key")
    if unknown := sorted(str(key)[:50] for key in asked if key not in _KEYS):
        raise UsageError(f"the request has unknown keys: {', '.join(unknown)}")
    if asked.get("models"):
        raise UsageError("a bare ComfyUI fetches no models: put them into its models folder, and leave --model out")
    workflow, files = _workflow(asked.get("workflow")), _files(asked)
    with_files(workflow, {name: name for name in files})
    return Asked(
        workflow=workflow,
        files=files,
        extra_data=_extra_data(asked),
        include_temp=_delivery(asked.get("delivery")),
        allow_partial=asked.get("allow_partial") is True,
        timeout_s=_seconds(asked.get("timeout_s")),
    )


def _workflow(workflow: Any) -> Workflow:
    if not isinstance(workflow, dict):
        raise UsageError("the request has no workflow")
    for problem in shape_problems(workflow, max_nodes=_MAX_NODES) or link_problems(workflow):
        raise UsageError(f"{problem['path']}: {problem['problem']}")
    return workflow


def _extra_data(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object in any case: null would end ComfyUI's executor (worker_death.json), and so would deep
    nesting."""
    extra = asked.get("extra_data")
    if not isinstance(extra, (dict, type(None))):
        raise UsageError("extra_data must be an object")
    for name in ("workflow", "extra_data"):
        _, problem = measure(asked.get(name))
        if problem:
            raise UsageError(f"{name}: {problem}")
    found = dict(extra or {})
    if key := asked.get("comfy_org_api_key"):
        found["api_key_comfy_org"] = str(key)
    return found


def _delivery(delivery: Any) -> bool:
    """Return True if previews are wanted."""
    given = {"mode": delivery} if isinstance(delivery, str) else (delivery or {})
    if not isinstance(given, Mapping):
        raise UsageError("delivery must be a string or an object")
    if given.get("mode") == "s3":
        raise UsageError(
            "a bare ComfyUI delivers nothing to S3: leave --delivery out, and its files are fetched from it"
        )
    for name, value in given.items():
        if value not in (None, False) and name not in _DELIVERY:
            raise UsageError(f"delivery.{name}: a bare ComfyUI returns its files as they are")
    return given.get("include_temp") is True


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise UsageError("timeout_s must be a number of seconds, more than 0")
    return float(value)


# --- files ---------------------------------------------------------------------------------------------------


def _files(asked: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key in ("images", "files"):
        given = asked.get(key) or ()
        entries = [{"name": n, "data": d} for n, d in given.items()] if isinstance(given, Mapping) else given
        if not isinstance(entries, (list, tuple)) or not all(isinstance(entry, Mapping) for entry in entries):
            raise UsageError(f'{key} must be {{"name": data}} or [{{"name": …, "image": data}}]')
        for entry in entries:
            name, data = entry.get("name"), entry.get("data", entry.get("image"))
            if not isinstance(name, str) or not isinstance(data, str):
                raise UsageError(f"{key}: a file must have a name, and its data as base64")
            if problem := _bad_name(name):
                raise UsageError(f"the file name {name[:80]!r} {problem}")
            if name in found:
                raise UsageError(f"the file name {name!r} is given twice")
            found[name] = data
    return found


def _bad_name(name: str) -> str | None:
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name or name.startswith("~") or name[1:2] == ":":
        return "must be a plain one, in plain folders if need be"
    if any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in name):
        return "holds a control character"
    if any(len(part.encode()) > 200 for part in parts):
        return "is too long"
    return "ends with a folder in brackets" if name.endswith(_ANNOTATIONS) else None


def upload(name: str, data: str) -> Upload:
    """Return the form that carries a file. Raises UsageError for data that is not base64.

    Its folder is named after its content: sent again it is the same file, so nothing is stored twice, ComfyUI's cache
    still knows what it made of it, and no two files can be taken for each other.
    """
    from urllib3.filepost import encode_multipart_formdata

    content = b"".join(_decoded(name, data))
    subfolder = f"{FOLDER}/{hashlib.sha256(content).hexdigest()[:16]}"
    filename = name.rpartition("/")[2]
    form, content_type = encode_multipart_formdata(
        [("image", (filename, content, "application/octet-stream")), ("type", "input"), ("subfolder", subfolder)]
    )
    # urllib3 writes quotes as browsers do, and ComfyUI keeps percent-encoded names so (uploads.json).
    return Upload(filename.replace('"', "%22"), subfolder, len(content), form, content_type)


def _decoded(name: str, data: str) -> Iterator[bytes]:
    """Yield the file, about 768 KiB at a time."""
    match = _DATA_URI.match(data)
    if match is None and re.match(r"[A-Za-z][A-Za-z0-9+.-]{1,15}:", data):
        raise UsageError(f"{name}: a bare ComfyUI fetches nothing from addresses: give the file itself")
    try:
        yield from decode_base64(data, match.end() if match else 0)
    except ValueError as error:
        raise UsageError(f"{name}: its data is not base64") from error


def with_files(workflow: Workflow, places: Mapping[str, str]) -> Workflow:
    """Return a copy whose nodes name the files where they were put: ``places`` is by the name that the request gave
    them.

    Raises UsageError for a file that no input names, which would be sent without use.
    """
    unused, placed = set(places), {}
    for node_id, node in workflow.items():
        inputs = dict(node["inputs"])
        for key, given in node["inputs"].items():
            value = unwrapped(given)
            if not isinstance(value, str):
                continue
            name = value.removesuffix("[input]").rstrip(" ") if value.endswith("[input]") else value
            if name in places:
                inputs[key] = places[name]
                unused.discard(name)
        placed[node_id] = {**node, "inputs": inputs}
    if unused:
        raise UsageError(f"no node of the workflow loads {', '.join(map(repr, sorted(unused)))}")
    return placed


# --- the graph -----------------------------------------------------------------------------------------------


def salted(workflow: Workflow, registry: NodeRegistry, salt: str) -> Workflow:
    """Return a copy in which every node with an output of its own runs, also when ComfyUI has seen the graph before.

    It would answer from its cache, with names of files that may be gone since (resubmit_cached.json). In addition to
    the registry's output nodes these are all whose output is unused, as the registry may be older than the server.
    """
    used = {source for node in workflow.values() for _, source, _ in links(node)}
    ends = set(registry.output_nodes(workflow)) | (workflow.keys() - used)
    return {
        node_id: {**node, "inputs": with_salt(node, registry, salt)} if node_id in ends else node
        for node_id, node in workflow.items()
    }


def refusal(
    error: Mapping[str, Any], node_errors: Mapping[str, Any], workflow: Workflow, registry: NodeRegistry
) -> tuple[str, dict[str, Any]]:
    """Return why ComfyUI refuses a workflow: (a line for a person, details as in a worker's ``workflow_rejected``)."""
    # A class that it does not know it names, and no more.
    problems = explain(node_errors, workflow, registry) or registry_problems(workflow, registry)
    if not problems:
        return f"ComfyUI refuses the workflow: {sentence(error)}", {"problems": []}
    first = problems[0]
    node_id = str(first["node_id"])
    where = shown_node(workflow, node_id) if node_id in workflow else node_id
    near = f"; did you mean {' or '.join(map(repr, first['near']))}?" if first.get("near") else ""
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    said = " ".join(first["problem"].split())
    return f"ComfyUI refuses the workflow: {where}: {said}{near}{more}", {"problems": problems}
