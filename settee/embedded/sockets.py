"""GET /ws: the event socket."""

from __future__ import annotations

import json
import logging
import uuid

from aiohttp import WSMsgType, web

from settee.embedded.broadcast import Client
from settee.embedded.state import STATE, State, queue_info

log = logging.getLogger("settee.embedded")

routes = web.RouteTableDef()


def server_features(state: State) -> dict[str, object]:
    """What GET /features and the answer to a client's feature_flags say."""
    return {
        "supports_preview_metadata": True,
        "supports_model_type_tags": True,
        "max_upload_size": state.options.max_upload_bytes,
        "extension": {"manager": {"supports_v4": True}},
        "node_replacements": True,
        "assets": False,
    }


@routes.get("/ws")
async def events(request: web.Request) -> web.StreamResponse:
    """Register a socket under its clientId (or one made here) until it closes."""
    state = request.app[STATE]
    if state.faults.get("ws_refuse"):
        return web.Response(status=503)
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    client_id = request.query.get("clientId") or uuid.uuid4().hex
    client = Client(socket, request.transport)
    state.hub.clients[client_id] = client
    state.stats.add("sockets_opened")
    state.stats.add("sockets_open")
    try:
        await state.hub.send("status", {"status": queue_info(state.queue), "sid": client_id}, client_id)
        if state.hub.client_id == client_id and state.hub.last_node_id is not None:
            await state.hub.send("executing", {"node": state.hub.last_node_id}, client_id)
        await _listen(state, client_id, client)
    finally:
        # By id, not by socket: when an older socket of the same id closes, the newer one goes deaf. ComfyUI does
        # this too, and callers must be safe from it.
        state.hub.clients.pop(client_id, None)
        state.stats.add("sockets_open", -1)
    return socket


async def _listen(state: State, client_id: str, client: Client) -> None:
    """Read until the client leaves; only a first message of feature_flags means anything."""
    first = True
    async for message in client.socket:
        if message.type is WSMsgType.ERROR:
            log.warning("ws connection closed with exception %s", client.socket.exception())
        if message.type is not WSMsgType.TEXT:
            continue
        try:
            said = json.loads(message.data)
        except json.JSONDecodeError:
            log.warning("Invalid JSON received from client %s", client_id)
            continue
        if first and isinstance(said, dict) and said.get("type") == "feature_flags":
            client.features = said.get("data", {})
            await state.hub.send("feature_flags", server_features(state), client_id)
        first = False
