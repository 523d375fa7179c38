"""Pure functions over a workflow in API format: ``{node_id: {"class_type", "inputs", "_meta"?}}``.

Nothing here depends on ComfyUI's node registry. No function changes the graph it is given. Node ids are strings such as
"12" or, inside a subgraph, "57:8".
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple

Workflow = dict[str, Any]
Problem = dict[str, Any]

#: ComfyUI walks a chain recursively, in the thread that runs prompts, which Python's limit of 1,000 calls then ends.
MAX_CHAIN = 400

#: Deeper values end ComfyUI's executor thread: its queue copies prompts recursively.
MAX_DEPTH = 64

#: What ComfyUI reads of a node. It keeps `is_changed` there too, which the metadata of a picture brings back: a loader
#: that finds one answers with the file that it read then.
NODE_KEYS = ("class_type", "inputs", "_meta")
#: Keys of a body of POST /prompt.
_PROMPT_KEYS = {"prompt", "client_id", "extra_data", "prompt_id"}
EXPORT_HINT = (
    "this is the editor's format, which ComfyUI cannot run: open it in ComfyUI and use Workflow > Export (API), "
    "then send that file"
)


def natural_key(node_id: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that puts "2" before "10" and "57:8" after "57"."""
    return tuple(
        # Python refuses to read numbers of thousands of digits.
        (0, int(part), "") if len(part) < 19 and part.isascii() and part.isdigit() else (1, 0, part)
        for part in re.split(r"[:.]", node_id)
    )


def is_link(value: Any) -> bool:
    """Return True if ComfyUI takes an input for ``[node_id, slot]`` (graph_utils.is_link), also with a fraction."""
    return (
        isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], (int, float))
    )


def unwrapped(value: Any) -> Any:
    """ComfyUI's editor wraps a list that is not a link as ``{"__value__": […]}``; ComfyUI takes the inside."""
    return value["__value__"] if isinstance(value, dict) and "__value__" in value else value


class Text(NamedTuple):
    """A string within an input's value."""

    #: The key of the object that holds it, else the input's own name.
    name: str
    text: str
    #: False for the value itself.
    is_inside: bool


def texts(name: str, value: Any) -> Iterator[Text]:
    """Yield every string of an input, those within objects, lists and JSON too.

    Classes keep names of files there: Load3D in ``{"image": "a.png", …}``, LoRA stackers in ``{"lora": "b.pt", …}``.
    """
    level = [Text(name, unwrapped(value), is_inside=False)]
    while level:
        inside: list[Text] = []
        for key, item, is_inside in level:
            if isinstance(item, str):
                yield Text(key, item, is_inside)
                item = _decoded(item)
            if isinstance(item, dict):
                inside += [Text(str(each), held, is_inside=True) for each, held in item.items()]
            elif isinstance(item, list) and (is_inside or not is_link(item)):
                inside += [Text(key, held, is_inside=True) for held in item]
        level = inside


def _decoded(text: str) -> Any:
    if text[:64].lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_slot(number: Any) -> bool:
    return not isinstance(number, bool) and math.isfinite(number) and number == int(number) and number >= 0


def links(node: Mapping[str, Any]) -> Iterator[tuple[str, str, int]]:
    """Yield ``(input name, source node id, source slot)`` for every linked input of a node."""
    for name, value in node["inputs"].items():
        if is_link(value) and _is_slot(value[1]):
            yield name, value[0], int(value[1])


def problem_at(node_id: str, node: Mapping[str, Any], name: str | None = None, **fields: Any) -> Problem:
    """Return a problem of a node, or of its input ``name``, with where it is."""
    place = {"path": f"workflow.{node_id}", "node_id": node_id, "class_type": node["class_type"]}
    if name is not None:
        place |= {"path": f"workflow.{node_id}.inputs.{name}", "input": name}
    return {**place, **fields}


def title(node: Mapping[str, Any]) -> str:
    meta = node.get("_meta")
    return str(meta.get("title", "")) if isinstance(meta, dict) else ""


def shown_node(workflow: Workflow, node_id: str) -> str:
    """Return a node's name for a person: ``6 CLIPTextEncode "Positive"``; its title only where it adds something."""
    node = workflow[node_id]
    name, kind = title(node), str(node["class_type"])
    return f"{node_id} {kind}" + (f' "{name}"' if name and name != kind else "")


def listed_nodes(workflow: Workflow, node_ids: Iterable[str]) -> str:
    """Return these nodes for an error's message, in natural order, one a line."""
    return "\n".join(f"  {shown_node(workflow, node_id)}" for node_id in sorted(set(node_ids), key=natural_key))


def own_node(workflow: Mapping[str, Any], node_id: str) -> str:
    """Return the id of a workflow's own node, for that of one that it expanded into, such as 5.0.0.1."""
    own = node_id
    while own not in workflow and "." in own:
        own = own.rpartition(".")[0]
    return own if own in workflow else node_id


# --- shape -----------------------------------------------------------------------------------------------


def shape_problems(workflow: Mapping[str, Any], *, max_nodes: int) -> list[Problem]:
    """Return everything wrong with the shape of a workflow, before any node registry is known.

    ComfyUI answers most of these with a bare 500 or by naming one node only (validation_errors.json).
    """
    problem = None
    if isinstance(workflow.get("nodes"), list) and "links" in workflow:
        problem = EXPORT_HINT
    elif isinstance(workflow.get("prompt"), dict) and set(workflow) <= _PROMPT_KEYS:
        problem = 'this is a whole POST /prompt body: send the value of its "prompt"'
    elif not workflow:
        problem = "the workflow has no nodes"
    elif len(workflow) > max_nodes:
        problem = f"{len(workflow)} nodes; MAX_NODES allows {max_nodes}"
    if problem:
        return [{"path": "workflow", "problem": problem}]
    problems = [each for node_id, node in workflow.items() for each in _node_shape(node_id, node)]
    return problems or [*_malformed_links(workflow)]


def link_problems(workflow: Mapping[str, Any]) -> list[Problem]:
    """Return links to nodes that are not there, else a loop or a chain that is too long, of a graph of right shape.

    ComfyUI looks at no node that leads to no output: see :func:`settee.comfyui.rewrite.linked`.
    """
    problems = []
    for node_id, node in workflow.items():
        for name, source, slot in links(node):
            if source not in workflow:
                problem = f"is linked to node {source[:100]!r}, which is not in the workflow"
                problems.append(problem_at(node_id, node, name, value=[source[:100], slot], problem=problem))
    if problems:
        return problems
    loop, longest = walk(workflow)
    if loop:
        named = " -> ".join(node_id[:50] for node_id in loop[:20])
        return [{"path": "workflow", "problem": f"the nodes {named} form a loop; a workflow must not"}]
    if longest > MAX_CHAIN:
        return [{"path": "workflow", "problem": f"a chain of {longest} nodes; ComfyUI follows at most {MAX_CHAIN}"}]
    return []


def _node_shape(node_id: Any, node: Any) -> Iterator[Problem]:
    where = {"path": f"workflow.{node_id}", "node_id": node_id}
    if not isinstance(node, dict):
        yield {**where, "problem": "a node must be an object with class_type and inputs"}
        return
    if not isinstance(node.get("class_type"), str) or not node["class_type"]:
        yield {**where, "problem": "the node has no class_type (is it API format?)"}
    if not isinstance(node.get("inputs"), dict):
        yield {**where, "problem": 'the node has no "inputs" object'}


def _malformed_links(workflow: Mapping[str, Any]) -> Iterator[Problem]:
    for node_id, node in workflow.items():
        for name, given in node["inputs"].items():
            value = unwrapped(given)
            is_pair = isinstance(value, list) and len(value) == 2 and all(type(each) is int for each in value)
            if is_pair and str(value[0]) in workflow:
                problem = f"is linked to {value[0]}, a number, and node ids are strings: write "
                yield problem_at(node_id, node, name, value=value, problem=f'{problem}["{value[0]}", {value[1]}]')
            elif is_link(value) and value is not given:
                # ComfyUI's executor follows it, and its validation does not look.
                problem = 'is a link wrapped as a value: give it without "__value__"'
                yield problem_at(node_id, node, name, value=[value[0][:100], repr(value[1])[:100]], problem=problem)
            elif is_link(value) and not _is_slot(value[1]):
                # Any other number ends ComfyUI's executor thread, or fools it.
                source, slot = value[0][:100], repr(value[1])[:100]
                problem = f"is linked to output {slot} of node {source!r}: outputs count from 0, in whole numbers"
                yield problem_at(node_id, node, name, value=[source, slot], problem=problem)


def walk(workflow: Mapping[str, Any]) -> tuple[list[str], int]:
    """Return the ids along one loop of links, its first again at the end (or []), and the longest chain's length."""
    sources = {i: [source for _, source, _ in links(node) if source in workflow] for i, node in workflow.items()}
    depth: dict[str, int] = {}
    try:
        for node_id in TopologicalSorter(sources).static_order():
            depth[node_id] = 1 + max((depth[source] for source in sources[node_id]), default=0)
    except CycleError as error:
        return [*reversed(error.args[1])], 0
    return [], max(depth.values(), default=0)


# --- size ------------------------------------------------------------------------------------------------


def measure(value: Any) -> tuple[int, str | None]:
    """Return (characters of text inside, what of it ComfyUI could not take): nested too deeply, or nothing for JSON.

    Level by level, not recursively: the value may be deeper than Python's stack.
    """
    size, level = 0, [value]
    for _ in range(MAX_DEPTH + 1):
        inside: list[Any] = []
        for item in level:
            if isinstance(item, str):
                size += len(item)
            elif isinstance(item, float) and not math.isfinite(item):
                return size, "holds NaN or an infinite number, which JSON cannot express"
            elif isinstance(item, dict):
                inside += item
                inside += item.values()
            elif isinstance(item, (list, tuple)):
                inside += item
            elif item is not None and not isinstance(item, (int, float)):  # of a caller in Python
                return size, f"is not a JSON value, but a {type(item).__name__}"
        if not inside:
            return size, None
        level = inside
    return size, f"is nested more than {MAX_DEPTH} levels deep"
