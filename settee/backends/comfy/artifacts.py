"""A job's artifacts where ComfyUI's folders are shared: each file by its path, and what was written and not reported.

CheckpointSave, SaveLoRA and savers of many packs write below ComfyUI's output folder and report nothing.
"""

from __future__ import annotations

import posixpath
import time
from collections.abc import Callable, Collection
from pathlib import Path

from settee.base.errors import DeliveryError, OutputMissing, UnsafePath
from settee.base.job import Artifact
from settee.comfyui.history import Place
from settee.comfyui.isolation import restore
from settee.comfyui.node_registry import NodeRegistry
from settee.comfyui.outputs import Collector, Ended, without
from settee.comfyui.workflow import Workflow
from settee.staging.workspace import Workspace, is_being_written

#: Names that a warning shows.
_SHOWN = 5
#: How long files that are still being written are waited for, and one of them that does not grow, seconds.
WRITING_S, STALLED_S = 10.0, 1.0


class FolderCollector(Collector):
    unseen = ""

    def __init__(
        self,
        ended: Ended,
        graph: Workflow,
        registry: NodeRegistry,
        workspace: Workspace,
        *,
        staged: Collection[str] = (),
        present: Collection[str] = (),
        rewritten: Collection[str] = (),
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        """Each file must lie inside the ``workspace``, as history's names are not trusted. ``present``: what was below
        output before the job. ``rewritten``: the files below input that its nodes wrote. ``pause`` is called while a
        file that is still being written is waited for, and may raise."""
        super().__init__(ended, graph, registry, staged)
        self._workspace, self._present, self.rewritten, self._pause = workspace, present, rewritten, pause
        #: Files that are still being written then are returned as they are.
        self._give_up = time.monotonic() + WRITING_S
        #: What links lead to was looked up once, which costs more than all else here.
        self._paths: dict[Place, Path] = {}
        self._unreported: set[Place] = set()
        self._unfinished: list[str] = []

    def collect(self, include_temp: bool | None) -> tuple[list[Artifact], list[str]]:
        artifacts, warnings = super().collect(include_temp)
        if self._unfinished:
            names = _listed(self._unfinished)
            warnings.append(f"still open for writing after the workflow had ended, may be incomplete: {names}")
        return artifacts, warnings

    def exists(self, place: Place) -> bool:
        return self.normal(place) in self._paths

    def normal(self, place: Place) -> Place:
        try:
            path, name = self._workspace.path_of(*place)
        except (UnsafePath, OutputMissing):
            return place  # an error, if it is to be returned
        normal = (place[0], *posixpath.split(name))
        self._paths[normal] = path
        return normal

    def find_unreported(self) -> None:
        """Find what was written and not reported: all that is new, or what is in the job's own folder if others ran.

        Input files that were written over are among it.
        """
        names, others = self._workspace.made()
        if not self.ended.is_alone():
            names, others = self._workspace.made(self.ended.prefix)
        found = [("output", name) for name in names if name not in self._present]
        found += [("input", name) for name in self.rewritten]
        unsure = []
        silent = [node_id for node_id in self.outputs if node_id not in self.heard_of]
        for folder, name in found:
            place = (folder, *posixpath.split(name))
            if place not in self.files:
                self._unreported.add(place)
                node_id = self._maker(without(self.ended.prefix, name), silent)
                self.files[place] = node_id or ""
                self.heard_of.add(node_id or "")
                if node_id is None:
                    unsure.append(posixpath.basename(name))
        if unsure:
            self.warnings.append(f"no node reported {_listed(unsure)}, found in ComfyUI's folders after the job")
        if others:
            self.warnings.append(
                f"{others} hidden file(s), unfinished file(s) or link(s) in ComfyUI's output folder were not returned"
            )

    def _maker(self, name: str, silent: list[str]) -> str | None:
        """Return the node that wrote a file: the one that names it best, else the only output node that reported
        nothing."""
        naming = [
            (len(value.strip("/")), node_id)
            for node_id in silent or self.outputs
            for value in self.graph[node_id]["inputs"].values()
            if isinstance(value, str) and value.strip("/") and name.startswith(value.strip("/"))
        ]
        if naming:
            return max(naming)[1]
        return silent[0] if len(silent) == 1 else None

    def file(self, node_id: str, place: Place) -> Artifact | None:
        try:
            path = self._paths.get(place) or self._workspace.path_of(*place)[0]
            self._await_writer(path)
            restore(path, self.ended.prefix)
            return self.artifact(node_id, place, path=path, size=path.stat().st_size)
        except UnsafePath as error:
            raise DeliveryError(f"node {node_id} reported a file outside ComfyUI's {place[0]} folder") from error
        except (FileNotFoundError, OutputMissing) as error:
            if place in self._unreported:
                return None  # its node has taken it away meanwhile
            if isinstance(error, OutputMissing):
                raise
            raise OutputMissing(f"the file {place[2]} of node {node_id} is gone") from error

    def _await_writer(self, path: Path) -> None:
        """Let a thread or a program that a node left behind finish a file, as long as that goes on."""
        while is_being_written(path):
            is_stalled = time.time() - path.stat().st_mtime > STALLED_S
            if is_stalled or time.monotonic() > self._give_up:
                self._unfinished.append(path.name)
                return
            self._pause()


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
