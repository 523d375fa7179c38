"""Follows one prompt to its end.

ComfyUI's history and queue decide how a prompt stands. The event socket only reports early: its last message can be
lost, it falls silent without closing, and `executing: null` follows errors as well as successes. So the watcher
wakes for every event, and looks at history and queue once a second whatever the socket reports.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from settee.backends.backend import Limits, Notify
from settee.backends.comfy.comfy_client import NoAnswer
from settee.backends.comfy.process import Server
from settee.base.errors import ComfyError, ComfyUnavailable, PromptLost
from settee.base.settings import Settings
from settee.comfyui.event_socket import EventSocket, SocketLost
from settee.comfyui.history import mapping, saving_nodes
from settee.comfyui.messages import Event, ImageEvent, Meter
from settee.comfyui.workflow import Workflow, own_node

log = logging.getLogger(__name__)

#: Seconds between two looks at history and queue.
TRUTH_INTERVAL_S = 1.0
#: Longest wait for one answer while watching: cancel and deadline are looked at no less often than this.
ANSWER_TIMEOUT_S = 1.0
#: A prompt that neither history nor queue knows counts as gone after this (history fills within 8 ms).
LOST_AFTER_S = 3.0


class ComfyDied(ComfyUnavailable):
    """ComfyUI went away while it ran the prompt.

    ``needs_restart``: its process, should it still run, is of no use any more. ``is_fatal``: the prompt itself is to
    blame, so that it must not run again.
    """

    #: The node that ran last, where that is known.
    node_id: str | None = None

    def __init__(self, message: str | None = None, *, needs_restart: bool = False, is_fatal: bool = False) -> None:
        super().__init__(message)
        self.needs_restart, self.is_fatal = needs_restart, is_fatal


class Watcher:
    """Waits for one prompt. :meth:`wait` returns its history entry, or raises how it was lost."""

    def __init__(
        self,
        server: Server,
        socket: EventSocket,
        prompt_id: str,
        graph: Workflow,
        settings: Settings,
        notify: Notify,
        *,
        senders: Collection[str] = (),
        gets_events: bool = True,
    ) -> None:
        """``senders``: nodes whose outputs may be pictures that are sent after history is stored, and nowhere else.
        ``gets_events``: False for a prompt that another one started, whose events may go to someone else."""
        self._server, self._client, self._generation = server, server.client, server.generation
        self._socket, self._prompt_id, self._settings, self._notify = socket, prompt_id, settings, notify
        self._graph, self._senders, self._gets_events = graph, set(senders), gets_events
        self._meter = Meter(graph)
        #: What came over the socket, previews apart.
        self.pictures: list[ImageEvent] = []
        self._entry: dict[str, Any] | None = None
        #: True once the socket reported the end: it is alive and may serve the next job.
        self.ended_by_event = False
        self._socket_was_lost = False
        now = time.monotonic()
        self._last_event = now
        #: True once the socket reported anything since the prompt was submitted, and once it reported its begin.
        self._heard = self._begun = False
        # One that was started may have ended while another was followed: no event will report it.
        self._next_truth = now + (TRUTH_INTERVAL_S if gets_events else 0.0)
        # Since when something has been wrong; None while it is not.
        self._unanswered: float | None = None
        self._absent: float | None = None
        self._waiting: float | None = None

    def wait(self, limits: Limits) -> dict[str, Any]:
        """Return the history entry of the prompt once it has ended.

        Raises JobCanceled, JobTimeout, PromptLost (taken out of the queue), ComfyDied (its process ended, froze, was
        restarted or runs nothing), or ComfyError when the history of an ended prompt does not come.
        """
        while True:
            limits.check()
            self.check_server()
            if self.ended_by_event or time.monotonic() >= self._next_truth:
                self._entry = self._truth(limits) or self._entry
                if self._entry is not None and not self._more_to_come(self._entry):
                    return self._entry
                continue
            for event in self._events(min(self._next_truth, limits.deadline), limits):
                if self._take(event):
                    break

    @property
    def others_wait(self) -> bool:
        """False when the socket reported that nothing more waits or runs, once this prompt had ended."""
        return not self.ended_by_event or self._socket.remaining != 0

    @property
    def node_id(self) -> str | None:
        """The node that ran last, as the socket reported."""
        return self._meter.report.node_id

    @property
    def lost_messages(self) -> bool:
        """True if something that was sent over the socket may not have arrived."""
        return self._gets_events and (self._socket_was_lost or not self.ended_by_event)

    def check_server(self) -> None:
        """Raise ComfyDied when the server that the prompt was submitted to runs it no more."""
        server = self._server
        if server.generation != self._generation or not server.is_running():
            raise ComfyDied("ComfyUI's process ended while it ran the workflow")
        if server.executor_died:
            still_waits = False
            with contextlib.suppress(ComfyError):
                still_waits = self._prompt_id in self._client.queue(timeout_s=2).pending
            # One that still waits for its turn did not end it.
            message = "the thread of ComfyUI that runs prompts ended"
            raise ComfyDied(message, needs_restart=True, is_fatal=not still_waits)

    def _more_to_come(self, entry: Mapping[str, Any]) -> bool:
        return (
            self._gets_events
            and not self.ended_by_event
            and bool(self._senders - saving_nodes(mapping(entry.get("outputs"))))
            and self._socket.is_open
            and time.monotonic() - self._last_event < self._settings.comfy_history_s
        )

    # --- what the socket reports --------------------------------------------------------------------------

    def _events(self, until: float, limits: Limits) -> Iterator[Event | ImageEvent]:
        if not self._socket.is_open:
            limits.cancel.wait(max(0.0, until - time.monotonic()))
            return
        try:
            yield from self._socket.receive(until, limits.cancel)
        except SocketLost as error:
            # Ask at once: a socket that closes is how a server's death shows first.
            log.info("the event socket closed (%s); history and queue decide", error)
            self._socket_was_lost = True
            self._next_truth = 0.0

    def _take(self, event: Event | ImageEvent) -> bool:
        """Note an event; True when it is the prompt's last."""
        self._last_event = time.monotonic()
        if isinstance(event, ImageEvent):
            node_id = event.node_id or self.node_id
            # A node that another one expanded into is not in the graph.
            if not event.is_preview and (node_id in self._senders or node_id not in self._graph):
                self.pictures.append(replace(event, node_id=node_id))
            return False
        self._heard = True
        named = event.data.get("prompt_id")
        # After a reconnect the server repeats `executing` without a prompt id (reconnect_midrun.json).
        if named != self._prompt_id and not (named is None and event.type == "executing" and event.data.get("node")):
            return False
        self._begun = True
        if event.type == "executing" and event.data.get("node") is None:
            self.ended_by_event = True
        elif self._meter.take(event):
            report = self._meter.report
            node_id = own_node(self._graph, report.node_id or "")
            class_type = self._graph[node_id]["class_type"] if node_id in self._graph else None
            self._notify.progress(node_id or None, class_type, report.value, report.maximum, report.percent)
        return self.ended_by_event

    # --- what is true --------------------------------------------------------------------------------------

    def _truth(self, limits: Limits) -> dict[str, Any] | None:
        self._next_truth = time.monotonic() + TRUTH_INTERVAL_S
        try:
            entry = self._history(limits)
            if entry is None:
                self._place_in_queue()
        except NoAnswer as error:
            self._note_silence(error)
            limits.cancel.wait(0.0 if error.timed_out else 0.2)
            return None
        self._unanswered = None
        if entry is None and not self._socket.is_open:
            # For progress only: whatever it missed is in history.
            try:
                self._socket.reconnect(timeout_s=ANSWER_TIMEOUT_S)
            except SocketLost:
                log.debug("the event socket could not be opened again yet")
        return entry

    def _history(self, limits: Limits) -> dict[str, Any] | None:
        """Return the entry if it is there. After `executing: null` it must come, if late: wait with backoff."""
        pause, limit_s = 0.001, self._settings.comfy_history_s
        give_up = time.monotonic() + limit_s
        while True:
            entry = self._client.history(self._prompt_id, timeout_s=ANSWER_TIMEOUT_S)
            if entry is not None or not self.ended_by_event:
                return entry
            if time.monotonic() >= give_up:
                raise ComfyError(
                    f"ComfyUI reported the end of the prompt, but its history was not available within {limit_s:g} s"
                )
            if limits.cancel.wait(pause) or time.monotonic() >= limits.deadline:
                return None
            self.check_server()
            pause = min(pause * 2, 0.25)

    def _place_in_queue(self) -> None:
        """Look for the prompt in the queue; raise when it is lost or will never run."""
        queue = self._client.queue(timeout_s=ANSWER_TIMEOUT_S)
        now = time.monotonic()
        if self._prompt_id in queue.items:
            self._absent = None
            self._check_executor(self._prompt_id in queue.running, bool(queue.running), now)
            return
        # It may have ended between the two questions: ask again before believing that it is gone.
        if self._client.history(self._prompt_id, timeout_s=ANSWER_TIMEOUT_S) is not None:
            self._next_truth = now
            return
        self._absent = self._absent or now
        # Look again soon, not in a second.
        self._next_truth = now + 0.25
        if now - self._absent < LOST_AFTER_S:
            return
        if self._socket_was_lost or self._unanswered is not None:
            raise ComfyDied("ComfyUI was restarted while it ran the workflow")
        raise PromptLost("the prompt was deleted from ComfyUI's queue by someone else; send the job again")

    def _check_executor(self, runs: bool, any_runs: bool, now: float) -> None:
        """Raise when nothing will ever run the prompt.

        An executor thread that died leaves a server that answers and queues, and runs nothing (worker_death.json).
        A prompt that runs counts as begun, unless a socket that works never reported so.
        """
        if runs:
            is_stuck = self._gets_events and self._heard and not self._begun and not self._socket_was_lost
        else:
            is_stuck = self._server.is_ours or not any_runs
        self._waiting = (self._waiting or now) if is_stuck else None
        stall_s = self._settings.comfy_stall_s
        if self._waiting is not None and now - self._waiting >= stall_s:
            message = f"ComfyUI took the prompt, but has run nothing for {stall_s:g} s"
            raise ComfyDied(message, needs_restart=True)

    def _note_silence(self, error: NoAnswer) -> None:
        now = time.monotonic()
        self._unanswered = self._unanswered or now
        if self._client.is_gone or now - self._unanswered >= self._settings.comfy_unresponsive_s:
            what = "is frozen: it answers nothing" if error.timed_out else "cannot be reached"
            raise ComfyDied(f"ComfyUI {what} for {now - self._unanswered:.0f} s", needs_restart=True) from error
