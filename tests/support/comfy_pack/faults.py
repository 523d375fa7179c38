"""Switches that make the embedded ComfyUI fail in the ways real servers were seen to fail, and counts of what it did.

:func:`install` puts parts that fail in the place of the embedded server's own, in this process. Switches are set at the
start with ``--fault NAME[=VALUE]`` (repeatable) or while it runs with ``POST /settee/faults {"name": value}``, where
null switches one off. ``--fault NAME`` alone means ``true``. ``GET /settee/stats`` answers with the counts.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from aiohttp import web

from settee.embedded import executor, routes, server
from settee.embedded.__main__ import main
from settee.embedded.broadcast import Hub
from settee.embedded.executor import Executor, Run
from settee.embedded.nodes import NODES, image_files
from settee.embedded.nodes.node import Env
from settee.embedded.pending import Item, PromptQueue

FAULTS = {
    "crash_on_prompt": ("N", "the process dies (exit code 9) in the middle of the Nth run from now"),
    "delete_outputs": ("true", "every saved file is removed right after it was written"),
    "die_at_start": ("true", "prints the traceback of a failed import and exits with code 1"),
    "executor_dead": ("true", "prompts are queued, nothing runs, HTTP goes on"),
    "flags_late": ("true", "POST /free takes effect only after the next prompt, as when that is quicker"),
    "history_late": ("seconds", "history appears that much later than executing: null"),
    "history_lost": ("true", "a finished prompt never reaches history"),
    "http_hang": ("prefix", "requests whose path starts with it are never answered (/settee/ is spared)"),
    "ignore_interrupt": ("true", "POST /interrupt answers 200 and does nothing"),
    "interrupt_slow": ("seconds", "an interrupt takes effect that much later"),
    "no_final_message": ("true", "executing: null is never sent"),
    "oom": ("count", "runs end with torch.OutOfMemoryError at the first node they execute"),
    "prompt_500": ("count", "POST /prompt answers 500 and queues nothing"),
    "prompt_lost_response": ("count", "POST /prompt queues the prompt, then drops the connection unanswered"),
    "slow_start": ("seconds", "the server starts listening that much later"),
    "step_slow": ("seconds", "every step of KSampler takes that much longer"),
    "truncate_outputs": ("true", "every saved file is cut to half its length right after it was written"),
    "view_404": ("true", "GET /view answers 404 for everything"),
    "ws_drop_after": ("N", "all sockets are reset after N more messages of runs; once"),
    "ws_refuse": ("true", "new sockets are answered 503"),
    "ws_silent": ("true", "sockets stay open and nothing is sent to them any more"),
}
"""By name: the form of the value, and what happens. A count is used up: true means every time, N the next N times."""

_CRASH_DELAY_SECONDS = 0.05
_DEAD_SECONDS = 0.02


class UnknownFault(ValueError):
    """The name is not in the table, or its value has the wrong form."""


def checked(name: str, value: Any) -> Any:
    """Return the value in the form of its switch (None, False and 0 all mean off); raises UnknownFault."""
    if name not in FAULTS:
        raise UnknownFault(f"no fault called {name!r}; there are: {', '.join(FAULTS)}")
    form, _ = FAULTS[name]
    if isinstance(value, str) and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    if value in (None, False, ""):
        return None
    if (form == "true" and value in (True, "1")) or (form == "count" and value is True):
        return True
    try:
        return {"N": int, "count": int, "seconds": float, "prefix": str}[form](value) or None
    except (KeyError, TypeError, ValueError) as error:
        raise UnknownFault(f"fault {name} cannot be {value!r}") from error


class Faults:
    """The switches of one server. Any thread may read or set them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, Any] = {}

    def set(self, name: str, value: Any) -> None:
        """Switch one on, or off with None; raises UnknownFault."""
        value = checked(name, value)
        with self._lock:
            self._values[name] = value

    def active(self) -> dict[str, Any]:
        """Return the values of those that are on, by name."""
        with self._lock:
            return {name: value for name, value in self._values.items() if value is not None}

    def get(self, name: str) -> Any:
        """Return the value of one switch, None when it is off."""
        return self._values.get(name)

    def seconds(self, name: str) -> float:
        """Return the value of a switch measured in seconds, 0.0 when it is off."""
        return self._values.get(name) or 0.0

    def take(self, name: str) -> bool:
        """Use up one of a count; True when the failure should happen now."""
        return self._count_down(name) is not None

    def is_reached(self, name: str) -> bool:
        """Count one occurrence down; True exactly when it is the Nth, which also switches the fault off."""
        return self._count_down(name) == 0

    def _count_down(self, name: str) -> int | None:
        """Return how many are left after this one, None when it is off; True stays."""
        with self._lock:
            left: int | None = self._values.get(name)
            if left is not None and left is not True:
                left -= 1
                self._values[name] = left or None
            return left


class Stats:
    """Counts of what the server did since it started."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        names = ("prompts_queued", "prompts_executed", "prompts_succeeded", "prompts_failed", "nodes_executed")
        more = ("interrupts", "frees", "unloads", "memory_frees", "cache_drops", "uploads")
        self.counts = dict.fromkeys((*names, *more, "sockets_opened", "sockets_closed"), 0)

    def add(self, name: str) -> None:
        """Count one more."""
        with self._lock:
            self.counts[name] += 1


faults, stats = Faults(), Stats()


# --- the server's parts -----------------------------------------------------------------------------------


class FaultyQueue(PromptQueue):
    """Loses what it is told to lose."""

    hub: FaultyHub
    _late: frozenset[str] = frozenset()

    def wait(self, seconds: float) -> None:
        if faults.get("executor_dead"):
            time.sleep(_DEAD_SECONDS)
        else:
            super().wait(seconds)

    def take(self) -> tuple[Item, int] | None:
        with self._lock:
            taken = None if faults.get("executor_dead") else super().take()
            if taken:
                self._flags |= self._late
                self._late = frozenset()
            return taken

    def done(self, ticket: int, result: dict[str, Any], status: dict[str, Any]) -> None:
        prompt_id = self._running[ticket][1]
        if late := faults.seconds("history_late"):
            self.hub.post_final(prompt_id)
            time.sleep(late)
        ended = {"execution_success": "succeeded", "execution_error": "failed"}.get(status["messages"][-1][0])
        with self._lock:
            super().done(ticket, result, status)
            for each in ("executed", *([ended] if ended else ())):
                stats.add(f"prompts_{each}")
            if faults.get("history_lost"):
                self.forget(prompt_id)

    def set_flag(self, name: str) -> None:
        stats.add({"unload_models": "unloads", "free_memory": "frees"}[name])
        if faults.get("flags_late"):
            self._late |= {name}
        else:
            super().set_flag(name)

    def take_flags(self) -> set[str]:
        flags = super().take_flags()
        for name, is_counted in (("memory_frees", flags), ("cache_drops", "free_memory" in flags)):
            if is_counted:
                stats.add(name)
        return flags


class FaultyHub(Hub):
    """Sends less than it is given."""

    _ended: str | None = None
    """The prompt whose final message was sent before its time."""

    def post(self, event: Any, data: Any, client_id: Any) -> None:
        if event == "executing" and data["node"] is None:
            is_sent, self._ended = data["prompt_id"] == self._ended, None
            if is_sent or faults.get("no_final_message"):
                return
        super().post(event, data, client_id)

    def post_final(self, prompt_id: str) -> None:
        if self.client_id is not None:
            self.post("executing", {"node": None, "prompt_id": prompt_id}, self.client_id)
        self._ended = prompt_id

    async def publish(self) -> None:
        while True:
            event, data, client_id = await self._outbox.get()
            await self.send(event, data, client_id)
            if event != "status" and faults.is_reached("ws_drop_after"):
                for client in list(self.clients.values()):
                    client.socket._req.transport.abort()  # without a closing handshake

    async def send(self, event: Any, data: Any, client_id: Any) -> None:
        if event == "status" and "sid" in data:
            stats.add("sockets_opened")
        if not faults.get("ws_silent"):
            await super().send(event, data, client_id)


class FaultyExecutor(Executor):
    """Interrupts late or never; and queues prompts as nodes of some packs do."""

    running: FaultyExecutor

    def __init__(self, queue: FaultyQueue, hub: FaultyHub, env: Env) -> None:
        super().__init__(queue, hub, env)
        queue.hub = hub
        FaultyExecutor.running = self
        self._item: tuple[float, Any, list[str]] = (0.0, {}, [])

    def interrupt(self) -> None:
        """One that takes its time ends none of the prompts that follow: ComfyUI sets its flag at once, and clears it
        when a prompt begins."""
        running, _ = self._queue.snapshot()

        def interrupt_if_still_running() -> None:
            if any(self._queue.is_running(item[1]) for item in running):
                super(FaultyExecutor, self).interrupt()

        if late := faults.seconds("interrupt_slow"):
            timer = threading.Timer(late, interrupt_if_still_running)
            timer.daemon = True
            timer.start()
        elif not faults.get("ignore_interrupt"):
            super().interrupt()

    def _work_on(self, item: Item, ticket: int) -> None:
        self._item = (-ticket - 1.0, *item[3:])
        super()._work_on(item, ticket)

    def enqueue(self, prompt: dict[str, Any], is_followed: bool) -> None:
        """Queue another prompt ahead of all others; ``is_followed``: its events go where those of the running one
        do."""
        number, extra_data, outputs = self._item
        self._queue.put((number, str(uuid.uuid4()), prompt, dict(extra_data) if is_followed else {}, outputs))

    def send(self, picture: Any) -> None:
        """Send a picture over the socket, without metadata, to the client that submitted the prompt."""
        self._hub.post(picture, None, self._hub.client_id)


class FaultyRun(Run):
    """Ends the process, or its prompt."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._crashes = faults.is_reached("crash_on_prompt")

    def run_node(self, node_id: str) -> None:
        super().run_node(node_id)
        if self._crashes:
            exit_soon()

    def _execute(self, node_id: str) -> Any:
        self.env.check_interrupted()
        if faults.take("oom"):
            raise out_of_memory()
        stats.add("nodes_executed")
        return super()._execute(node_id)


@web.middleware
async def spoil(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
    """Fail requests as asked, count them, and answer those about faults and counts."""
    asked = f"{request.method} {request.path.removeprefix('/api')}"
    if asked == "GET /settee/stats":
        return web.json_response(stats.counts)
    if request.path == "/settee/faults":
        try:
            for name, value in (await request.json() if request.method == "POST" else {}).items():
                faults.set(name, value)
        except UnknownFault as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response(faults.active())
    if (prefix := faults.get("http_hang")) and request.path.startswith(prefix):
        await asyncio.Event().wait()
    if asked == "GET /ws" and faults.get("ws_refuse"):
        return web.Response(status=503)
    if asked.endswith(" /view") and faults.get("view_404"):
        return web.Response(status=404)
    if asked == "POST /prompt" and faults.take("prompt_500"):
        raise RuntimeError("the fault prompt_500 is on")
    if counted := {"POST /interrupt": "interrupts", "POST /upload/image": "uploads"}.get(asked):
        stats.add(counted)
    try:
        response = await handler(request)
    finally:
        if asked == "GET /ws":
            stats.add("sockets_closed")
    if asked == "POST /prompt" and response.status == 200:
        stats.add("prompts_queued")
        if faults.take("prompt_lost_response") and request.transport is not None:
            request.transport.abort()
    return response


def install() -> None:
    """Put these parts in the place of the server's own."""
    routes.PromptQueue, routes.Hub, routes.Executor = FaultyQueue, FaultyHub, FaultyExecutor
    executor.Run = FaultyRun
    app, write, ksampler = server._app, image_files.write, NODES["KSampler"]

    def spoiled_app(*args: Any) -> web.Application:
        made = app(*args)
        made.middlewares.append(spoil)
        return made

    def spoiled_write(slot: Any, *args: Any) -> dict[str, Any]:
        entry = write(slot, *args)
        path = os.path.join(slot.folder, entry["filename"])
        if faults.get("truncate_outputs"):
            os.truncate(path, os.path.getsize(path) // 2)
        if faults.get("delete_outputs"):
            os.unlink(path)
        return entry

    def slow_ksampler(env: Env, **inputs: Any) -> Any:
        def report(*step: Any) -> None:
            time.sleep(faults.seconds("step_slow"))
            env.report(*step)

        return ksampler.function(replace(env, report=report), **inputs)

    server._app, image_files.write = spoiled_app, spoiled_write
    NODES["KSampler"] = replace(ksampler, function=slow_ksampler)


def run(argv: Sequence[str]) -> int:
    """Run ``python -m settee.embedded`` with these faults."""
    arguments = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    arguments.add_argument("--fault", action="append", default=[], metavar="NAME[=VALUE]")
    given, others = arguments.parse_known_args(argv)
    install()
    try:
        for text in given.fault:
            name, separator, value = text.partition("=")
            faults.set(name, value if separator else True)
    except UnknownFault as error:
        arguments.error(str(error))
    if faults.get("die_at_start"):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    time.sleep(faults.seconds("slow_start"))
    return main(others)


# --- failures that nodes share ----------------------------------------------------------------------------


class OutOfMemoryError(RuntimeError):
    """Reported under the name of PyTorch's exception."""


OutOfMemoryError.__module__ = "torch"


def out_of_memory() -> OutOfMemoryError:
    """Return an exception that reads like CUDA's, with ComfyUI's hint."""
    return OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 15.99 GiB of which "
        "1.23 GiB is free.\nThe GPU has no memory left for this workflow: a smaller picture or batch needs less."
    )


def exit_soon() -> None:
    """End the process as a crash would, once the messages sent so far are on their way."""
    time.sleep(_CRASH_DELAY_SECONDS)
    os._exit(9)
