"""Answers about the server itself: node classes, replaced ones, models, statistics, features."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from settee import __version__
from settee.comfyui.workflow import is_link
from settee.embedded import COMFYUI_VERSION
from settee.embedded.nodes import NODES
from settee.embedded.state import STATE, State

MODEL_FOLDERS = [
    *("checkpoints", "configs", "loras", "vae", "text_encoders", "diffusion_models", "clip_vision", "style_models"),
    *("embeddings", "diffusers", "vae_approx", "controlnet", "gligen", "upscale_models", "latent_upscale_models"),
    *("custom_nodes", "datasets", "hypernetworks", "photomaker", "classifiers", "model_patches", "audio_encoders"),
    *("background_removal", "frame_interpolation", "geometry_estimation", "optical_flow", "detection"),
]


def system_stats(state: State) -> dict[str, Any]:
    """Return memory, versions and arguments. ``settee_embedded`` marks that this is not the real one."""
    total, free = _memory_bytes()
    system = {
        "os": sys.platform,
        "ram_total": total,
        "ram_free": free,
        "comfyui_version": COMFYUI_VERSION,
        "settee_embedded": __version__,
        "required_frontend_version": None,
        "installed_templates_version": None,
        "required_templates_version": None,
        "comfy_package_versions": [],
        "python_version": sys.version,
        "pytorch_version": None,
        "embedded_python": False,
        "deploy_environment": "local",
        "argv": ["settee.embedded", *state.options.argv],
    }
    device: dict[str, Any] = {"name": "cpu", "type": "cpu", "index": None}
    for kind in ("vram", "torch_vram"):
        device |= {f"{kind}_total": total, f"{kind}_free": free}
    return {"system": system, "devices": [device]}


def _memory_bytes() -> tuple[int, int]:
    """Return total and available memory."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not POSIX
        return 0, 0


def _object_info(state: State, names: list[str]) -> dict[str, Any]:
    return {name: NODES[name].info(state.options.folders) for name in names if name in NODES}


def _embeddings(state: State) -> list[str]:
    return [os.path.splitext(name)[0] for name in state.options.folders.model_files("embeddings")]


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


def replace_classes(prompt: Any) -> None:
    """Give nodes of an old class their new one, in place.

    As in ComfyUI, KeyError for one without _meta or without an input that is renamed, and inputs that no mapping
    names are lost. TypeError and the like for what is not a graph.
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


# --- routes -----------------------------------------------------------------------------------------------

ANSWERS: dict[str, Callable[[State], Any]] = {
    "/prompt": State.queue_info,
    "/features": State.features,
    "/system_stats": system_stats,
    "/object_info": lambda state: _object_info(state, [*NODES]),
    "/node_replacements": lambda _: REPLACEMENTS,
    "/models": lambda _: MODEL_FOLDERS,
    "/embeddings": _embeddings,
    "/extensions": lambda _: [],  # scripts of the editor
}
"""By path, what a GET without parameters answers."""


def _json(answer: Callable[[State], Any]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def get(request: web.Request) -> web.Response:
        return web.json_response(answer(request.app[STATE]))

    return get


routes = web.RouteTableDef()
for _path, _answer in ANSWERS.items():
    routes.get(_path)(_json(_answer))


@routes.get("/")
async def root(request: web.Request) -> web.Response:
    """Answer with a page where ComfyUI has its editor."""
    text = "<!doctype html><title>settee embedded</title><p>The embedded ComfyUI of settee. It has no editor."
    return web.Response(text=text, content_type="text/html", headers={"Cache-Control": "no-cache"})


@routes.get("/object_info/{name}")
async def object_info_of(request: web.Request) -> web.Response:
    """Answer with one node class, or an empty object."""
    return web.json_response(_object_info(request.app[STATE], [request.match_info["name"]]))


@routes.get("/models/{folder}")
async def models(request: web.Request) -> web.Response:
    """Answer with the files of one kind, 404 for an unknown kind."""
    folder = request.match_info["folder"]
    if folder not in MODEL_FOLDERS:
        return web.Response(status=404)
    return web.json_response(request.app[STATE].options.folders.model_files(folder))
