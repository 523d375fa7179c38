"""The order in which the nodes of a prompt run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from settee.embedded.nodes.base import is_link


class CycleError(Exception):
    """Nodes wait for each other. Validation finds static cycles first."""


class ExecutionOrder:
    """Hands out nodes whose inputs are ready, preferring those that bring an output node closest.

    The preference is ComfyUI's, so that the order of messages is too: an output node first, then a node that an
    output node waits for, then a node two steps from one, then the oldest.
    """

    def __init__(
        self,
        prompt: dict[str, Any],
        outputs: Iterable[str],
        is_cached: Callable[[str], bool],
        is_output: Callable[[str], bool],
    ) -> None:
        self._prompt = prompt
        self._is_cached = is_cached
        self._is_output = is_output
        self._waits_for: dict[str, set[str]] = {}
        self._awaited_by: dict[str, dict[str, None]] = {}
        for node_id in outputs:
            self._add(node_id)

    def __bool__(self) -> bool:
        return bool(self._waits_for)

    def _add(self, node_id: str) -> None:
        stack, edges = [node_id], []
        while stack:
            current = stack.pop()
            if current in self._waits_for:
                continue
            self._waits_for[current] = set()
            self._awaited_by[current] = {}
            for value in self._prompt[current]["inputs"].values():
                if is_link(value) and not self._is_cached(value[0]):
                    stack.append(value[0])
                    edges.append((value[0], current))
        for source, target in edges:
            self._waits_for[target].add(source)
            self._awaited_by[source][target] = None

    def next(self) -> str:
        """The node to run now; raises CycleError when all of them wait."""
        ready = [node_id for node_id, needs in self._waits_for.items() if not needs]
        if not ready:
            raise CycleError("Dependency cycle detected")
        for steps in range(3):
            for node_id in ready:
                if self._leads_to_output(node_id, steps):
                    return node_id
        return ready[0]

    def _leads_to_output(self, node_id: str, steps: int) -> bool:
        if steps == 0:
            return self._is_output(node_id)
        return any(self._leads_to_output(after, steps - 1) for after in self._awaited_by[node_id])

    def complete(self, node_id: str) -> None:
        """Say that a node is done."""
        del self._waits_for[node_id]
        for after in self._awaited_by.pop(node_id):
            self._waits_for[after].discard(node_id)
