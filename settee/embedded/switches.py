"""The routes only this server has: faults to switch while it runs, and counts of what it did."""

from __future__ import annotations

from aiohttp import web

from settee.embedded.faults import UnknownFault
from settee.embedded.state import STATE

routes = web.RouteTableDef()


@routes.get("/settee/faults")
async def read_faults(request: web.Request) -> web.Response:
    """The faults that are on, with their values."""
    return web.json_response(request.app[STATE].faults.active())


@routes.post("/settee/faults")
async def change_faults(request: web.Request) -> web.Response:
    """``{"name": value}``, null for off; 400 with a reason when a name or value is wrong."""
    state = request.app[STATE]
    try:
        for name, value in (await request.json()).items():
            state.faults.set(name, value)
    except UnknownFault as error:
        return web.json_response({"error": str(error)}, status=400)
    state.queue.wake()
    return web.json_response(state.faults.active())


@routes.get("/settee/stats")
async def read_stats(request: web.Request) -> web.Response:
    """Counts since the start."""
    return web.json_response(request.app[STATE].stats.as_dict())
