"""A ComfyUI custom node without nodes: the worker's salt, where the worker itself cannot put it or keep it away.

The worker adds an input to a node that must run again for its job (settee/workflow.py). It is part of the node's cache
key, and most classes never see it, as they do not declare it. Those that take any name would: V3 classes with
`accept_all_inputs`, and older ones whose `optional` claims to contain every key. No part of /object_info tells them
apart, so the input is taken out where ComfyUI makes a node's arguments.

Nodes that expand (loops, for one) run others in their place, which the worker never sees. Savers among them are salted
here, as they come, and so are the nodes that they came from: a cached one would not become anything.
"""

from __future__ import annotations

import functools
import logging
import uuid
from collections.abc import Callable
from typing import Any

#: ComfyUI wants to see this in every custom node.
NODE_CLASS_MAPPINGS: dict[str, type] = {}

#: SALT_INPUT in settee/workflow.py, which cannot be imported here.
SALT_INPUT = "settee_job"

log = logging.getLogger(__name__)


def without_salt(get_input_data: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ComfyUI's execution.get_input_data, whose first argument are the inputs as the prompt has them."""

    if getattr(get_input_data, "is_without_salt", False):
        return get_input_data  # the image and the supervisor may both have shown this folder to ComfyUI

    @functools.wraps(get_input_data)
    def wrapped(inputs: dict[str, Any], *args: Any, **named: Any) -> Any:
        if SALT_INPUT in inputs:
            inputs = {name: value for name, value in inputs.items() if name != SALT_INPUT}
        return get_input_data(inputs, *args, **named)

    wrapped.is_without_salt = True  # type: ignore[attr-defined]
    return wrapped


def salt_expanded(dynamic_prompt: Any, is_output: Callable[[str], bool]) -> None:
    """Wrap ComfyUI's comfy_execution.graph.DynamicPrompt, to which an expanding node's others are added one by one."""
    if getattr(dynamic_prompt, "is_salted", False):
        return
    init, add = dynamic_prompt.__init__, dynamic_prompt.add_ephemeral_node
    #: Classes of which a node became savers, at any depth.
    expanding: set[str] = set()

    @functools.wraps(init)
    def salted_init(self: Any, original_prompt: dict[str, Any]) -> None:
        init(self, original_prompt)
        for node in original_prompt.values():
            if node.get("class_type") in expanding:
                node["inputs"] = {**node["inputs"], SALT_INPUT: uuid.uuid4().hex}

    @functools.wraps(add)
    def salted_add(self: Any, node_id: str, node: dict[str, Any], parent_id: str, *args: Any) -> None:
        if is_output(node["class_type"]) or node["class_type"] in expanding:
            node = {**node, "inputs": {**node.get("inputs", {}), SALT_INPUT: uuid.uuid4().hex}}
            parent: str | None = parent_id
            while parent is not None:
                expanding.add(self.get_node(parent)["class_type"])
                parent = self.get_parent_node_id(parent)
        add(self, node_id, node, parent_id, *args)

    dynamic_prompt.__init__, dynamic_prompt.add_ephemeral_node = salted_init, salted_add
    dynamic_prompt.is_salted = True


def _install() -> None:
    try:
        import execution
        import nodes
        from comfy_execution.graph import DynamicPrompt

        execution.get_input_data = without_salt(execution.get_input_data)
        salt_expanded(DynamicPrompt, lambda name: getattr(nodes.NODE_CLASS_MAPPINGS.get(name), "OUTPUT_NODE", False))
    except Exception as error:
        # A ComfyUI that is built otherwise gives such classes one argument more, and caches savers of expanding nodes.
        log.warning("settee: classes with open-ended inputs see %s: %s: %s", SALT_INPUT, type(error).__name__, error)


_install()
