"""ComfyUI's routes: prompts, files, and what the server states of itself; and the parts that they share."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import mimetypes
import os
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from settee import __version__
from settee.embedded import COMFYUI_VERSION
from settee.embedded.broadcast import Hub
from settee.embedded.executor import Executor
from settee.embedded.folders import Folders
from settee.embedded.nodes import NODES
from settee.embedded.nodes.node import Env
from settee.embedded.pending import PromptQueue
from settee.embedded.server_options import Options
from settee.embedded.validation import Error, error, validate
from settee.models.readahead import free_memory, total_memory

log = logging.getLogger("settee.embedded")

routes = web.RouteTableDef()


class State:
    """One server: its options, and the parts that do the work."""

    def __init__(self, options: Options, loop: asyncio.AbstractEventLoop) -> None:
        self.options = options
        self.hub = Hub(loop)
        self.queue = PromptQueue(on_change=lambda: self.hub.post("status", {"status": self.queue_info()}, None))
        self.executor = Executor(self.queue, self.hub, Env(options))
        #: For prompts that bring no number of their own.
        self.numbers = itertools.count()

    def queue_info(self) -> dict[str, dict[str, int]]:
        """Return the body of GET /prompt and of every status message."""
        return {"exec_info": {"queue_remaining": self.queue.remaining()}}

    def features(self) -> dict[str, object]:
        """Return the body of GET /features and the answer to a client's feature_flags."""
        return {
            "supports_preview_metadata": True,
            "supports_model_type_tags": True,
            "max_upload_size": self.options.max_upload_bytes,
            "extension": {"manager": {"supports_v4": True}},
            "node_replacements": True,
            "assets": False,
        }


STATE = web.AppKey("state", State)


# --- prompts ----------------------------------------------------------------------------------------------

_BAD_PROMPT_ID = error(
    "invalid_prompt_id",
    "prompt_id must be a valid UUID",
    "prompt_id must be a UUID string in canonical lowercase hyphenated form; omit it to let the server generate one",
)
#: A class that ComfyUI replaces by another, as /node_replacements lists it.
REPLACEMENTS: dict[str, list[dict[str, Any]]] = {
    "T2IAdapterLoader": [
        {
            "new_node_id": "ControlNetLoader",
            "old_node_id": "T2IAdapterLoader",
            "old_widget_ids": None,
            "input_mapping": [{"new_id": "control_net_name", "old_id": "t2i_adapter_name"}],
            "output_mapping": None,
        }
    ]
}


@routes.post("/prompt")
async def submit(request: web.Request) -> web.Response:
    """Validate a prompt and queue it. What is not a JSON object of the expected kind raises, and so becomes 500."""
    log.info("got prompt")
    state = request.app[STATE]
    body = await request.json()
    number: float = float(body["number"]) if "number" in body else next(state.numbers)
    if "prompt" not in body:  # true of an array too, which ComfyUI answers the same way
        return _refused(error("no_prompt", "No prompt provided", "No prompt provided"), {})
    if "number" not in body and body.get("front"):
        number = -number
    prompt_id = str(uuid.uuid4()) if body.get("prompt_id") is None else body["prompt_id"]
    if not _is_prompt_id(prompt_id):
        return _refused(_BAD_PROMPT_ID, {})
    _replace_classes(body["prompt"])
    verdict = validate(body["prompt"], body.get("partial_execution_targets"), state.options.folders)
    extra_data = body.get("extra_data", {})
    if "client_id" in body:
        extra_data["client_id"] = body["client_id"]
    if "comfy_usage_source" not in extra_data and "Comfy-Usage-Source" in request.headers:
        extra_data["comfy_usage_source"] = request.headers["Comfy-Usage-Source"]
    if verdict.error:
        log.warning("invalid prompt: %s", verdict.error)
        return _refused(verdict.error, verdict.node_errors)
    extra_data["create_time"] = int(time.time() * 1000)
    state.queue.put((number, prompt_id, body["prompt"], extra_data, verdict.outputs))
    return web.json_response({"prompt_id": prompt_id, "number": number, "node_errors": verdict.node_errors})


def _refused(problem: Error, node_errors: dict[str, Any]) -> web.Response:
    return web.json_response({"error": problem, "node_errors": node_errors}, status=400)


def _is_prompt_id(value: Any) -> bool:
    """Return True for a UUID in its canonical spelling: ComfyUI compares ids as they are."""
    try:
        return isinstance(value, str) and str(uuid.UUID(value)) == value
    except ValueError:
        return False


def _replace_classes(prompt: Any) -> None:
    """Give nodes of an old class their new one, in place.

    As in ComfyUI, KeyError for one without _meta or without an input that is renamed, and inputs that no mapping
    names are lost. TypeError and the like for what is not a graph.
    """
    for node_id, node in prompt.items():
        if "class_type" not in node or "inputs" not in node:
            continue
        node["inputs"].values()
        for found in REPLACEMENTS.get(node["class_type"], ()):
            inputs = {each["new_id"]: node["inputs"][each["old_id"]] for each in found["input_mapping"]}
            prompt[node_id] = {**node, "class_type": found["new_node_id"], "inputs": inputs, "_meta": {**node["_meta"]}}


@routes.get("/queue")
async def read_queue(request: web.Request) -> web.Response:
    """Answer with running and waiting prompts, whole."""
    running, waiting = request.app[STATE].queue.snapshot()
    return web.json_response({"queue_running": running, "queue_pending": waiting})


@routes.post("/queue")
async def change_queue(request: web.Request) -> web.Response:
    """Take ``{"clear": true}`` or ``{"delete": [ids]}``; running prompts stay."""
    queue = request.app[STATE].queue
    return await _removed(request, queue.clear, queue.delete)


@routes.post("/history")
async def change_history(request: web.Request) -> web.Response:
    """Take ``{"clear": true}`` or ``{"delete": [ids]}``."""
    queue = request.app[STATE].queue
    return await _removed(request, queue.forget_all, queue.forget)


async def _removed(request: web.Request, clear: Callable[[], Any], delete: Callable[[Any], Any]) -> web.Response:
    body = await request.json()
    if body.get("clear"):
        clear()
    for prompt_id in body.get("delete", []):
        delete(prompt_id)
    return web.Response()


@routes.get("/history")
async def read_history(request: web.Request) -> web.Response:
    """Answer with finished prompts; ``max_items`` and ``offset`` page through them."""
    max_items = request.query.get("max_items")
    offset = int(request.query.get("offset", -1))
    return web.json_response(request.app[STATE].queue.history(None if max_items is None else int(max_items), offset))


@routes.get("/history/{prompt_id}")
async def read_history_of(request: web.Request) -> web.Response:
    """Answer with one finished prompt, or an empty object."""
    return web.json_response(request.app[STATE].queue.history_of(request.match_info["prompt_id"]))


@routes.post("/interrupt")
async def interrupt(request: web.Request) -> web.Response:
    """End the running prompt: the one of ``prompt_id``, or whichever runs when none is named."""
    state = request.app[STATE]
    try:
        prompt_id = (await request.json()).get("prompt_id")
    except json.JSONDecodeError:
        prompt_id = None
    if prompt_id and not state.queue.is_running(prompt_id):
        log.info("Prompt %s is not currently running, skipping interrupt", prompt_id)
    else:
        log.info("Interrupting %s", f"prompt {prompt_id}" if prompt_id else "whatever runs")
        state.executor.interrupt()
    return web.Response()


@routes.post("/free")
async def free(request: web.Request) -> web.Response:
    """Ask the executor to unload models or drop its cache before the next prompt; answers before it did."""
    body = await request.json()
    for name in ("unload_models", "free_memory"):
        if body.get(name):
            request.app[STATE].queue.set_flag(name)
    return web.Response()


# --- files ------------------------------------------------------------------------------------------------

ACTIVE_TYPES = ("text/html", "text/html-sandboxed", "application/xhtml+xml", "text/javascript", "text/css")
"""Served as plain bytes, so that a browser does not run them."""


@routes.get("/view")
async def view(request: web.Request) -> web.StreamResponse:
    """Answer with a file; 400 for a bad name or type, 403 for a subfolder outside, 404 for one that does not exist."""
    folders, query = request.app[STATE].options.folders, request.query
    if "filename" not in query:
        return web.Response(status=404)
    path = _view_path(folders, query["filename"], query.get("type", "output"), query.get("subfolder"))
    if isinstance(path, int):
        return web.Response(status=path)
    if not os.path.isfile(path):
        return web.Response(status=404)
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    if kind in ACTIVE_TYPES:
        kind = "application/octet-stream"
    name = f'filename="{os.path.basename(path)}"'
    return web.FileResponse(path, headers={"Content-Disposition": name, "Content-Type": kind})


def _view_path(folders: Folders, filename: str, kind: str, subfolder: str | None) -> str | int:
    """Return the path that a query means, or the status that refuses it."""
    filename, directory = folders.split_annotation(filename)
    if not filename or filename.startswith("/") or ".." in filename:
        return 400
    directory = directory or folders.of_type(kind)
    if directory is None:
        return 400
    if subfolder is not None:
        inside = os.path.join(directory, subfolder)
        if not _contains(directory, inside):
            return 403
        directory = inside
    return os.path.join(directory, os.path.basename(filename))


def _contains(directory: str, path: str) -> bool:
    return os.path.commonpath((directory, os.path.abspath(path))) == directory


@routes.post("/upload/image")
async def upload_image(request: web.Request) -> web.Response:
    """Keep the form's ``image`` under its name, else ``name (1)`` and so on, unless the same bytes are there already.

    The answer has the name that it got. Raises for an unknown type, which becomes 500.
    """
    form = await request.post()
    folders = request.app[STATE].options.folders
    upload: Any = form.get("image")
    kind = str(form.get("type", "input"))
    directory = {"input": folders.input, "temp": folders.temp, "output": folders.output}[kind]
    if not upload or not upload.filename:
        return web.Response(status=400)
    name, subfolder = upload.filename, str(form.get("subfolder", ""))
    folder = os.path.join(directory, os.path.normpath(subfolder))
    if not _contains(directory, os.path.join(folder, name)):
        return web.Response(status=400)
    os.makedirs(folder, exist_ok=True)
    stem, suffix = os.path.splitext(name)
    numbers, content = itertools.count(1), upload.file.read()
    while os.path.exists(path := os.path.join(folder, name)) and form.get("overwrite") not in ("true", "1"):
        with open(path, "rb") as file:
            if file.read() == content:
                break
        name = f"{stem} ({next(numbers)}){suffix}"
    else:
        with open(path, "wb") as file:
            file.write(content)
    return web.json_response({"name": name, "subfolder": subfolder, "type": kind})


# --- the server itself ------------------------------------------------------------------------------------


def _system_stats(state: State) -> dict[str, Any]:
    """Return memory, versions and arguments. ``settee_embedded`` marks that this is not the real one."""
    total, free = total_memory(), free_memory()
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


def _object_info(state: State, names: list[str]) -> dict[str, Any]:
    return {name: NODES[name].info(state.options.folders) for name in names if name in NODES}


ANSWERS: dict[str, Callable[[State], Any]] = {
    "/prompt": State.queue_info,
    "/features": State.features,
    "/system_stats": _system_stats,
    "/object_info": lambda state: _object_info(state, [*NODES]),
    "/node_replacements": lambda _: REPLACEMENTS,
    "/models": lambda state: [*state.options.folders.models],
    "/embeddings": lambda state: [
        os.path.splitext(name)[0] for name in state.options.folders.model_files("embeddings")
    ],
    "/extensions": lambda _: [],  # scripts of the editor
}
"""By path, what a GET without parameters answers."""


def _json(answer: Callable[[State], Any]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def get(request: web.Request) -> web.Response:
        return web.json_response(answer(request.app[STATE]))

    return get


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
    folder, folders = request.match_info["folder"], request.app[STATE].options.folders
    return web.json_response(folders.model_files(folder)) if folder in folders.models else web.Response(status=404)
