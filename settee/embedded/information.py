"""The routes that say what the server is and has."""

from __future__ import annotations

import os
import sys
from typing import Any

from aiohttp import web

from settee import __version__
from settee.embedded import COMFYUI_VERSION
from settee.embedded.nodes import NODES
from settee.embedded.sockets import server_features
from settee.embedded.state import STATE

routes = web.RouteTableDef()

MODEL_FOLDERS = [
    *("checkpoints", "configs", "loras", "vae", "text_encoders", "diffusion_models", "clip_vision", "style_models"),
    *("embeddings", "diffusers", "vae_approx", "controlnet", "gligen", "upscale_models", "latent_upscale_models"),
    *("custom_nodes", "datasets", "hypernetworks", "photomaker", "classifiers", "model_patches", "audio_encoders"),
    *("background_removal", "frame_interpolation", "geometry_estimation", "optical_flow", "detection"),
]


@routes.get("/")
async def root(request: web.Request) -> web.Response:
    """A page where ComfyUI has its editor."""
    text = "<!doctype html><title>settee embedded</title><p>The embedded ComfyUI of settee. There is no editor here."
    return web.Response(text=text, content_type="text/html", headers={"Cache-Control": "no-cache"})


@routes.get("/object_info")
async def object_info(request: web.Request) -> web.Response:
    """Every node class."""
    folders = request.app[STATE].options.folders
    return web.json_response({name: node_class.spec.info(folders) for name, node_class in NODES.items()})


@routes.get("/object_info/{name}")
async def object_info_of(request: web.Request) -> web.Response:
    """One node class, or an empty object."""
    name = request.match_info["name"]
    folders = request.app[STATE].options.folders
    return web.json_response({name: NODES[name].spec.info(folders)} if name in NODES else {})


@routes.get("/system_stats")
async def system_stats(request: web.Request) -> web.Response:
    """Memory, versions and arguments. ``settee_embedded`` tells that this is not the real one."""
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
        "argv": ["settee.embedded", *request.app[STATE].options.argv],
    }
    device: dict[str, Any] = {"name": "cpu", "type": "cpu", "index": None}
    for kind in ("vram", "torch_vram"):
        device |= {f"{kind}_total": total, f"{kind}_free": free}
    return web.json_response({"system": system, "devices": [device]})


def _memory_bytes() -> tuple[int, int]:
    """Total and available memory."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not POSIX
        return 0, 0


@routes.get("/features")
async def features(request: web.Request) -> web.Response:
    """What the server supports."""
    return web.json_response(server_features(request.app[STATE]))


@routes.get("/extensions")
async def extensions(request: web.Request) -> web.Response:
    """Scripts of the editor: none."""
    return web.json_response([])


@routes.get("/models")
async def model_folders(request: web.Request) -> web.Response:
    """The kinds of models."""
    return web.json_response(MODEL_FOLDERS)


@routes.get("/models/{folder}")
async def models(request: web.Request) -> web.Response:
    """The files of one kind, 404 for an unknown kind."""
    folder = request.match_info["folder"]
    if folder not in MODEL_FOLDERS:
        return web.Response(status=404)
    return web.json_response(request.app[STATE].options.folders.model_files(folder))


@routes.get("/embeddings")
async def embeddings(request: web.Request) -> web.Response:
    """Embeddings without their suffix."""
    names = request.app[STATE].options.folders.model_files("embeddings")
    return web.json_response([os.path.splitext(name)[0] for name in names])
