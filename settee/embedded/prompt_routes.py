"""Prompts over HTTP: queued, shown, canceled and deleted; /api/jobs is the same seen as jobs."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable
from typing import Any

from aiohttp import web

from settee.embedded.information import replace_classes
from settee.embedded.pending import Item
from settee.embedded.state import STATE, State
from settee.embedded.validation import Error, error, validate

log = logging.getLogger("settee.embedded")

routes = web.RouteTableDef()

_BAD_PROMPT_ID = error(
    "invalid_prompt_id",
    "prompt_id must be a valid UUID",
    "prompt_id must be a UUID string in canonical lowercase hyphenated form; omit it to let the server generate one",
)


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
    if not is_job_id(prompt_id):
        return _refused(_BAD_PROMPT_ID, {})
    replace_classes(body["prompt"])
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
    state = request.app[STATE]
    body = await request.json()
    for name in ("unload_models", "free_memory"):
        if body.get(name):
            state.queue.set_flag(name)
    return web.Response()


STATUSES = ("pending", "in_progress", "completed", "failed", "cancelled")
_ENDS = {
    "execution_success": "completed",
    "execution_error": "failed",
    "execution_interrupted": "cancelled",
}
_PREVIEWABLE = ("images", "video", "audio", "3d")


def is_job_id(value: Any) -> bool:
    """Return True for a UUID in its canonical spelling: ComfyUI compares ids as they are."""
    try:
        return isinstance(value, str) and str(uuid.UUID(value)) == value
    except ValueError:
        return False


@routes.get("/api/jobs")
async def read_jobs(request: web.Request) -> web.Response:
    """Answer with a page of the jobs with one of the statuses asked for, the newest first."""
    asked = [each.strip().lower() for each in request.query.get("status", "").split(",") if each.strip()]
    unknown = [each for each in asked if each not in STATUSES]
    if unknown:
        message = f"Invalid status value(s): {', '.join(unknown)}. Valid values: {', '.join(STATUSES)}"
        return web.json_response({"error": message}, status=400)
    limit = int(request.query["limit"]) if "limit" in request.query else None
    offset = int(request.query.get("offset", 0))
    jobs = [job for job in _jobs(request.app[STATE]) if job["status"] in (asked or STATUSES)]
    jobs.sort(key=lambda job: job["create_time"], reverse=True)
    page = jobs[offset : None if limit is None else offset + limit]
    pages = {"offset": offset, "limit": limit, "total": len(jobs), "has_more": offset + len(page) < len(jobs)}
    return web.json_response({"jobs": page, "pagination": pages})


@routes.get("/api/jobs/{job_id}")
async def read_job(request: web.Request) -> web.Response:
    """Answer with one job, with its outputs and graph once it has ended."""
    state, job_id = request.app[STATE], request.match_info["job_id"]
    job = next((each for each in _jobs(state) if each["id"] == job_id), None)
    if job is None:
        return web.json_response({"error": "Job not found"}, status=404)
    entry = state.queue.history_of(job_id).get(job_id)
    if entry is not None:
        _, _, prompt, extra_data, _ = entry["prompt"]
        job |= {"outputs": entry["outputs"], "execution_status": entry["status"]}
        job["workflow"] = {"prompt": prompt, "extra_data": extra_data}
    return web.json_response(job)


@routes.post("/api/jobs/{job_id}/cancel")
async def cancel_job(request: web.Request) -> web.Response:
    """End a job that waits or runs; any other id has no effect."""
    return web.json_response({"cancelled": _cancel(request.app[STATE], request.match_info["job_id"])})


@routes.post("/api/jobs/cancel")
async def cancel_jobs(request: web.Request) -> web.Response:
    """End several jobs."""
    ids = (await request.json()).get("job_ids")
    if not isinstance(ids, list):
        return web.json_response({"error": "job_ids must be a list"}, status=400)
    invalid = [each if isinstance(each, str) else repr(each) for each in ids if not is_job_id(each)]
    if invalid:
        return web.json_response({"error": "job_ids contains invalid id(s)", "invalid_ids": invalid}, status=400)
    cancelled = [_cancel(request.app[STATE], each) for each in ids]
    return web.json_response({"cancelled": any(cancelled)})


def _cancel(state: State, job_id: str) -> bool:
    if not state.queue.is_running(job_id):
        return state.queue.delete(job_id)
    state.executor.interrupt()
    return True


def _jobs(state: State) -> list[dict[str, Any]]:
    running, waiting = state.queue.snapshot()
    ended = [_ended(entry) for entry in state.queue.history(None, 0).values()]
    return [*ended, *(_job(item, "in_progress") for item in running), *(_job(item, "pending") for item in waiting)]


def _job(item: Item, status: str) -> dict[str, Any]:
    number, prompt_id, _, extra_data, _ = item
    job = {"id": prompt_id, "status": status, "priority": number, "create_time": extra_data["create_time"]}
    return {**job, "outputs_count": 0, "previewable_outputs_count": 0}


def _ended(entry: dict[str, Any]) -> dict[str, Any]:
    messages = entry["status"]["messages"]
    end, data = messages[-1]
    job = _job(entry["prompt"], _ENDS[end])
    job |= {"execution_start_time": messages[0][1]["timestamp"], "execution_end_time": data["timestamp"]}
    if end == "execution_error":
        job["execution_error"] = data
    made = [
        {**item, "nodeId": node_id, "mediaType": key}
        for node_id, shown in entry["outputs"].items()
        for key, items in shown.items()
        for item in items
        if isinstance(item, dict)
    ]
    shown = [item for item in made if item["mediaType"] in _PREVIEWABLE]
    job |= {"outputs_count": len(made), "previewable_outputs_count": len(shown)}
    if shown:
        job["preview_output"] = next((item for item in shown if item.get("type") == "output"), shown[0])
    return job
