"""From the end of a job's prompts to its artifacts: everything that its nodes made, and nothing else.

Nodes report files and texts in history, send pictures over the event socket, or write below ComfyUI's output folder
and report nothing (CheckpointSave, SaveLoRA, savers of many packs). The kind of an artifact comes from its file suffix:
ComfyUI puts WEBM, MP4 and animated WEBP under `images` too, and custom nodes have keys of their own
(contracts/comfyui.md, "Outputs").
"""

from __future__ import annotations

import posixpath
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from settee.backends.comfy.session import Ended
from settee.base.errors import DeliveryError, OutputMissing, UnsafePath
from settee.base.job import Artifact, Kind
from settee.comfyui.history import Place, Reported, named_file, reported_by_job, text_name, without_previews
from settee.comfyui.isolation import restore
from settee.comfyui.media import kind_of
from settee.comfyui.messages import ImageEvent
from settee.comfyui.node_registry import NodeRegistry
from settee.comfyui.workflow import Workflow, natural_key, own_node
from settee.staging.workspace import Workspace, is_being_written

#: Names that a warning shows.
_SHOWN = 5
#: How long files that are still being written are waited for, and one of them that does not grow, seconds.
WRITING_S, STALLED_S = 10.0, 1.0


@dataclass
class Collected:
    artifacts: list[Artifact] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def collect(
    ended: Ended,
    graph: Workflow,
    registry: NodeRegistry,
    *,
    workspace: Workspace | None,
    include_temp: bool | None,
    staged: Collection[str] = (),
    present: Collection[str] = (),
    rewritten: Collection[str] = (),
    pause: Callable[[], None] = lambda: None,
) -> Collected:
    """The artifacts of a job's prompts.

    History's names are not trusted: with ``workspace`` (shared folders) each file must lie inside it. ``include_temp``:
    previews too; None: the door has no such option. ``staged`` names the job's own input files, ``present`` what was
    below output before it, ``rewritten`` the files below input that its nodes wrote. A file that is still being written
    is waited for, with ``pause``, which may raise. Raises OutputMissing for what was reported and is not there,
    DeliveryError for a name outside its folder.
    """
    collector = _Collector(ended, graph, registry, workspace, staged, present, rewritten, pause)
    return collector.collected(include_temp)


class _Collector:
    def __init__(
        self,
        ended: Ended,
        graph: Workflow,
        registry: NodeRegistry,
        workspace: Workspace | None,
        staged: Collection[str],
        present: Collection[str],
        rewritten: Collection[str],
        pause: Callable[[], None],
    ) -> None:
        self._ended, self._graph, self._registry = ended, graph, registry
        self._workspace, self._staged, self._present = workspace, staged, present
        self._rewritten, self._pause = rewritten, pause
        #: In time.monotonic(): files that are still being written then are returned as they are.
        self._patience = time.monotonic() + WRITING_S
        self._outputs = [node_id for node_id in registry.output_nodes(graph) if node_id not in ended.refused]
        self._found = Collected()
        #: Files by where they are, with their node.
        self._files: dict[Place, str] = {}
        #: What links lead to was looked up once, which costs more than all else here.
        self._paths: dict[Place, Path] = {}
        self._unreported: set[Place] = set()
        self._unfinished: list[str] = []
        #: Nodes that reported anything, and how many pictures they say that they sent.
        self._heard_of: set[str] = set()
        self._sent: Counter[str] = Counter()

    def collected(self, include_temp: bool | None) -> Collected:
        found = self._found
        texts: list[Artifact] = []
        for item in reported_by_job(self._ended.outputs, self._graph, self._outputs):
            if (text := self._take(item)) is not None:
                texts.append(text)
        if self._workspace is not None:
            self._look_around(self._workspace)
        pictures = list(self._pictures())
        kept, warnings = without_previews(
            self._files,
            self._graph,
            self._outputs,
            has_others=bool(texts or pictures),
            include_temp=include_temp,
        )
        found.warnings += warnings
        files = []
        for place, node_id in kept.items():
            try:
                files.append(self._file(node_id, place))
            except OutputMissing:
                if place not in self._unreported:
                    raise  # else its node has taken it away meanwhile
        if self._unfinished:
            names = _listed(self._unfinished)
            found.warnings.append(f"still open for writing after the workflow had ended, may not be whole: {names}")
        found.artifacts = sorted([*files, *texts], key=lambda each: natural_key(each.node_id)) + pictures
        self._ask_silent_nodes()
        return found

    # --- history -------------------------------------------------------------------------------------------------

    def _take(self, item: Reported) -> Artifact | None:
        """Note what a node reported; a text as its artifact."""
        self._heard_of.add(item.node_id)
        place = item.place
        if place is None and item.text is not None:
            place = self._named(item)
            if place is None:
                return _text(item.node_id, item.text)
        if place is None:
            self._sent[item.node_id] += 1
        elif place[0] in ("output", "temp") or self._is_rewritten(place):
            self._files.setdefault(self._normal(place), item.node_id)
        elif place[0] != "input" or posixpath.join(place[1], place[2]) not in self._staged:
            self._found.warnings.append(
                f"node {item.node_id} left something under {item.key[:50]!r} that was not returned: "
                f"a file in ComfyUI's {place[0][:20]!r} folder"
            )
        return None

    def _is_rewritten(self, place: Place) -> bool:
        return place[0] == "input" and posixpath.join(place[1], place[2]) in self._rewritten

    def _named(self, item: Reported) -> Place | None:
        """The file that a text names, if it is there: Preview3D's `result` is one below output or temp."""
        named = named_file(item.key, item.text)
        if named is not None and self._workspace is not None:
            try:
                self._workspace.path_of(*named)
            except (UnsafePath, OutputMissing):
                return None
        return named

    def _normal(self, place: Place) -> Place:
        """The place as another node, or the folder itself, would name it: reported names may be "sub/a.png"."""
        kind, subfolder, filename = place
        if self._workspace is not None:
            try:
                path, name = self._workspace.path_of(kind, subfolder, filename)
                normal = (kind, *posixpath.split(name))
                self._paths[normal] = path
                return normal
            except (UnsafePath, OutputMissing):
                return place  # an error, if it is to be returned
        return (kind, *posixpath.split(posixpath.normpath(posixpath.join(subfolder, filename))))

    # --- the output folder -----------------------------------------------------------------------------------------

    def _look_around(self, workspace: Workspace) -> None:
        """Find what was written and not reported: all that is new, or what is in the job's own folder if others ran.

        Input files that were written over are among it.
        """
        names, others = workspace.made()
        if not self._ended.is_alone():
            names, others = workspace.made(self._ended.prefix)
        found = [("output", name) for name in names if name not in self._present]
        found += [("input", name) for name in self._rewritten]
        unsure = []
        silent = [node_id for node_id in self._outputs if node_id not in self._heard_of]
        for folder, name in found:
            place = (folder, *posixpath.split(name))
            if place not in self._files:
                self._unreported.add(place)
                node_id = self._maker(_without(self._ended.prefix, name), silent)
                self._files[place] = node_id or ""
                self._heard_of.add(node_id or "")
                if node_id is None:
                    unsure.append(posixpath.basename(name))
        if unsure:
            self._found.warnings.append(f"no node reported {_listed(unsure)}, found in ComfyUI's folders after the job")
        if others:
            self._found.warnings.append(
                f"{others} hidden file(s), unfinished file(s) or link(s) in ComfyUI's output folder were not returned"
            )

    def _maker(self, name: str, silent: list[str]) -> str | None:
        """The node that wrote a file: the one that names it best, else the only output node that reported nothing."""
        naming = [
            (len(value.strip("/")), node_id)
            for node_id in silent or self._outputs
            for value in self._graph[node_id]["inputs"].values()
            if isinstance(value, str) and value.strip("/") and name.startswith(value.strip("/"))
        ]
        if naming:
            return max(naming)[1]
        return silent[0] if len(silent) == 1 else None

    # --- the socket ------------------------------------------------------------------------------------------------

    def _pictures(self) -> Iterator[Artifact]:
        """What came over the socket from nodes without a file: history knows nothing of it (big_ws_message.json)."""
        saving = set(self._files.values())
        sent = [replace(each, node_id=own_node(self._graph, str(each.node_id))) for each in self._ended.pictures]
        pictures = [picture for picture in sent if picture.node_id not in saving]
        self._heard_of.update(str(picture.node_id) for picture in sent)
        came = Counter(str(picture.node_id) for picture in pictures)
        for node_id, count in self._sent.items():
            if came[node_id] < count:
                raise OutputMissing(
                    f"{self._name(node_id)} sent {count} picture(s) over ComfyUI's event socket, of which "
                    f"{came[node_id]} came; send the job again, or use SaveImage",
                    retryable=True,
                )
        return map(_picture, range(1, len(pictures) + 1), pictures)

    def _ask_silent_nodes(self) -> None:
        """Leave no output node that nothing was seen of without a word. Raises OutputMissing if it may have sent it."""
        senders = self._registry.picture_senders(self._graph)
        for node_id in self._outputs:
            if node_id in self._heard_of:
                continue
            if self._ended.lost_messages and node_id in senders:
                raise OutputMissing(
                    f"{self._name(node_id)} reported nothing. Pictures that it sent come over ComfyUI's event socket "
                    "only, which was lost; send the job again, or use SaveImage",
                    retryable=True,
                )
            where = "" if self._workspace else ": what it wrote, if anything, is on ComfyUI's own disk"
            self._found.warnings.append(f"{self._name(node_id)} reported nothing{where}")

    # --- artifacts ---------------------------------------------------------------------------------------------------

    def _name(self, node_id: str) -> str:
        return f"node {node_id} ({self._graph[node_id]['class_type']})" if node_id in self._graph else f"node {node_id}"

    def _file(self, node_id: str, place: Place) -> Artifact:
        folder_type, subfolder, filename = place
        path, size = None, 0
        if self._workspace is not None:
            try:
                path = self._paths.get(place) or self._workspace.path_of(*place)[0]
                self._await_writer(path)
                restore(path, self._ended.prefix)
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
            subfolder=_without(self._ended.prefix, subfolder),
            media_type=media_type,
            size=size,
            path=path,
            folder_type=folder_type,
            comfy_subfolder=subfolder,
        )

    def _await_writer(self, path: Path) -> None:
        """Let a thread or a program that a node left behind finish a file, as long as that goes on."""
        while is_being_written(path):
            stalled = time.time() - path.stat().st_mtime > STALLED_S
            if stalled or time.monotonic() > self._patience:
                self._unfinished.append(path.name)
                return
            self._pause()


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


def _picture(count: int, picture: ImageEvent) -> Artifact:
    suffix = picture.media_type.rpartition("/")[2]
    return Artifact(
        node_id=str(picture.node_id),
        kind=Kind.IMAGE,
        filename=f"websocket_{count:05}.{suffix}",
        subfolder="",
        media_type=picture.media_type,
        size=len(picture.content),
        content=picture.content,
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def _without(prefix: str, name: str) -> str:
    """The name as the workflow's author meant it."""
    return "" if name == prefix else name.removeprefix(f"{prefix}/")
