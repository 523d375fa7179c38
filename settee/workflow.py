"""Pure functions over a workflow in API format: ``{node_id: {"class_type", "inputs", "_meta"?}}``.

Nothing here talks to ComfyUI; what depends on its node registry takes `/object_info` as an argument. No function
changes the graph it is given. Node ids are strings such as "12" or, inside a subgraph, "57:8".
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Workflow = dict[str, Any]
ObjectInfo = Mapping[str, Any]
Problem = dict[str, Any]

EXPORT_HINT = (
    "this is the editor's format, which ComfyUI cannot run: open it in ComfyUI and use Workflow > Export (API), "
    "then send that file"
)


def natural_key(node_id: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts "2" before "10" and "57:8" after "57"."""
    return tuple(
        (0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part) for part in re.split(r"[:.]", node_id)
    )


def is_link(value: Any) -> bool:
    """Whether an input is ``[node_id, slot]``, by ComfyUI's own rule (graph_utils.is_link)."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], (int, float))
        and not isinstance(value[1], bool)
    )


def links(node: Mapping[str, Any]) -> Iterator[tuple[str, str, int]]:
    """``(input name, source node id, source slot)`` for every linked input of a node."""
    for name, value in node["inputs"].items():
        if is_link(value):
            yield name, value[0], int(value[1])


def title(node: Mapping[str, Any]) -> str:
    meta = node.get("_meta")
    return str(meta.get("title", "")) if isinstance(meta, dict) else ""


# --- shape -----------------------------------------------------------------------------------------------


def shape_problems(workflow: Mapping[str, Any], *, max_nodes: int) -> list[Problem]:
    """Everything wrong with the shape of a workflow, before any node registry is known.

    ComfyUI answers most of these with a bare 500 or by naming one node only (validation_errors.json).
    """
    if isinstance(workflow.get("nodes"), list) and "links" in workflow:
        return [{"path": "workflow", "problem": EXPORT_HINT}]
    if set(workflow) <= {"prompt", "client_id", "extra_data", "prompt_id"} and isinstance(workflow.get("prompt"), dict):
        return [
            {
                "path": "workflow",
                "problem": 'this is a whole POST /prompt body: send what is inside its "prompt"',
            }
        ]
    if not workflow:
        return [{"path": "workflow", "problem": "the workflow has no nodes"}]
    if len(workflow) > max_nodes:
        return [{"path": "workflow", "problem": f"{len(workflow)} nodes; MAX_NODES allows {max_nodes}"}]
    problems: list[Problem] = []
    for node_id, node in workflow.items():
        problems += _node_shape(node_id, node)
    if not problems:
        problems += _link_targets(workflow)
    if not problems and (loop := find_cycle(workflow)):
        problems.append(
            {"path": "workflow", "problem": f"the nodes {' -> '.join(loop)} form a loop; a workflow must not"}
        )
    return problems


def _node_shape(node_id: Any, node: Any) -> Iterator[Problem]:
    where = f"workflow.{node_id}"
    if not isinstance(node, dict):
        yield {
            "path": where,
            "node_id": node_id,
            "problem": "a node must be an object with class_type and inputs",
        }
        return
    if not isinstance(node.get("class_type"), str) or not node["class_type"]:
        yield {"path": where, "node_id": node_id, "problem": "the node has no class_type (is it API format?)"}
    if not isinstance(node.get("inputs"), dict):
        yield {"path": where, "node_id": node_id, "problem": 'the node has no "inputs" object'}


def _link_targets(workflow: Mapping[str, Any]) -> Iterator[Problem]:
    for node_id, node in workflow.items():
        for name, source, slot in links(node):
            problem = None
            if source not in workflow:
                problem = f"is linked to node {source!r}, which is not in the workflow"
            elif slot < 0:
                problem = f"is linked to output {slot} of node {source!r}: outputs count from 0"
            if problem:
                yield {
                    "path": f"workflow.{node_id}.inputs.{name}",
                    "node_id": node_id,
                    "class_type": node["class_type"],
                    "input": name,
                    "value": [source, slot],
                    "problem": problem,
                }


def find_cycle(workflow: Mapping[str, Any]) -> list[str]:
    """The ids along one loop of links, its first again at the end; [] when there is none. Not recursive."""
    done: set[str] = set()
    for start in workflow:
        if start in done:
            continue
        path: list[str] = []
        on_path: set[str] = set()
        stack: list[tuple[str, Iterator[str]]] = []

        def enter(node_id: str) -> None:
            path.append(node_id)  # noqa: B023 - called only within this turn of the loop
            on_path.add(node_id)  # noqa: B023
            stack.append((node_id, iter([source for _, source, _ in links(workflow[node_id])])))  # noqa: B023

        enter(start)
        while stack:
            node_id, sources = stack[-1]
            for source in sources:
                if source in on_path:
                    return [*path[path.index(source) :], source]
                if source not in done and source in workflow:
                    enter(source)
                    break
            else:
                stack.pop()
                path.pop()
                on_path.discard(node_id)
                done.add(node_id)
    return []


# --- policy ----------------------------------------------------------------------------------------------


def class_problems(workflow: Workflow, allowed: Iterable[str], denied: Iterable[str]) -> list[Problem]:
    """Nodes whose class the worker's ALLOWED_NODES or DENIED_NODES (names or shell patterns) rule out."""
    allowed, denied = tuple(allowed), tuple(denied)
    problems = []
    for node_id, node in workflow.items():
        name = node["class_type"]
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in denied):
            rule = "is on this worker's DENIED_NODES"
        elif allowed and not any(fnmatch.fnmatchcase(name, pattern) for pattern in allowed):
            rule = "is not on this worker's ALLOWED_NODES"
        else:
            continue
        problems.append(
            {
                "path": f"workflow.{node_id}",
                "node_id": node_id,
                "class_type": name,
                "problem": f"the node class {name} {rule}",
            }
        )
    return problems


def output_nodes(workflow: Workflow, object_info: ObjectInfo) -> list[str]:
    """Ids of the nodes that end in an output, in natural order."""
    ids = [i for i, node in workflow.items() if object_info.get(node["class_type"], {}).get("output_node")]
    return sorted(ids, key=natural_key)


# --- isolation -------------------------------------------------------------------------------------------

#: An input no class declares: ComfyUI ignores it, but its cache key covers it, so the node runs again.
SALT_INPUT = "settee_job"


def isolate(workflow: Workflow, object_info: ObjectInfo, prefix: str) -> Workflow:
    """A copy in which every saving node runs for this job and writes below ``prefix``.

    ComfyUI answers a graph it has seen from its cache, with the names of files that were wiped after the last job
    (resubmit_cached.json). A `filename_prefix` of this job's own makes its node save again, and tells its files
    from any other job's; output nodes without one get an input that only the cache sees. Nothing upstream of
    them runs again.
    """
    isolated = dict(workflow)
    for node_id, node in workflow.items():
        if not object_info.get(node["class_type"], {}).get("output_node"):
            continue
        inputs = dict(node["inputs"])
        name = inputs.get("filename_prefix")
        if isinstance(name, str):
            inputs["filename_prefix"] = f"{prefix}/{name}"
        else:
            inputs[SALT_INPUT] = prefix
        isolated[node_id] = {**node, "inputs": inputs}
    return isolated
