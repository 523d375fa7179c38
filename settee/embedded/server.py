"""The embedded server: its routes together, its middlewares, and its life."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import web

from settee.embedded import file_routes, information, prompt_routes, sockets, switches
from settee.embedded.server_options import Options
from settee.embedded.state import STATE, State, build_state
from settee.net.addresses import is_loopback

log = logging.getLogger("settee.embedded")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def serve(options: Options) -> None:
    """Run a server until the process ends."""
    asyncio.run(_serve(options))


async def _serve(options: Options) -> None:
    state = build_state(options, asyncio.get_running_loop())
    threading.Thread(target=state.executor.work, name="Thread-1 (prompt_worker)", daemon=True).start()
    runner = web.AppRunner(build_app(state), access_log=None)
    await runner.setup()
    for address in options.listen.split(","):
        await web.TCPSite(runner, address, options.port).start()
        log.info("Starting server: http://%s:%s (it has no GUI)", address, options.port)
    await state.hub.publish()


def build_app(state: State) -> web.Application:
    """Every route, each also under /api as in ComfyUI."""
    app = web.Application(client_max_size=state.options.max_upload_bytes, middlewares=[same_origin_only, hang_if_asked])
    app[STATE] = state
    app.add_routes(switches.routes)
    for table in (prompt_routes.routes, file_routes.routes, information.routes, sockets.routes):
        app.add_routes(table)
        app.add_routes(
            web.RouteDef(route.method, "/api" + route.path, route.handler, route.kwargs)
            for route in table
            if isinstance(route, web.RouteDef) and not route.path.startswith("/api/")
        )
    app.router.add_get("/{path:.*}", not_found)
    return app


async def not_found(request: web.Request) -> web.Response:
    """What ComfyUI's file server answers for a path it does not have."""
    response = web.Response(status=404, content_type="application/octet-stream")
    response.enable_chunked_encoding()
    return response


@web.middleware
async def same_origin_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer 403 to pages of other sites that a browser lets reach a server on its own machine."""
    origin = urlsplit(request.headers.get("Origin", "")).netloc.lower()
    host = request.headers.get("Host", "").lower()
    if origin and host and is_loopback(urlsplit(f"//{host}").hostname or "") and not _same_host(host, origin):
        log.warning("WARNING: request with non matching host and origin %s != %s, returning 403", host, origin)
        return web.Response(status=403)
    return await handler(request)


def _same_host(host: str, origin: str) -> bool:
    """Ports count only when both are given."""
    one, other = urlsplit(f"//{host}"), urlsplit(f"//{origin}")
    if one.port is None or other.port is None:
        return one.hostname == other.hostname
    return host == origin


@web.middleware
async def hang_if_asked(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The fault http_hang: hold the request until its client gives up."""
    prefix = request.app[STATE].faults.get("http_hang")
    if prefix and request.path.startswith(prefix) and not request.path.startswith("/settee/"):
        await asyncio.Event().wait()
    return await handler(request)
