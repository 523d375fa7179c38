"""Follows one prompt to its end.

ComfyUI's history and queue decide how a prompt stands. The event socket only tells early: its last message can be
lost, it falls silent without closing, and `executing: null` follows errors as well as successes. So the watcher
wakes for every event, and looks at history and queue once a second whatever the socket says.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from settee.backends.comfy.event_socket import EventSocket, SocketLost
from settee.backends.comfy.http_api import Client, NoAnswer
from settee.base.errors import ComfyError, ComfyUnavailable, JobCanceled, JobTimeout, PromptLost
from settee.base.job import Cancel
from settee.comfyui.history import mapping, saving_nodes
from settee.comfyui.messages import Event, ImageEvent, Meter, Report
from settee.comfyui.workflow import Workflow

log = logging.getLogger(__name__)

#: Seconds between two looks at history and queue.
TRUTH_INTERVAL_S = 1.0
#: Longest wait for one answer while watching: cancel and deadline are looked at no less often than this.
ANSWER_TIMEOUT_S = 1.0
#: A prompt that neither history nor queue knows counts as gone after this (history fills within 8 ms).
LOST_AFTER_S = 3.0


class ComfyDied(ComfyUnavailable):
    """ComfyUI went away while it ran the prompt."""

    #: Whether its process, if it still runs, is good for nothing any more.
    needs_restart = False
    #: Whether the prompt itself is to blame, so that it must not run again.
    is_fatal = False
    #: The node that ran last, where that is known.
    node_id: str | None = None


class ComfyStalled(ComfyDied):
    """ComfyUI answers, but runs nothing any more."""

    needs_restart = True


@dataclass
class Limits:
    """Seconds; see the settings of the same names."""

    unresponsive_s: float
    stall_s: float
    history_s: float


class Watcher:
    """Waits for one prompt. :meth:`wait` returns its history entry, or raises how it was lost."""

    def __init__(
        self,
        client: Client,
        socket: EventSocket,
        prompt_id: str,
        workflow: Workflow,
        *,
        limits: Limits,
        check_server: Callable[[], None],
        owns_queue: bool,
        on_report: Callable[[Report], None],
        on_image: Callable[[ImageEvent], None],
        may_send: Collection[str] = (),
        is_told: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``may_send``: nodes whose outputs may be pictures that are sent after history is stored, and nowhere else.
        ``is_told``: False for a prompt that another one started, whose events may go to someone else."""
        self._is_told = is_told
        self._client = client
        self._socket = socket
        self._prompt_id = prompt_id
        self._limits = limits
        self._check_server = check_server
        self._may_send = may_send
        self._entry: dict[str, Any] | None = None
        self._last_event = clock()
        self._owns_queue = owns_queue
        self._on_report = on_report
        self._on_image = on_image
        self._clock = clock
        self._meter = Meter(workflow)
        #: Whether the socket said anything since the prompt was submitted, and whether it said that it began.
        self._heard = False
        self._begun = False
        self._ended = False
        self._socket_was_lost = False
        # One that was started may have ended while another was followed: no event will say so.
        self._next_truth = clock() + (TRUTH_INTERVAL_S if is_told else 0.0)
        # Since when (clock) something has been wrong; None while it is not.
        self._unanswered: float | None = None
        self._absent: float | None = None
        self._waiting: float | None = None

    @property
    def ended_by_event(self) -> bool:
        """Whether the socket told the end: it is alive and may serve the next job."""
        return self._ended

    def wait(self, cancel: Cancel, deadline: float) -> dict[str, Any]:
        """The history entry of the prompt once it has ended.

        Raises JobCanceled, JobTimeout, PromptLost (taken out of the queue), ComfyDied (its process ended, froze or
        was restarted), ComfyStalled, or ComfyError when the history of an ended prompt does not come.
        """
        while True:
            if cancel.is_set():
                raise JobCanceled(cancel.reason or None)
            now = self._clock()
            if now >= deadline:
                raise JobTimeout
            self._check_server()
            if self._ended or now >= self._next_truth:
                self._entry = self._truth(cancel, deadline) or self._entry
                if self._entry is not None and not self._more_to_come(self._entry):
                    return self._entry
                continue
            for event in self._events(min(self._next_truth, deadline), cancel):
                self._take(event)
                if self.ended_by_event:
                    break

    @property
    def others_wait(self) -> bool:
        """False when the socket said that nothing more waits or runs, once this prompt had ended."""
        return not self._ended or self._socket.remaining != 0

    @property
    def node_id(self) -> str | None:
        """The node that ran last, as the socket told."""
        return self._meter.report.node_id

    @property
    def lost_messages(self) -> bool:
        """Whether something that was sent over the socket may not have arrived."""
        return self._is_told and (self._socket_was_lost or not self._ended)

    def _more_to_come(self, entry: Mapping[str, Any]) -> bool:
        return (
            self._is_told
            and not self._ended
            and bool(set(self._may_send) - saving_nodes(mapping(entry.get("outputs"))))
            and self._socket.is_open
            and self._clock() - self._last_event < self._limits.history_s
        )

    # --- what the socket says -----------------------------------------------------------------------------

    def _events(self, until: float, cancel: Cancel) -> Iterator[Event | ImageEvent]:
        if self._socket.is_open:
            try:
                yield from self._socket.receive(until, cancel)
                return
            except SocketLost as error:
                # Ask at once: a socket that closes is how a server's death shows first.
                log.info("the event socket closed (%s); history and queue decide", error)
                self._socket_was_lost = True
                self._next_truth = 0.0
                return
        cancel.wait(max(0.0, until - self._clock()))

    def _take(self, event: Event | ImageEvent) -> None:
        self._last_event = self._clock()
        if isinstance(event, ImageEvent):
            node_id = event.node_id or self._meter.report.node_id
            self._on_image(replace(event, node_id=node_id))
            return
        self._heard = True
        told = event.data.get("prompt_id")
        # After a reconnect the server repeats `executing` without a prompt id (reconnect_midrun.json).
        if told != self._prompt_id and not (told is None and event.type == "executing" and event.data.get("node")):
            return
        self._begun = True
        if event.type == "executing" and event.data.get("node") is None:
            self._ended = True
        elif self._meter.take(event):
            self._on_report(self._meter.report)

    # --- what is true --------------------------------------------------------------------------------------

    def _truth(self, cancel: Cancel, deadline: float) -> dict[str, Any] | None:
        self._next_truth = self._clock() + TRUTH_INTERVAL_S
        try:
            entry = self._history(cancel, deadline)
            if entry is None:
                self._place_in_queue()
        except NoAnswer as error:
            self._note_silence(error)
            cancel.wait(0.0 if error.timed_out else 0.2)
            return None
        self._unanswered = None
        if entry is None and not self._socket.is_open:
            self._reopen_socket()
        return entry

    def _history(self, cancel: Cancel, deadline: float) -> dict[str, Any] | None:
        """The entry if it is there. After `executing: null` it must come, if late: wait for it with backoff."""
        pause, give_up = 0.001, self._clock() + self._limits.history_s
        while True:
            entry = self._client.history(self._prompt_id, timeout_s=ANSWER_TIMEOUT_S)
            if entry is not None or not self._ended:
                return entry
            if self._clock() >= give_up:
                limit = f"{self._limits.history_s:g} s"
                raise ComfyError(f"ComfyUI said that the prompt ended, but its history did not come within {limit}")
            if cancel.wait(pause) or self._clock() >= deadline:
                return None
            self._check_server()
            pause = min(pause * 2, 0.25)

    def _place_in_queue(self) -> None:
        """Look for the prompt in the queue; raise when it is lost or will never run."""
        queue = self._client.queue(timeout_s=ANSWER_TIMEOUT_S)
        now = self._clock()
        if self._prompt_id in queue.running or self._prompt_id in queue.pending:
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
        A prompt that runs counts as begun, unless a socket that works never told so.
        """
        if runs:
            stuck = self._is_told and self._heard and not self._begun and not self._socket_was_lost
        else:
            stuck = self._owns_queue or not any_runs
        if not stuck:
            self._waiting = None
            return
        self._waiting = self._waiting or now
        if now - self._waiting >= self._limits.stall_s:
            raise ComfyStalled(f"ComfyUI took the prompt, but has run nothing for {self._limits.stall_s:g} s")

    def _note_silence(self, error: NoAnswer) -> None:
        now = self._clock()
        self._unanswered = self._unanswered or now
        if self._client.is_gone or now - self._unanswered >= self._limits.unresponsive_s:
            what = "is frozen: it answers nothing" if error.timed_out else "cannot be reached"
            died = ComfyDied(f"ComfyUI {what} for {now - self._unanswered:.0f} s")
            died.needs_restart = True
            raise died from error

    def _reopen_socket(self) -> None:
        """For progress only: whatever it missed, history tells."""
        try:
            self._socket.reconnect(timeout_s=ANSWER_TIMEOUT_S)
        except SocketLost:
            log.debug("the event socket could not be opened again yet")
