"""What docs/api.md has as a job's request and result, in terms of a bare ComfyUI.

What it can do is done here in the worker's place; what it cannot is an error before anything is sent.
"""

from __future__ import annotations

import base64
import hashlib
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from settee.client.client_errors import UsageError
from settee.client.job_outputs import KINDS
from settee.client.targets import Answer, Status
from settee.client.targets.comfy_api import File
from settee.comfyui.history import (
    Place,
    ending,
    mapping,
    messages,
    named_file,
    reported_by_job,
    text_name,
    without_previews,
)
from settee.comfyui.isolation import salted as with_salt
from settee.comfyui.media import kind_of
from settee.comfyui.messages import ImageEvent
from settee.comfyui.node_registry import NodeRegistry
from settee.comfyui.problems import explain, registry_problems, sentence
from settee.comfyui.workflow import Workflow, link_problems, links, measure, shape_problems, shown_node, unwrapped

#: Key of our own in a prompt's extra_data, which ComfyUI keeps: what another process needs that resumes the job.
NOTES = "settee"
#: Keys of `delivery`; the others change files on their way, which is not done here.
_DELIVERY = frozenset(("mode", "include_temp"))
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


def read(payload: Mapping[str, Any]) -> Asked:
    """Read a request as :mod:`settee.client.payload` builds it. Raises UsageError for what a bare ComfyUI cannot do, or
    what would harm it."""
    asked = payload["input"]
    if asked.get("models"):
        raise UsageError("a bare ComfyUI fetches no models: put them into its models folder, and leave --model out")
    # Never null: that would end ComfyUI's executor (worker_death.json), and so would deep nesting.
    workflow, extra_data = asked["workflow"], dict(asked.get("extra_data") or {})
    for problem in shape_problems(workflow, max_nodes=_MAX_NODES) or link_problems(workflow):
        raise UsageError(f"{problem['path']}: {problem['problem']}")
    for name, value in (("workflow", workflow), ("extra_data", extra_data)):
        if (wrong := measure(value)[1]) is not None:
            raise UsageError(f"{name}: {wrong}")
    if key := asked.get("comfy_org_api_key"):
        extra_data["api_key_comfy_org"] = str(key)
    timeout_s = asked.get("timeout_s")
    if timeout_s is not None and not timeout_s > 0:
        raise UsageError("timeout_s must be a number of seconds, more than 0")
    return Asked(
        workflow=workflow,
        files={
            **{file["name"]: file["image"] for file in asked.get("images", ())},
            **{file["name"]: file["data"] for file in asked.get("files", ())},
        },
        extra_data=extra_data,
        include_temp=_includes_temp(asked.get("delivery") or {}),
        allow_partial=asked.get("allow_partial") is True,
        timeout_s=timeout_s,
    )


def _includes_temp(delivery: str | Mapping[str, Any]) -> bool:
    """Return True if previews are wanted."""
    given = {"mode": delivery} if isinstance(delivery, str) else delivery
    if given.get("mode") == "s3":
        raise UsageError(
            "a bare ComfyUI delivers nothing to S3: leave --delivery out, and its files are fetched from it"
        )
    for name, value in given.items():
        if value not in (None, False) and name not in _DELIVERY:
            raise UsageError(f"delivery.{name}: a bare ComfyUI returns its files as they are")
    return given.get("include_temp") is True


def with_files(workflow: Workflow, places: Mapping[str, str]) -> Workflow:
    """Return a copy whose nodes name the files where they were put: ``places`` is by the name that the request gave
    them."""

    def placed(given: Any) -> Any:
        value = unwrapped(given)
        name = value.removesuffix("[input]").rstrip(" ") if isinstance(value, str) else None
        return places.get(name, given) if name is not None else given

    return {
        node_id: {**node, "inputs": {key: placed(value) for key, value in node["inputs"].items()}}
        for node_id, node in workflow.items()
    }


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


# --- results ------------------------------------------------------------------------------------------------


@dataclass
class Found:
    """The outputs of a prompt, as its history names them."""

    #: Files with their nodes, previews last.
    files: dict[Place, str] = field(default_factory=dict)
    #: Nodes' own strings that look like the names of files.
    named: dict[Place, str] = field(default_factory=dict)
    #: (node id, text)
    texts: list[tuple[str, str]] = field(default_factory=list)
    #: Nodes that sent pictures over the socket, once for each that they report.
    sent: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class Entry:
    """A history entry, in which nothing is sure to have a shape: custom nodes write there."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        prompt = data.get("prompt")
        parts = prompt if isinstance(prompt, list) and len(prompt) > 3 else [None] * 4
        self.workflow: Workflow = {
            node_id: node for node_id, node in mapping(parts[2]).items() if isinstance(node, dict) and "inputs" in node
        }
        self.notes = mapping(mapping(parts[3]).get(NOTES))
        self.outputs = mapping(data.get("outputs"))
        self.status = mapping(data.get("status"))

    @property
    def execution_ms(self) -> float | None:
        """Return the run time by ComfyUI's own clock, milliseconds."""
        times = {name: data.get("timestamp") for name, data in messages(self.status)}
        begun, ended = times.get("execution_start"), times.get("execution_success")
        if isinstance(begun, (int, float)) and isinstance(ended, (int, float)) and ended >= begun:
            return float(ended - begun)
        return None


def failure(job_id: str, entry: Entry) -> Answer | None:
    """Return how a job failed or was stopped; None when it succeeded."""
    end = ending(entry.status, entry.workflow)
    if end.kind == "success":
        return None
    if end.kind == "interrupted":
        return Answer(job_id, Status.CANCELLED, error="the job was interrupted in ComfyUI", code="canceled")
    if end.kind == "out_of_memory":
        line = f"{end.where} ran out of memory: use a smaller size or batch, or unload other models in ComfyUI"
        return Answer(job_id, Status.FAILED, error=line, code="out_of_memory", details=end.details)
    line = f"{end.where} failed: {end.said}" if end.where else "ComfyUI reports that the workflow failed, but not why"
    return Answer(job_id, Status.FAILED, error=line, code="execution_failed", details=end.details)


def found_in(entry: Entry, registry: NodeRegistry, started: Sequence[Entry] = ()) -> Found:
    """Return the nodes' outputs, by node in natural order; previews where nothing else was made, or the job's notes
    ask.

    ``started``: of the prompts that its nodes started.
    """
    found, outputs = Found(), registry.output_nodes(entry.workflow)
    files: dict[Place, str] = {}
    prompts = [each.outputs for each in (entry, *started)]
    for made in reported_by_job(prompts, entry.workflow, outputs):
        named = made.place or named_file(made.key, made.text)
        if named is not None:
            place = _normal(named)
            if place[0] in ("output", "temp") and place not in files:
                files[place] = made.node_id
                if made.text is not None:
                    found.named[place] = made.text
        elif made.text is None:
            found.sent.append(made.node_id)
        else:
            found.texts.append((made.node_id, made.text))
    if started:
        found.warnings.append(f"the workflow started {len(started)} more prompt(s), whose outputs are among these")
    kept, warnings = without_previews(
        files,
        entry.workflow,
        outputs,
        has_others=bool(found.texts or found.sent),
        include_temp=entry.notes.get("include_temp") is True,
    )
    found.files = dict(sorted(kept.items(), key=lambda file: file[0][0] == "temp"))
    found.warnings += warnings
    return found


def _normal(place: Place) -> Place:
    """Return the place as /view reads it: of "sub/a.png" as a name, which a node may report, it takes the last part."""
    kind, subfolder, filename = place
    folder, name = posixpath.split(posixpath.normpath(posixpath.join(subfolder, filename)))
    return kind, folder, name


def output(
    found: Found,
    *,
    file_at: Callable[[Place], File | None],
    pictures: Sequence[ImageEvent],
    execution_ms: float | None,
    warnings: Sequence[str],
) -> tuple[dict[str, Any], list[str]]:
    """Return (a worker's result with the files' addresses in it, the missing files). ``file_at`` asks for one."""
    result: dict[str, Any] = {"status": "success", **{kind: [] for kind in KINDS}}
    missing, texts = [], list(found.texts)

    def add(
        kind: str, name: str, how: str, data: str, node: str, media_type: str, size: int | None, **more: str
    ) -> None:
        item = {"filename": name, "type": how, "data": data, "node_id": node, "subfolder": "", "media_type": media_type}
        result[kind].append({**item, "size": size, **more})

    for place, node_id in found.files.items():
        _, subfolder, filename = place
        file = file_at(place)
        if file is not None:
            kind, media_type = kind_of(filename)
            add(kind.value, filename, "url", file.url, node_id, media_type, file.size, subfolder=subfolder)
        elif place in found.named:
            texts.append((node_id, found.named[place]))
        else:
            missing.append(f"{filename} (node {node_id})")
    for node_id, text in texts:
        content = text.encode("utf-8", "replace")
        digest = hashlib.sha256(content).hexdigest()
        name, media_type = text_name(node_id), "text/plain; charset=utf-8"
        add("texts", name, "text", text, node_id, media_type, len(content), sha256=digest)
    # Pictures that came over the socket are not in history (big_ws_message.json).
    saving = set(found.files.values())
    for count, picture in enumerate((each for each in pictures if each.node_id not in saving), 1):
        name = f"websocket_{count:05}.{picture.media_type.rpartition('/')[2]}"
        data, digest = base64.b64encode(picture.content).decode(), hashlib.sha256(picture.content).hexdigest()
        size = len(picture.content)
        add("images", name, "base64", data, str(picture.node_id), picture.media_type, size, sha256=digest)
    if not any(result[kind] for kind in KINDS):
        result["status"] = "success_no_images"
    result["timings"] = {} if execution_ms is None else {"execution": execution_ms}
    result["warnings"] = [*warnings, *found.warnings]
    return result, missing
