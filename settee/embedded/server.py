"""The embedded server: its routes together, the event socket, and its life."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import threading
import uuid
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import WSMsgType, web
from PIL import ImageFile

from settee.embedded.broadcast import Client
from settee.embedded.routes import STATE, State, routes
from settee.embedded.server_options import Options
from settee.net.addresses import is_loopback

log = logging.getLogger("settee.embedded")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def serve(options: Options) -> None:
    """Run a server until the process ends."""
    ImageFile.LOAD_TRUNCATED_IMAGES = True  # as ComfyUI, which renders half a PNG as if it were whole
    shutil.rmtree(options.folders.temp, ignore_errors=True)
    options.folders.create()
    state = State(options, asyncio.get_running_loop())
    threading.Thread(target=state.executor.work, name="Thread-1 (prompt_worker)", daemon=True).start()
    runner = web.AppRunner(_app(state), access_log=None)
    await runner.setup()
    for address in options.listen.split(","):
        await web.TCPSite(runner, address, options.port).start()
        log.info("Starting server: http://%s:%s (it has no GUI)", address, options.port)
    await state.hub.publish()


def _app(state: State) -> web.Application:
    """Every route, each also under /api as in ComfyUI."""
    app = web.Application(client_max_size=state.options.max_upload_bytes, middlewares=[same_origin_only])
    app[STATE] = state
    for route in (*routes, web.get("/ws", events)):
        assert isinstance(route, web.RouteDef)
        app.add_routes([route, web.RouteDef(route.method, f"/api{route.path}", route.handler, route.kwargs)])
    app.router.add_get("/{path:.*}", not_found)
    return app


async def not_found(request: web.Request) -> web.Response:
    """Answer as ComfyUI's file server for a path it does not have."""
    response = web.Response(status=404, content_type="application/octet-stream")
    response.enable_chunked_encoding()
    return response


# --- the event socket -------------------------------------------------------------------------------------


async def events(request: web.Request) -> web.StreamResponse:
    """Register a socket under its clientId (or one made here) until it closes."""
    state = request.app[STATE]
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    client_id = request.query.get("clientId") or uuid.uuid4().hex
    client = state.hub.clients[client_id] = Client(socket)
    try:
        await state.hub.send("status", {"status": state.queue_info(), "sid": client_id}, client_id)
        if state.hub.client_id == client_id and state.hub.last_node_id is not None:
            await state.hub.send("executing", {"node": state.hub.last_node_id}, client_id)
        await _listen(state, client_id, client)
    finally:
        # By id, not by socket: when an older socket of the same id closes, the newer one goes deaf. ComfyUI does
        # this too, and callers must be safe from it.
        state.hub.clients.pop(client_id, None)
    return socket


async def _listen(state: State, client_id: str, client: Client) -> None:
    """Read until the client leaves; only a first message of feature_flags means anything."""
    first = True
    async for message in client.socket:
        if message.type is not WSMsgType.TEXT:
            continue
        with contextlib.suppress(json.JSONDecodeError):
            sent = message.json()
            if first and isinstance(sent, dict) and sent.get("type") == "feature_flags":
                client.features = sent.get("data", {})
                await state.hub.send("feature_flags", state.features(), client_id)
            first = False


# --- middlewares ------------------------------------------------------------------------------------------


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
