"""/api/jobs: the queue and history as one list of jobs, and their cancel."""

from __future__ import annotations

import uuid
from typing import Any

from aiohttp import web

from settee.embedded.pending import Item
from settee.embedded.state import STATE, State

routes = web.RouteTableDef()

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
    """A page of the jobs with one of the statuses asked for, the newest first."""
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
    """One job, with its outputs and graph once it has ended."""
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
    running, _ = state.queue.snapshot()
    if job_id not in [item[1] for item in running]:
        return state.queue.delete(job_id)
    state.stats.add("interrupts")
    if not state.faults.get("ignore_interrupt"):
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
