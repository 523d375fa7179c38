"""ComfyUI's history of a job that ended, as an answer like a worker's (docs/api.md)."""

from __future__ import annotations

import base64
import hashlib
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from settee.client.job_outputs import KINDS
from settee.client.targets import Answer, Status
from settee.comfyui import history
from settee.comfyui.history import ending, mapping, messages, text_name
from settee.comfyui.media import kind_of
from settee.comfyui.messages import ImageEvent
from settee.comfyui.node_registry import NodeRegistry
from settee.comfyui.workflow import Workflow

#: Key of our own in a prompt's extra_data, which ComfyUI keeps: what another process needs that resumes the job.
NOTES = "settee"


@dataclass(frozen=True)
class Place:
    """A file of ComfyUI's, by what /view wants to know."""

    node_id: str
    filename: str
    subfolder: str
    type: str
    #: The node's own string, where that only looks like the name of this file.
    text: str | None = None

    @property
    def params(self) -> dict[str, str]:
        return {"filename": self.filename, "subfolder": self.subfolder, "type": self.type}


@dataclass(frozen=True)
class File:
    """A file as the server has it. ``size``: bytes, None when the server does not state it."""

    url: str
    size: int | None


@dataclass
class Found:
    """The outputs of a prompt, as its history names them."""

    places: list[Place] = field(default_factory=list)
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
        line = f"{end.where} ran out of memory: use a smaller size or batch, or free what else is loaded in ComfyUI"
        return Answer(job_id, Status.FAILED, error=line, code="out_of_memory", details=end.details)
    line = f"{end.where} failed: {end.said}" if end.where else "ComfyUI reports that the workflow failed, but not why"
    return Answer(job_id, Status.FAILED, error=line, code="execution_failed", details=end.details)


def found_in(entry: Entry, registry: NodeRegistry, started: Sequence[Entry] = ()) -> Found:
    """Return the nodes' outputs, by node in natural order; previews where nothing else was made, or the job's notes
    ask.

    ``started``: of the prompts that its nodes started.
    """
    found, texts = Found(), dict[history.Place, str | None]()
    outputs, files = registry.output_nodes(entry.workflow), dict[history.Place, str]()
    prompts = [each.outputs for each in (entry, *started)]
    for made in history.reported_by_job(prompts, entry.workflow, outputs):
        named = made.place or history.named_file(made.key, made.text)
        if named is not None:
            place = _normal(named)
            if place[0] in ("output", "temp") and place not in files:
                files[place], texts[place] = made.node_id, made.text
        elif made.text is None:
            found.sent.append(made.node_id)
        else:
            found.texts.append((made.node_id, made.text))
    if started:
        found.warnings.append(f"the workflow started {len(started)} more prompt(s), whose outputs are among these")
    kept, warnings = history.without_previews(
        files,
        entry.workflow,
        outputs,
        has_others=bool(found.texts or found.sent),
        include_temp=entry.notes.get("include_temp") is True,
    )
    found.warnings += warnings
    # Previews last.
    for kind in ("output", "temp"):
        found.places += [Place(node, p[2], p[1], p[0], texts[p]) for p, node in kept.items() if p[0] == kind]
    return found


def _normal(place: history.Place) -> history.Place:
    """Return the place as /view reads it: of "sub/a.png" as a name, which a node may report, it takes the last part."""
    kind, subfolder, filename = place
    folder, name = posixpath.split(posixpath.normpath(posixpath.join(subfolder, filename)))
    return kind, folder, name


def output(
    found: Found,
    *,
    look: Callable[[Place], File | None],
    pictures: Sequence[ImageEvent],
    execution_ms: float | None,
    warnings: Sequence[str],
) -> tuple[dict[str, Any], list[Place]]:
    """Return (a worker's result with the files' addresses in it, the missing files). ``look`` asks for a file."""
    items: list[tuple[str, dict[str, Any]]] = []
    missing = []
    for place in found.places:
        file = look(place)
        if file is None:
            if place.text is None:
                missing.append(place)
            else:
                found.texts.append((place.node_id, place.text))
            continue
        kind, media_type = kind_of(place.filename)
        item = _item(place.filename, "url", file.url, place.node_id, place.subfolder, media_type, file.size)
        items.append((kind.value, item))
    for node_id, text in found.texts:
        content = text.encode("utf-8", "replace")
        item = _item(text_name(node_id), "text", text, node_id, "", "text/plain; charset=utf-8", len(content))
        items.append(("texts", {**item, "sha256": hashlib.sha256(content).hexdigest()}))
    saving = {place.node_id for place in found.places}
    items += [("images", item) for item in _pictures([each for each in pictures if each.node_id not in saving])]
    result: dict[str, Any] = {"status": "success" if items else "success_no_images"}
    result |= {kind: [item for of, item in items if of == kind] for kind in KINDS}
    result["timings"] = {} if execution_ms is None else {"execution": execution_ms}
    result["warnings"] = [*warnings, *found.warnings]
    return result, missing


def _pictures(pictures: Sequence[ImageEvent]) -> Iterator[dict[str, Any]]:
    """Yield the pictures that came over the socket, which are not in history (big_ws_message.json)."""
    for count, picture in enumerate(pictures, 1):
        name = f"websocket_{count:05}.{picture.media_type.rpartition('/')[2]}"
        data = base64.b64encode(picture.content).decode("ascii")
        size, digest = len(picture.content), hashlib.sha256(picture.content).hexdigest()
        item = _item(name, "base64", data, str(picture.node_id), "", picture.media_type, size)
        yield {**item, "sha256": digest}


def _item(
    filename: str, kind: str, data: str, node_id: str, subfolder: str, media_type: str, size: int | None
) -> dict[str, Any]:
    item = {"filename": filename, "type": kind, "data": data, "node_id": node_id, "subfolder": subfolder}
    return {**item, "media_type": media_type, "size": size}
