"""From the end of a job's prompts to its artifacts: everything that its nodes made, and nothing else.

Nodes report files and texts in history, send pictures over the event socket, or write below ComfyUI's output folder
and report nothing (CheckpointSave, SaveLoRA, savers of many packs). The kind of an artifact comes from its file suffix:
ComfyUI puts WEBM, MP4 and animated WEBP under `images` too, and custom nodes have keys of their own.
"""

from __future__ import annotations

import posixpath
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from settee.backends.backend import Made
from settee.backends.comfy.session import Ended
from settee.base.errors import DeliveryError, OutputMissing, UnsafePath
from settee.base.job import Artifact, Kind
from settee.comfyui.history import Place, Reported, located, named_file, reported_by_job, text_name, without_previews
from settee.comfyui.isolation import restore
from settee.comfyui.media import kind_of
from settee.comfyui.node_registry import NodeRegistry
from settee.comfyui.workflow import Workflow, natural_key, own_node
from settee.staging.workspace import Workspace, is_being_written

#: Names that a warning shows.
_SHOWN = 5
#: How long files that are still being written are waited for, and one of them that does not grow, seconds.
WRITING_S, STALLED_S = 10.0, 1.0


@dataclass
class Collector:
    """Collects the artifacts of a job's prompts, once."""

    ended: Ended
    graph: Workflow
    registry: NodeRegistry
    #: Of shared folders: each file must lie inside it, as history's names are not trusted.
    workspace: Workspace | None = None
    #: The job's own input files.
    staged: Collection[str] = ()
    #: What was below output before the job.
    present: Collection[str] = ()
    #: The files below input that its nodes wrote.
    rewritten: Collection[str] = ()
    #: Called while a file that is still being written is waited for; may raise.
    pause: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        #: Files that are still being written then are returned as they are.
        self._give_up = time.monotonic() + WRITING_S
        outputs = self.registry.output_nodes(self.graph)
        self._outputs = [node_id for node_id in outputs if node_id not in self.ended.refused]
        self._warnings: list[str] = []
        #: Files by where they are, with their node.
        self._files: dict[Place, str] = {}
        #: What links lead to was looked up once, which costs more than all else here.
        self._paths: dict[Place, Path] = {}
        self._unreported: set[Place] = set()
        self._unfinished: list[str] = []
        #: Nodes that reported anything, and how many pictures they report to have sent.
        self._heard_of: set[str] = set()
        self._sent: Counter[str] = Counter()

    def collect(self, include_temp: bool | None) -> Made:
        """``include_temp``: previews too; None: the door has no such option.

        Raises OutputMissing for what was reported and does not exist, DeliveryError for a name outside its folder.
        """
        texts: list[Artifact] = []
        for item in reported_by_job(self.ended.outputs, self.graph, self._outputs):
            if (text := self._take(item)) is not None:
                texts.append(text)
        if self.workspace is not None:
            self._find_unreported(self.workspace)
        pictures = self._pictures()
        kept, warnings = without_previews(
            self._files,
            self.graph,
            self._outputs,
            has_others=bool(texts or pictures),
            include_temp=include_temp,
        )
        self._warnings += warnings
        files = []
        for place, node_id in kept.items():
            try:
                files.append(self._file(node_id, place))
            except OutputMissing:
                if place not in self._unreported:
                    raise  # else its node has taken it away meanwhile
        if self._unfinished:
            names = _listed(self._unfinished)
            self._warnings.append(f"still open for writing after the workflow had ended, may be incomplete: {names}")
        self._ask_silent_nodes()
        artifacts = sorted([*files, *texts], key=lambda each: natural_key(each.node_id)) + pictures
        return Made(artifacts, tuple(self._warnings))

    # --- history -------------------------------------------------------------------------------------------------

    def _take(self, item: Reported) -> Artifact | None:
        """Note what a node reported; a text as its artifact."""
        self._heard_of.add(item.node_id)
        place = item.place or self._named(item)
        if place is None and item.text is not None:
            content = item.text.encode("utf-8", "surrogatepass")
            return _held(item.node_id, Kind.TEXT, text_name(item.node_id), "text/plain; charset=utf-8", content)
        if place is None:
            self._sent[item.node_id] += 1
            return None
        folder, name = place[0], posixpath.join(place[1], place[2])
        if folder in ("output", "temp") or (folder == "input" and name in self.rewritten):
            self._files.setdefault(self._normal(place), item.node_id)
        elif folder != "input" or name not in self.staged:
            self._warnings.append(
                f"node {item.node_id} left something under {item.key[:50]!r} that was not returned: "
                f"a file in ComfyUI's {folder[:20]!r} folder"
            )
        return None

    def _named(self, item: Reported) -> Place | None:
        """Return the file that a text names, if it exists: Preview3D's `result` is one below output or temp."""
        named = named_file(item.key, item.text)
        if named is not None and self.workspace is not None:
            try:
                self.workspace.path_of(*named)
            except (UnsafePath, OutputMissing):
                return None
        return named

    def _normal(self, place: Place) -> Place:
        """Return the place as another node, or the folder itself, would name it: reported names may be "sub/a.png"."""
        kind, subfolder, filename = place
        if self.workspace is not None:
            try:
                path, name = self.workspace.path_of(kind, subfolder, filename)
                normal = (kind, *posixpath.split(name))
                self._paths[normal] = path
                return normal
            except (UnsafePath, OutputMissing):
                return place  # an error, if it is to be returned
        return (kind, *posixpath.split(posixpath.normpath(posixpath.join(subfolder, filename))))

    # --- the output folder -----------------------------------------------------------------------------------------

    def _find_unreported(self, workspace: Workspace) -> None:
        """Find what was written and not reported: all that is new, or what is in the job's own folder if others ran.

        Input files that were written over are among it.
        """
        names, others = workspace.made()
        if not self.ended.is_alone():
            names, others = workspace.made(self.ended.prefix)
        found = [("output", name) for name in names if name not in self.present]
        found += [("input", name) for name in self.rewritten]
        unsure = []
        silent = [node_id for node_id in self._outputs if node_id not in self._heard_of]
        for folder, name in found:
            place = (folder, *posixpath.split(name))
            if place not in self._files:
                self._unreported.add(place)
                node_id = self._maker(_without(self.ended.prefix, name), silent)
                self._files[place] = node_id or ""
                self._heard_of.add(node_id or "")
                if node_id is None:
                    unsure.append(posixpath.basename(name))
        if unsure:
            self._warnings.append(f"no node reported {_listed(unsure)}, found in ComfyUI's folders after the job")
        if others:
            self._warnings.append(
                f"{others} hidden file(s), unfinished file(s) or link(s) in ComfyUI's output folder were not returned"
            )

    def _maker(self, name: str, silent: list[str]) -> str | None:
        """Return the node that wrote a file: the one that names it best, else the only output node that reported
        nothing."""
        naming = [
            (len(value.strip("/")), node_id)
            for node_id in silent or self._outputs
            for value in self.graph[node_id]["inputs"].values()
            if isinstance(value, str) and value.strip("/") and name.startswith(value.strip("/"))
        ]
        if naming:
            return max(naming)[1]
        return silent[0] if len(silent) == 1 else None

    # --- the socket ------------------------------------------------------------------------------------------------

    def _pictures(self) -> list[Artifact]:
        """Return what came over the socket from nodes without a file: history knows nothing of it
        (big_ws_message.json)."""
        saving = set(self._files.values())
        sent = [replace(each, node_id=own_node(self.graph, str(each.node_id))) for each in self.ended.pictures]
        self._heard_of.update(str(picture.node_id) for picture in sent)
        pictures: list[Artifact] = []
        for picture in sent:
            if picture.node_id not in saving:
                name = f"websocket_{len(pictures) + 1:05}.{picture.media_type.rpartition('/')[2]}"
                held = _held(str(picture.node_id), Kind.IMAGE, name, picture.media_type, picture.content)
                pictures.append(held)
        came = Counter(picture.node_id for picture in pictures)
        for node_id, count in self._sent.items():
            if came[node_id] < count:
                raise OutputMissing(
                    f"{self._name(node_id)} sent {count} picture(s) over ComfyUI's event socket, of which "
                    f"{came[node_id]} came; send the job again, or use SaveImage",
                    retryable=True,
                )
        return pictures

    def _ask_silent_nodes(self) -> None:
        """Leave no output node that nothing was seen of without a word. Raises OutputMissing if it may have sent it."""
        senders = self.registry.picture_senders(self.graph)
        for node_id in self._outputs:
            if node_id in self._heard_of:
                continue
            if self.ended.lost_messages and node_id in senders:
                raise OutputMissing(
                    f"{self._name(node_id)} reported nothing. Pictures that it sent come over ComfyUI's event socket "
                    "only, which was lost; send the job again, or use SaveImage",
                    retryable=True,
                )
            where = "" if self.workspace else ": any file that it wrote is on ComfyUI's own disk"
            self._warnings.append(f"{self._name(node_id)} reported nothing{where}")

    def _name(self, node_id: str) -> str:
        return located(node_id, self.graph) if node_id in self.graph else f"node {node_id}"

    # --- artifacts ---------------------------------------------------------------------------------------------------

    def _file(self, node_id: str, place: Place) -> Artifact:
        folder_type, subfolder, filename = place
        path, size = None, 0
        if self.workspace is not None:
            try:
                path = self._paths.get(place) or self.workspace.path_of(*place)[0]
                self._await_writer(path)
                restore(path, self.ended.prefix)
                size = path.stat().st_size
            except UnsafePath as error:
                raise DeliveryError(f"node {node_id} reported a file outside ComfyUI's {folder_type} folder") from error
            except FileNotFoundError as error:
                raise OutputMissing(f"the file {filename} of node {node_id} is gone") from error
        elif subfolder.startswith(("/", "..")):
            raise DeliveryError(f"node {node_id} reported a file outside ComfyUI's {folder_type} folder")
        kind, media_type = kind_of(filename)
        return Artifact(
            node_id=node_id,
            kind=kind,
            filename=filename,
            subfolder=_without(self.ended.prefix, subfolder),
            media_type=media_type,
            size=size,
            path=path,
            folder_type=folder_type,
            comfy_subfolder=subfolder,
        )

    def _await_writer(self, path: Path) -> None:
        """Let a thread or a program that a node left behind finish a file, as long as that goes on."""
        while is_being_written(path):
            is_stalled = time.time() - path.stat().st_mtime > STALLED_S
            if is_stalled or time.monotonic() > self._give_up:
                self._unfinished.append(path.name)
                return
            self.pause()


def _held(node_id: str, kind: Kind, filename: str, media_type: str, content: bytes) -> Artifact:
    """Return an artifact without a file."""
    return Artifact(
        node_id=node_id,
        kind=kind,
        filename=filename,
        subfolder="",
        media_type=media_type,
        size=len(content),
        content=content,
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def _without(prefix: str, name: str) -> str:
    """Return the name as the workflow's author meant it."""
    return "" if name == prefix else name.removeprefix(f"{prefix}/")
