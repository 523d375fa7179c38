"""Follows one prompt on the worker's ComfyUI, which may end, freeze or stand still before the prompt does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection
from typing import Any

from settee.backends.backend import Limits, Report
from settee.backends.comfy.comfy_client import ComfyDied, NoAnswer
from settee.backends.comfy.process import Server
from settee.backends.comfy.prompts import Prompts
from settee.base.errors import ComfyError, PromptLost
from settee.base.job import Status
from settee.base.settings import Settings
from settee.comfyui.event_socket import EventSocket
from settee.comfyui.follower import Follower
from settee.comfyui.http_api import Queue
from settee.comfyui.workflow import Workflow, own_node


class Watcher(Follower):
    """Raises JobCanceled, JobTimeout, PromptLost (taken out of the queue), ComfyDied (its process ended, froze, was
    restarted or runs nothing), or ComfyError when the history of an ended prompt does not come."""

    #: Cancel and deadline are looked at no less often than this.
    answer_s = 1.0

    def __init__(
        self,
        server: Server,
        socket: EventSocket,
        prompt_id: str,
        graph: Workflow,
        settings: Settings,
        report: Report,
        prompts: Prompts,
        limits: Limits,
        *,
        senders: Collection[str] = (),
    ) -> None:
        history_s = settings.comfy_history_s
        super().__init__(server.client, socket, prompt_id, graph, senders=senders, history_s=history_s)
        self._server, self._client, self._generation = server, server.client, server.generation
        self._settings, self._report, self._prompts = settings, report, prompts
        self._limits, self.deadline, self.cancel = limits, limits.deadline, limits.cancel
        # Since when something has been wrong; None while it is not.
        self._unanswered: float | None = None
        self._waiting: float | None = None

    def check(self) -> None:
        self._limits.check()
        self.check_server()

    def pause(self, seconds: float) -> None:
        self._limits.cancel.wait(min(seconds, max(0.0, self.deadline - time.monotonic())))

    def started(self) -> list[str]:
        """All of them, as one may end unseen while another is followed."""
        give_up = time.monotonic() + self._settings.comfy_unresponsive_s
        while True:
            self.check()
            try:
                return self._prompts.started(self.known[0], self._socket.client_id, self.known)
            except NoAnswer as error:
                if time.monotonic() >= give_up:
                    raise ComfyDied(error.message) from error
                self.pause(0.0 if error.timed_out else 0.2)

    def check_server(self) -> None:
        """Raise ComfyDied when the server that the prompt was submitted to runs it no more."""
        server = self._server
        if server.generation != self._generation or not server.is_running():
            raise ComfyDied("ComfyUI's process ended while it ran the workflow")
        if server.executor_died:
            still_waits = False
            with contextlib.suppress(ComfyError):
                still_waits = self.prompt_id in self._client.queue(timeout_s=2).pending
            # One that still waits for its turn did not end it.
            message = "the thread of ComfyUI that runs prompts ended"
            raise ComfyDied(message, needs_restart=True, is_fatal=not still_waits)

    def progressed(self) -> None:
        now = self.meter
        node_id = own_node(self.graph, now.node_id or "")
        class_type = self.graph[node_id]["class_type"] if node_id in self.graph else None
        node = {"node_id": node_id or None, "node_type": class_type, "value": now.value, "maximum": now.maximum}
        self._report(Status.RUNNING, **node, percent=now.percent)

    def look(self) -> dict[str, Any] | None:
        try:
            entry = super().look()
        except NoAnswer as error:
            now = time.monotonic()
            self._unanswered = self._unanswered or now
            if self._client.is_gone or now - self._unanswered >= self._settings.comfy_unresponsive_s:
                what = "is frozen: it answers nothing" if error.timed_out else "cannot be reached"
                message = f"ComfyUI {what} for {now - self._unanswered:.0f} s"
                raise ComfyDied(message, needs_restart=True) from error
            self.pause(0.0 if error.timed_out else 0.2)
            return None
        self._unanswered = None
        return entry

    def queued(self, queue: Queue) -> None:
        """Raise when nothing will ever run the prompt.

        An executor thread that died leaves a server that answers and queues, and runs nothing (worker_death.json).
        A prompt that runs counts as begun, unless a socket that works never reported so.
        """
        now = time.monotonic()
        if self.prompt_id in queue.running:
            is_stuck = self.gets_events and self.heard and not self.begun and not self.socket_was_lost
        else:
            is_stuck = self._server.is_ours or not queue.running
        self._waiting = (self._waiting or now) if is_stuck else None
        stall_s = self._settings.comfy_stall_s
        if self._waiting is not None and now - self._waiting >= stall_s:
            message = f"ComfyUI took the prompt, but has run nothing for {stall_s:g} s"
            raise ComfyDied(message, needs_restart=True)

    def lost(self) -> ComfyError:
        if self.ended_by_event:
            late_s = self._settings.comfy_history_s
            return ComfyError(
                f"ComfyUI reported the end of the prompt, but its history was not available within {late_s:g} s"
            )
        if self.socket_was_lost or self._unanswered is not None:
            return ComfyDied("ComfyUI was restarted while it ran the workflow")
        return PromptLost("the prompt was deleted from ComfyUI's queue by someone else; send the job again")
