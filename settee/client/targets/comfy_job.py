"""What docs/api.md has as a job's request and result, in terms of a bare ComfyUI.

What it can do is done here in the worker's place; what it cannot is an error before anything is sent.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from settee.base.errors import OutputMissing, SetteeError, WorkflowRejected, problem_line
from settee.base.job import Artifact, Kind
from settee.client.client_errors import UsageError
from settee.client.job_outputs import KINDS
from settee.client.targets import Answer, Status
from settee.client.targets.comfy_api import File
from settee.comfyui.history import Place, mapping, messages
from settee.comfyui.isolation import salted as with_salt
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
    extra_data: dict[str, Any] = field(repr=False)
    include_temp: bool = False
    #: Base64 by name.
    files: dict[str, str] = field(default_factory=dict, repr=False)
    allow_partial: bool = False
    timeout_s: float | None = None


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


def refusal(error: WorkflowRejected, workflow: Workflow, registry: NodeRegistry) -> WorkflowRejected:
    """Return why ComfyUI refuses a workflow, with its nodes named as the client does; as it was without a reason."""
    if not error.details:
        return error
    # A class that it does not know it names, and no more.
    problems = explain(error.details["node_errors"], workflow, registry) or registry_problems(workflow, registry)
    if not problems:
        return WorkflowRejected(f"ComfyUI refuses the workflow: {sentence(error.details['error'])}")
    node_id = str(problems[0]["node_id"])
    where = shown_node(workflow, node_id) if node_id in workflow else node_id
    line = problem_line({**problems[0], "path": where, "class_type": None})
    more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
    return WorkflowRejected(f"ComfyUI refuses the workflow: {line}{more}", details={"problems": problems})


# --- results ------------------------------------------------------------------------------------------------


def read_back(prompt: list[Any]) -> tuple[Asked, str | None]:
    """Return what another process asked for, by its prompt as ComfyUI has it, and its client id. Nothing in it is sure
    to have a shape."""
    graph, extra_data = (mapping(part) for part in [*prompt[2:4], None, None][:2])
    whole = {
        node_id: node
        for node_id, node in graph.items()
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict) and isinstance(node.get("class_type"), str)
    }
    include_temp, client_id = mapping(extra_data.get(NOTES)).get("include_temp"), extra_data.get("client_id")
    asked = Asked(workflow=whole, extra_data=extra_data, include_temp=include_temp is True)
    return asked, client_id if isinstance(client_id, str) else None


def belongs_to(job_id: str) -> Callable[[Any], bool]:
    """Return what tells a prompt that a job's nodes started: it repeats the job's graph, and so its salt."""
    return lambda prompt: isinstance(prompt, list) and job_id in json.dumps(prompt[2:3])


def execution_ms(status: Mapping[str, Any]) -> float | None:
    """Return the run time by ComfyUI's own clock, milliseconds."""
    times = {name: data.get("timestamp") for name, data in messages(status)}
    begun, ended = times.get("execution_start"), times.get("execution_success")
    if isinstance(begun, (int, float)) and isinstance(ended, (int, float)) and ended >= begun:
        return float(ended - begun)
    return None


def failed(job_id: str, error: SetteeError) -> Answer:
    """Return the answer for a job that ended with an error."""
    status = {"canceled": Status.CANCELLED, "timeout": Status.TIMED_OUT}.get(error.code, Status.FAILED)
    more = {"retryable": True} if error.retryable and status is Status.FAILED else {}
    return Answer(job_id, status, error=error.message, code=error.code, details={**error.details, **more})


def output(
    artifacts: Sequence[Artifact],
    file_at: Callable[[Place], File | None],
    took_ms: float | None,
    warnings: Sequence[str],
) -> dict[str, Any]:
    """Return a worker's result with the files' addresses in it. ``file_at`` asks for one. Raises OutputMissing."""
    result: dict[str, Any] = {"status": "success", **{kind: [] for kind in KINDS}}
    missing = []
    for made in artifacts:
        about: dict[str, Any] = {"filename": made.filename, "node_id": made.node_id, "subfolder": made.subfolder}
        if made.content is None:
            file = file_at((made.folder_type, made.comfy_subfolder, made.filename))
            if file is None:
                missing.append(f"{made.filename} (node {made.node_id})")
                continue
            about |= {"type": "url", "data": file.url, "size": file.size}
        else:
            is_text = made.kind is Kind.TEXT
            data = made.content.decode("utf-8", "replace") if is_text else base64.b64encode(made.content).decode()
            about |= {"type": "text" if is_text else "base64", "data": data, "size": made.size}
            about["sha256"] = hashlib.sha256(made.content).hexdigest()
        result[made.kind.value].append({**about, "media_type": made.media_type})
    if missing:
        names = ", ".join(missing)
        raise OutputMissing(
            f"ComfyUI reports output that it does not have: {names}; was it deleted? send the job again"
        )
    if not artifacts:
        result["status"] = "success_no_images"
    return {**result, "timings": {} if took_ms is None else {"execution": took_ms}, "warnings": list(warnings)}
