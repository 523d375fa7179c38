"""GET /node_replacements: old class names, and what ComfyUI makes of them before it looks at a graph."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from settee.embedded.nodes import NODES
from settee.embedded.nodes.base import is_link

routes = web.RouteTableDef()


def _replacement(old: str, new: str, inputs: dict[str, str] | None) -> dict[str, Any]:
    mapping = inputs and [{"new_id": name, "old_id": given} for name, given in inputs.items()]
    more = {"old_widget_ids": None, "input_mapping": mapping, "output_mapping": None}
    return {"new_node_id": new, "old_node_id": old, **more}


#: ComfyUI's, of which only the first is about a class that this server has.
REPLACEMENTS = {
    old: [_replacement(old, new, inputs)]
    for old, new, inputs in (
        ("T2IAdapterLoader", "ControlNetLoader", {"control_net_name": "t2i_adapter_name"}),
        ("Load3DAnimation", "Load3D", None),
        ("Preview3DAnimation", "Preview3D", None),
        ("SDV_img2vid_Conditioning", "SVD_img2vid_Conditioning", None),
        ("ConditioningAverage ", "ConditioningAverage", None),
    )
}


@routes.get("/node_replacements")
async def node_replacements(request: web.Request) -> web.Response:
    """By old class name: its new one, and which input became which."""
    return web.json_response(REPLACEMENTS)


def replace_classes(prompt: Any) -> None:
    """Give nodes of an old class their new one, in place.

    As in ComfyUI, KeyError for one without _meta or without an input that is renamed, and inputs that no mapping
    names are lost. TypeError and the like for what is no graph.
    """
    for node_id, node in prompt.items():
        if "class_type" not in node or "inputs" not in node:
            continue
        for value in node["inputs"].values():
            is_link(value)
        found = REPLACEMENTS.get(node["class_type"], [None])[0]
        if found is None or node["class_type"] in NODES or found["new_node_id"] not in NODES:
            continue
        renamed = found["input_mapping"] or []
        inputs = {each["new_id"]: node["inputs"][each["old_id"]] for each in renamed}
        prompt[node_id] = {**node, "class_type": found["new_node_id"], "inputs": inputs, "_meta": {**node["_meta"]}}
