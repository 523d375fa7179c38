"""GET /jobs/{id} and its events, as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Header, Response
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from settee.doors.agent.answers import Job
from settee.doors.agent.desk import Desk
from settee.doors.agent.openapi import EVENTS
from settee.doors.agent.record import Record

#: A line now and then keeps proxies from closing a quiet stream, seconds.
KEEP_ALIVE_S = 15.0
_EVENTS = "/events"


def add_following(
    app: FastAPI, desk: Desk, refusals: dict[int | str, dict[str, Any]], *, keep_alive_s: float = KEEP_ALIVE_S
) -> None:
    """The routes. A job id may hold slashes: it is all between ``/jobs/`` and the end, or ``/events``."""

    def found(job_id: str) -> Record:
        record = desk.record(job_id)
        if record is None:
            raise HTTPException(404, "this agent has not run such a job lately")
        return record

    @app.get(
        "/jobs/{job_id:path}/events",
        summary="Follow a job: server-sent events, until it has ended",
        response_class=StreamingResponse,
        responses={
            **refusals,
            200: EVENTS,
            204: {"description": "The job has ended, and Last-Event-ID names its last event"},
        },
    )
    async def _events(
        job_id: str,
        last_event_id: str = Header("", max_length=100, description="What was seen last: what came since is sent."),
    ) -> Response:
        record = desk.record(job_id)
        if record is None and desk.record(f"{job_id}{_EVENTS}") is not None:
            return await _job(f"{job_id}{_EVENTS}")  # a job that is called so
        record = found(job_id)
        after = int(last_event_id) if re.fullmatch(r"[0-9]{1,18}", last_event_id) else 0
        if record.is_over and after >= record.last_number:
            return Response(status_code=204)  # which tells a browser to stop asking
        return StreamingResponse(
            stream(record, after, keep_alive_s),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )

    @app.get(
        "/jobs/{job_id:path}",
        summary="How a job stands: state, progress, result",
        responses={**refusals, 200: {"model": Job, "description": "The job, as it stands"}},
    )
    async def _job(job_id: str) -> Response:
        shown = found(job_id).shown()
        # Half a surrogate pair, which UTF-8 has no bytes for, must not cost the answer.
        return Response(json.dumps(shown), media_type="application/json")


async def stream(record: Record, after: int, keep_alive_s: float) -> AsyncIterator[str]:
    """Every event over ``after``, until the job has ended. A slow client misses some: nothing piles up for it."""
    loop, news = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the agent with it
            loop.call_soon_threadsafe(news.set)

    record.follow(wake)
    try:
        while True:
            news.clear()
            for event in record.since(after):
                after = event["id"]
                yield f"id: {after}\nevent: state\ndata: {json.dumps(event['data'])}\n\n"
                if event["is_last"]:
                    return
            try:
                await asyncio.wait_for(news.wait(), keep_alive_s)
            except asyncio.TimeoutError:
                yield ": still here\n\n"
    finally:
        record.unfollow(wake)


__all__ = ["add_following", "stream"]
