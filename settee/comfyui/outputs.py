"""From the end of a job's prompts to its artifacts, by what its nodes reported in history and sent over the socket.

The kind of an artifact comes from its file suffix: ComfyUI puts WEBM, MP4 and animated WEBP under `images` too, and
custom nodes have keys of their own. For worker and client.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from settee.base.errors import DeliveryError, OutputMissing, problem_line
from settee.base.job import Artifact, Kind
from settee.comfyui.event_socket import ImageEvent
from settee.comfyui.history import Place, Reported, located, mapping, named_file, reported, text_name
from settee.comfyui.media import kind_of
from settee.comfyui.node_registry import NodeRegistry
from settee.comfyui.problems import explain
from settee.comfyui.workflow import Workflow, natural_key, own_node


@dataclass
class Ended:
    """A job's prompts that succeeded: the one that was submitted, and all that its nodes started."""

    #: The folder below output that its nodes wrote to; "" where they write as their author meant.
    prefix: str = ""
    #: History's, of each prompt.
    outputs: list[dict[str, Any]] = field(default_factory=list)
    #: What came over the socket, previews apart; more may have been sent if ``lost_messages``.
    pictures: list[ImageEvent] = field(default_factory=list)
    lost_messages: bool = False
    #: True if nothing else has run on the server: whatever lay in its output folder before this was asked is the job's.
    is_alone: Callable[[], bool] = lambda: False
    #: Output nodes that ComfyUI refused and did not run (allow_partial).
    refused: Collection[str] = ()
    warnings: list[str] = field(default_factory=list)

    def refuse(self, node_errors: Mapping[str, Any], graph: Workflow, registry: NodeRegistry) -> None:
        """Note what ComfyUI does not run of a prompt that it took in part."""
        reasons = [problem_line(problem) for problem in explain(node_errors, graph, registry)]
        self.warnings += [f"not run (allow_partial): {reason}" for reason in reasons]
        self.refused = {
            own_node(graph, node_id)
            for at, error in node_errors.items()
            for node_id in (at, *(mapping(error).get("dependent_outputs") or ()))
        }


class Collector:
    """Collects a job's artifacts, once. This one sees no folder of ComfyUI's, only what it answers."""

    def __init__(
        self, ended: Ended, graph: Workflow, registry: NodeRegistry, staged: Collection[str] | None = None
    ) -> None:
        """``staged``: the job's own input files; None where a node may report those of others, too."""
        self.ended, self.graph, self.registry, self.staged = ended, graph, registry, staged
        self.outputs = [node_id for node_id in registry.output_nodes(graph) if node_id not in ended.refused]
        self.warnings = [*ended.warnings]
        #: Files by where they are, with their node.
        self.files: dict[Place, str] = {}
        #: Nodes that reported anything, and how many pictures they report to have sent.
        self.heard_of: set[str] = set()
        self._sent: Counter[str] = Counter()

    def collect(self, include_temp: bool | None) -> tuple[list[Artifact], list[str]]:
        """Return the artifacts and warnings. ``include_temp``: previews too; None: the door has no such option.

        Raises OutputMissing for what was reported and does not exist, DeliveryError for a name outside its folder.
        """
        if more := len(self.ended.outputs[1:]):
            self.warnings.append(f"the workflow started {more} more prompt(s), whose outputs are among these")
        taken = [self._take(item) for item in self._reported()]
        texts = [text for text in taken if text is not None]
        self.find_unreported()
        pictures = self._pictures()
        kept = self._kept(include_temp, has_others=bool(texts or pictures))
        files = [self.file(node_id, place) for place, node_id in kept.items()]
        self._ask_silent_nodes()
        own = [*(file for file in files if file is not None), *texts]
        return sorted(own, key=lambda each: natural_key(each.node_id)) + pictures, self.warnings

    # --- what another place for files brings ---------------------------------------------------------------------

    #: Files below input that the job's nodes wrote.
    rewritten: Collection[str] = ()
    #: What a node may have left that nothing was seen of.
    unseen = ": any file that it wrote is on ComfyUI's own disk"

    def exists(self, place: Place) -> bool:
        """Return True if a file exists that a text names: Preview3D's `result` is one below output or temp."""
        return True

    def may_have_sent(self, node_id: str) -> bool:
        """Return True if pictures of a node that reported nothing may have been lost with the socket."""
        return node_id in self.registry.picture_senders(self.graph)

    def normal(self, place: Place) -> Place:
        """Return the place as another node, or the folder itself, would name it: reported names may be "sub/a.png"."""
        kind, subfolder, filename = place
        return (kind, *posixpath.split(posixpath.normpath(posixpath.join(subfolder, filename))))

    def find_unreported(self) -> None:
        """Add files that no node reported."""

    def file(self, node_id: str, place: Place) -> Artifact | None:
        """Return the file's artifact; None for one that is gone and was not reported."""
        if place[1].startswith(("/", "..")):
            raise DeliveryError(f"node {node_id} reported a file outside ComfyUI's {place[0]} folder")
        return self.artifact(node_id, place)

    def artifact(self, node_id: str, place: Place, **more: Any) -> Artifact:
        folder_type, subfolder, filename = place
        kind, media_type = kind_of(filename)
        return Artifact(
            node_id=node_id,
            filename=filename,
            subfolder=without(self.ended.prefix, subfolder),
            folder_type=folder_type,
            comfy_subfolder=subfolder,
            **{"kind": kind, "media_type": media_type, "size": 0, **more},
        )

    def _held(self, node_id: str, filename: str, content: bytes, **more: Any) -> Artifact:
        """Return an artifact without a file."""
        return self.artifact(node_id, ("output", "", filename), content=content, size=len(content), **more)

    # --- what was reported, and sent -------------------------------------------------------------------------------

    def _reported(self) -> Iterator[Reported]:
        """Yield everything that the prompts' nodes reported, under the ids of the job's own nodes.

        Prompts that were started repeat what cached nodes reported, so their known texts are left out.
        """
        known: set[tuple[str, str]] = set()
        for number, outputs in enumerate(self.ended.outputs):
            for found in reported(outputs, lambda node_id: node_id in self.graph and node_id not in self.outputs):
                item = replace(found, node_id=own_node(self.graph, found.node_id))
                if item.text is not None:
                    if number and (item.node_id, item.text) in known:
                        continue
                    known.add((item.node_id, item.text))
                yield item

    def _take(self, item: Reported) -> Artifact | None:
        """Note what a node reported; a text as its artifact."""
        self.heard_of.add(item.node_id)
        place = item.place or named_file(item.key, item.text)
        if item.text is not None and (place is None or not self.exists(place)):
            content = item.text.encode("utf-8", "replace")
            return self._held(item.node_id, text_name(item.node_id), content)
        if place is None:
            self._sent[item.node_id] += 1
            return None
        folder, name = place[0], posixpath.join(place[1], place[2])
        if folder in ("output", "temp") or (folder == "input" and name in self.rewritten):
            self.files.setdefault(self.normal(place), item.node_id)
        elif folder != "input" or (self.staged is not None and name not in self.staged):
            self.warnings.append(
                f"node {item.node_id} left something under {item.key[:50]!r} that was not returned: "
                f"a file in ComfyUI's {folder[:20]!r} folder"
            )
        return None

    def _pictures(self) -> list[Artifact]:
        """Return what came over the socket from nodes without a file: history knows nothing of it
        (big_ws_message.json)."""
        saving = set(self.files.values())
        sent = [replace(each, node_id=own_node(self.graph, str(each.node_id))) for each in self.ended.pictures]
        if not self.ended.lost_messages:  # else there may have been more
            self.heard_of.update(str(picture.node_id) for picture in sent)
        pictures: list[Artifact] = []
        for picture in sent:
            if picture.node_id not in saving:
                name = f"websocket_{len(pictures) + 1:05}.{picture.media_type.rpartition('/')[2]}"
                about = {"kind": Kind.IMAGE, "media_type": picture.media_type}
                pictures.append(self._held(str(picture.node_id), name, picture.content, **about))
        came = Counter(picture.node_id for picture in pictures)
        for node_id, count in self._sent.items():
            if came[node_id] < count:
                raise OutputMissing(
                    f"{self._name(node_id)} sent {count} picture(s) over ComfyUI's event socket, of which "
                    f"{came[node_id]} came; send the job again, or use SaveImage",
                    retryable=True,
                )
        return pictures

    def _kept(self, include_temp: bool | None, *, has_others: bool) -> dict[Place, str]:
        """Return the files to return: previews where asked for, or where nothing else is. ``has_others``: the job has
        texts or pictures."""
        previews = {place: node for place, node in self.files.items() if place[0] == "temp"}
        kept = {place: node for place, node in self.files.items() if place not in previews or include_temp}
        made = {place: node for place, node in previews.items() if node in self.outputs or node not in self.graph}
        has_option = include_temp is not None
        if made and not (kept or has_others):
            hint = " (delivery.include_temp returns them always)" if has_option else ""
            self.warnings.append(f"the workflow made nothing but previews, which are returned{hint}")
            return made
        if len(kept) < len(self.files):
            hint = "; delivery.include_temp returns them" if has_option else ""
            self.warnings.append(f"{len(previews)} preview file(s) were not returned{hint}")
        return kept

    def _ask_silent_nodes(self) -> None:
        """Leave no output node that nothing was seen of without a word. Raises OutputMissing if it may have sent it."""
        for node_id in self.outputs:
            if node_id in self.heard_of:
                continue
            if self.ended.lost_messages and self.may_have_sent(node_id):
                raise OutputMissing(
                    f"{self._name(node_id)} reported nothing. Pictures that it sent come over ComfyUI's event socket "
                    "only, which was lost; send the job again, or use SaveImage",
                    retryable=True,
                )
            self.warnings.append(f"{self._name(node_id)} reported nothing{self.unseen}")

    def _name(self, node_id: str) -> str:
        return located(node_id, self.graph) if node_id in self.graph else f"node {node_id}"


def without(prefix: str, name: str) -> str:
    """Return the name as the workflow's author meant it."""
    return "" if name == prefix else name.removeprefix(f"{prefix}/")
