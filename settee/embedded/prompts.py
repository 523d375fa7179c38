"""The routes around prompts: /prompt, /queue, /history, /interrupt and /free."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid

from aiohttp import web

from settee.embedded.jobs import is_job_id
from settee.embedded.replacements import replace_classes
from settee.embedded.state import STATE, State, queue_info
from settee.embedded.validation import error, validate

log = logging.getLogger("settee.embedded")

routes = web.RouteTableDef()

_BAD_PROMPT_ID = error(
    "invalid_prompt_id",
    "prompt_id must be a valid UUID",
    "prompt_id must be a UUID string in canonical lowercase hyphenated form; omit it to let the server generate one",
)


@routes.get("/prompt")
async def read_prompt(request: web.Request) -> web.Response:
    """How many prompts wait or run."""
    return web.json_response(queue_info(request.app[STATE].queue))


@routes.post("/prompt")
async def submit(request: web.Request) -> web.Response:
    """Validate a prompt and queue it. What is not a JSON object of the expected kind raises, and so becomes 500."""
    log.info("got prompt")
    state = request.app[STATE]
    if state.faults.take("prompt_500"):
        raise RuntimeError("the fault prompt_500 is on")
    body = await request.json()
    number: float = float(body["number"]) if "number" in body else state.take_number()
    if "prompt" not in body:  # true of an array too, which ComfyUI answers the same way
        message = "No prompt provided"
        return web.json_response({"error": error("no_prompt", message, message), "node_errors": {}}, status=400)
    if "number" not in body and body.get("front"):
        number = -number
    prompt_id = str(uuid.uuid4()) if body.get("prompt_id") is None else body["prompt_id"]
    if not is_job_id(prompt_id):
        return web.json_response({"error": _BAD_PROMPT_ID, "node_errors": {}}, status=400)
    replace_classes(body["prompt"])
    verdict = validate(body["prompt"], body.get("partial_execution_targets"), state.options.folders)
    extra_data = body.get("extra_data", {})
    if "client_id" in body:
        extra_data["client_id"] = body["client_id"]
    if "comfy_usage_source" not in extra_data and "Comfy-Usage-Source" in request.headers:
        extra_data["comfy_usage_source"] = request.headers["Comfy-Usage-Source"]
    if not verdict.ok:
        log.warning("invalid prompt: %s", verdict.error)
        answer = {"error": verdict.error, "node_errors": verdict.node_errors}
        return web.json_response(answer, status=400)
    extra_data["create_time"] = int(time.time() * 1000)
    state.queue.put((number, prompt_id, body["prompt"], extra_data, verdict.outputs))
    state.stats.add("prompts_queued")
    if state.faults.take("prompt_lost_response") and request.transport is not None:
        request.transport.abort()
    accepted = {"prompt_id": prompt_id, "number": number, "node_errors": verdict.node_errors}
    return web.json_response(accepted)


@routes.get("/queue")
async def read_queue(request: web.Request) -> web.Response:
    """Running and waiting prompts, whole."""
    running, waiting = request.app[STATE].queue.snapshot()
    return web.json_response({"queue_running": running, "queue_pending": waiting})


@routes.post("/queue")
async def change_queue(request: web.Request) -> web.Response:
    """``{"clear": true}`` or ``{"delete": [ids]}``; running prompts stay."""
    queue = request.app[STATE].queue
    body = await request.json()
    if body.get("clear"):
        queue.clear()
    for prompt_id in body.get("delete", []):
        queue.delete(prompt_id)
    return web.Response()


@routes.get("/history")
async def read_history(request: web.Request) -> web.Response:
    """Finished prompts; ``max_items`` and ``offset`` page through them."""
    state = request.app[STATE]
    state.stats.add("history_reads")
    max_items = request.query.get("max_items")
    offset = int(request.query.get("offset", -1))
    page = state.queue.history(None if max_items is None else int(max_items), offset)
    return web.json_response(page)


@routes.get("/history/{prompt_id}")
async def read_history_of(request: web.Request) -> web.Response:
    """One finished prompt, or an empty object."""
    state = request.app[STATE]
    state.stats.add("history_reads")
    return web.json_response(state.queue.history_of(request.match_info["prompt_id"]))


@routes.post("/history")
async def change_history(request: web.Request) -> web.Response:
    """``{"clear": true}`` or ``{"delete": [ids]}``."""
    queue = request.app[STATE].queue
    body = await request.json()
    if body.get("clear"):
        queue.forget_all()
    queue.forget(body.get("delete", []))
    return web.Response()


@routes.post("/interrupt")
async def interrupt(request: web.Request) -> web.Response:
    """End the running prompt: the one of ``prompt_id``, or whichever runs when none is named."""
    state = request.app[STATE]
    state.stats.add("interrupts")
    try:
        body = await request.json()
    except json.JSONDecodeError:
        body = {}
    prompt_id = body.get("prompt_id")
    running, _ = state.queue.snapshot()
    if prompt_id and prompt_id not in [item[1] for item in running]:
        log.info("Prompt %s is not currently running, skipping interrupt", prompt_id)
    elif not state.faults.get("ignore_interrupt"):
        log.info("Interrupting %s", f"prompt {prompt_id}" if prompt_id else "whatever runs")
        _interrupt_soon(state, {item[1] for item in running})
    return web.Response()


def _interrupt_soon(state: State, prompt_ids: set[str]) -> None:
    """End what runs now. One that takes its time ends none of the prompts that follow: ComfyUI sets its flag at once,
    and clears it when a prompt begins."""
    late = state.faults.seconds("interrupt_slow")
    if not late:
        state.executor.interrupt()
        return

    def interrupt() -> None:
        running, _ = state.queue.snapshot()
        if prompt_ids & {item[1] for item in running}:
            state.executor.interrupt()

    asyncio.get_running_loop().call_later(late, interrupt)


@routes.post("/free")
async def free(request: web.Request) -> web.Response:
    """Ask the executor to unload models or drop its cache before the next prompt; answers before it did."""
    state = request.app[STATE]
    body = await request.json()
    for name, count in (("unload_models", "unloads"), ("free_memory", "frees")):
        if body.get(name):
            state.queue.set_flag(name, body[name], late=bool(state.faults.get("flags_late")))
            state.stats.add(count)
    return web.Response()
