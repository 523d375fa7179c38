"""From ComfyUI's history to the artifacts of a job: every file and text that its nodes left, and nothing else.

The kind of an artifact comes from its file suffix: ComfyUI puts WEBM, MP4 and animated WEBP under `images` too, and
custom nodes have keys of their own (contracts/comfyui.md, "Outputs").
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from settee.errors import DeliveryError, OutputMissing, UnsafePath
from settee.history import named_file, output_items, text_name
from settee.job import Artifact, Kind
from settee.media import kind_of
from settee.messages import PICTURE_NODE, ImageEvent
from settee.metadata import restore
from settee.workflow import Workflow
from settee.workspace import Workspace


@dataclass
class Collected:
    artifacts: list[Artifact] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def collect(
    outputs: Mapping[str, Any],
    workflow: Workflow,
    *,
    prefix: str,
    workspace: Workspace | None,
    include_temp: bool | None,
    pictures: Sequence[ImageEvent] = (),
) -> Collected:
    """The artifacts of one prompt, by node in natural order.

    ``outputs`` is the history's, whose names are not trusted: with ``workspace`` (shared folders) each file must lie
    inside it. ``prefix`` is the folder this job's nodes were made to write to. ``include_temp``: previews too; None:
    nobody can ask for them. ``pictures`` came over the socket. Raises OutputMissing for a file that is not
    there, DeliveryError for a name outside its folder.
    """
    found = Collected()
    previews = 0
    seen: set[tuple[str, str, str]] = set()
    for node_id, key, item in output_items(outputs):
        if isinstance(item, dict):
            place = (str(item.get("type", "output")), str(item.get("subfolder") or ""), str(item["filename"]))
        elif key == "text" and isinstance(item, str):
            found.artifacts.append(_text(node_id, item))
            continue
        elif (named := _named_file(key, item, workspace)) is not None:
            place = ("output", *named)
        else:
            if (isinstance(item, str) and item) or key == "text":
                found.warnings.append(f"node {node_id} left something under {key[:50]!r} that was not returned")
            continue
        if place in seen:
            continue
        seen.add(place)
        if place[0] == "temp" and not include_temp:
            previews += 1
        elif place[0] in ("output", "temp"):
            found.artifacts.append(_file(node_id, place, prefix, workspace))
    found.artifacts += _pictures(pictures, workflow)
    if previews:
        hint = "" if include_temp is None else "; delivery.include_temp returns them"
        found.warnings.append(f"{previews} preview file(s) were not returned{hint}")
    return found


def _named_file(key: str, item: Any, workspace: Workspace | None) -> tuple[str, str] | None:
    """(subfolder, filename) of a file below output that the item names, if it is there."""
    named = named_file(key, item)
    if named is None:
        return None
    if workspace is not None:
        try:
            workspace.path_of("output", *named)
        except (UnsafePath, OutputMissing):
            return None
    return named


def _text(node_id: str, text: str) -> Artifact:
    content = text.encode("utf-8", "surrogatepass")
    return Artifact(
        node_id=node_id,
        kind=Kind.TEXT,
        filename=text_name(node_id),
        subfolder="",
        media_type="text/plain; charset=utf-8",
        size=len(content),
        content=content,
    )


def _file(node_id: str, place: tuple[str, str, str], prefix: str, workspace: Workspace | None) -> Artifact:
    folder_type, subfolder, filename = place
    path, size = None, 0
    # A node may report "sub/a.png", or an absolute name: a caller gets a plain one, and the folder apart.
    subfolder, name = posixpath.split(posixpath.normpath(posixpath.join(subfolder, filename)))
    if workspace is not None:
        try:
            path = workspace.path_of(folder_type, place[1], filename)
            subfolder, name = posixpath.split(workspace.relative(folder_type, path))
        except UnsafePath as error:
            raise DeliveryError(f"node {node_id} reported a file outside ComfyUI's {folder_type} folder") from error
        restore(path, prefix)
        size = path.stat().st_size
    elif subfolder.startswith(("/", "..")):
        raise DeliveryError(f"node {node_id} reported a file outside ComfyUI's {folder_type} folder")
    filename = name
    kind, media_type = kind_of(filename)
    return Artifact(
        node_id=node_id,
        kind=kind,
        filename=filename,
        subfolder=_without(prefix, subfolder),
        media_type=media_type,
        size=size,
        path=path,
        folder_type=folder_type,
        comfy_subfolder=subfolder,
    )


def _without(prefix: str, subfolder: str) -> str:
    """The subfolder as the workflow's author meant it."""
    if subfolder == prefix:
        return ""
    return subfolder.removeprefix(f"{prefix}/")


def _pictures(pictures: Sequence[ImageEvent], workflow: Workflow) -> Iterator[Artifact]:
    """What SaveImageWebsocket sent: history knows nothing of it (big_ws_message.json)."""
    count = 0
    for picture in pictures:
        node = workflow.get(picture.node_id or "")
        if node is None or node["class_type"] != PICTURE_NODE:
            continue
        count += 1
        suffix = picture.media_type.rpartition("/")[2]
        yield Artifact(
            node_id=str(picture.node_id),
            kind=Kind.IMAGE,
            filename=f"websocket_{count:05}.{suffix}",
            subfolder="",
            media_type=picture.media_type,
            size=len(picture.content),
            content=picture.content,
        )
