"""What the clients are told about the nodes of the running prompt."""

from __future__ import annotations

import time
from typing import Any

from settee.embedded.hub import PREVIEW, PREVIEW_WITH_METADATA, Hub, PreviewImage

PROGRESS_SECONDS = 0.1
PROGRESS_SHARE = 0.005
"""Steps of a node are told no closer than this to each other, but for the first, the last and those with previews."""


def place(node_id: str) -> dict[str, Any]:
    """The ids ComfyUI repeats for nodes that other nodes created; here every node is its own."""
    return {"display_node_id": node_id, "parent_node_id": None, "real_node_id": node_id}


class Progress:
    """Value and maximum of every node of one prompt that was started so far."""

    def __init__(self, hub: Hub, prompt_id: str) -> None:
        self._hub = hub
        self._prompt_id = prompt_id
        self._nodes: dict[str, dict[str, Any]] = {}
        self._sent: dict[str, tuple[float, float]] = {}

    def start(self, node_id: str) -> None:
        """A node starts."""
        self._set(node_id, 0.0, 1.0, "running")

    def finish(self, node_id: str) -> None:
        """A node is done, or was found in the cache."""
        maximum = self._nodes[node_id]["max"] if node_id in self._nodes else 1
        self._set(node_id, maximum, maximum, "finished")

    def update(self, node_id: str, value: float, maximum: float, preview: PreviewImage | None) -> None:
        """A node got further, which is not told of each time.

        A preview goes with its metadata before ``progress``, or bare after it, by what the client understands.
        """
        now = time.monotonic()
        before, then = self._sent.get(node_id, (-1.0, 0.0))
        is_worth_it = now - then >= PROGRESS_SECONDS and value - before >= PROGRESS_SHARE * maximum
        if not (preview or before < 0 or value >= maximum or is_worth_it):
            return
        self._sent[node_id] = value, now
        client_id = self._hub.client_id
        self._set(node_id, value, maximum, "running")
        detailed = preview is not None and self._hub.supports(client_id, "supports_preview_metadata")
        if detailed:
            metadata = {"node_id": node_id, "prompt_id": self._prompt_id, **place(node_id)}
            self._hub.post(PREVIEW_WITH_METADATA, (preview, metadata), client_id)
        step = {"value": value, "max": maximum, "prompt_id": self._prompt_id, "node": node_id}
        self._hub.post("progress", step, client_id)
        if preview is not None and not detailed:
            self._hub.post(PREVIEW, preview, client_id)

    def _set(self, node_id: str, value: float, maximum: float, state: str) -> None:
        self._nodes[node_id] = {
            "value": value,
            "max": maximum,
            "state": state,
            "node_id": node_id,
            "prompt_id": self._prompt_id,
            **place(node_id),
        }
        # Every message repeats every node, as from ComfyUI: a graph of 100 nodes costs 2 MB.
        message = {"prompt_id": self._prompt_id, "nodes": dict(self._nodes)}
        self._hub.post("progress_state", message, self._hub.client_id)
