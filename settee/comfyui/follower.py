"""Follows a job's prompts to their ends: its own, and those that its nodes start. For worker and client.

ComfyUI's history and queue decide how a prompt stands. The event socket only reports early: its last message can be
lost, it falls silent without closing, and `executing: null` follows errors as well as successes. So a follower wakes
for every event, and looks at history and queue again and again whatever the socket reports.
"""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from itertools import dropwhile
from typing import TYPE_CHECKING, Any

from settee.comfyui.event_socket import Event, EventSocket, ImageEvent, SocketLost
from settee.comfyui.history import mapping, saving_nodes
from settee.comfyui.http_api import HttpApi, Queue
from settee.comfyui.outputs import Ended
from settee.comfyui.workflow import Workflow

if TYPE_CHECKING:
    from settee.base.job import Cancel

log = logging.getLogger(__name__)

#: A prompt that neither history nor queue knows counts as gone after this, seconds (history fills within 8 ms).
LOST_AFTER_S = 3.0
#: How long a socket may take to open again, seconds.
_RECONNECT_S = 1.0


class Meter:
    """The progress of a prompt by its events: every node counts the same, the running one by its steps."""

    def __init__(self, workflow: Workflow) -> None:
        self._total = max(1, len(workflow))
        self._done: set[str] = set()
        self.node_id: str | None = None
        self.value: int | None = None
        self.maximum: int | None = None
        #: Of the whole graph; it never falls.
        self.percent = 0.0

    def take(self, event: Event) -> bool:
        """Note an event of the prompt; True when there is something to report."""
        data = event.data
        if event.type == "execution_cached":
            nodes = data.get("nodes")
            self._done.update(str(node) for node in (nodes if isinstance(nodes, list) else ()))
        elif event.type == "executing" and data.get("node") is not None:
            if self.node_id is not None:
                self._done.add(self.node_id)
            self.node_id, self.value, self.maximum = str(data["node"]), None, None
        elif event.type == "progress" and (maximum := _count(data.get("max"))):
            self.node_id = str(data["node"]) if data.get("node") is not None else self.node_id
            self.value, self.maximum = _count(data.get("value")), maximum
        elif event.type == "execution_success":
            self.percent = 100.0
            return True
        else:
            return False
        part = self.value / self.maximum if self.value and self.maximum else 0.0
        percent = 100.0 * min(len(self._done) + min(part, 1.0), self._total) / self._total
        self.percent = max(self.percent, round(percent, 1))
        return True


def _count(value: Any) -> int:
    """A custom node may report anything as its progress; what is not a number counts as 0."""
    return max(0, int(value)) if isinstance(value, (int, float)) and math.isfinite(value) else 0


class Follower(ABC):
    """Follows one job; what it lacks, its user decides."""

    #: Seconds between two looks at history and queue.
    interval_s = 1.0
    #: Longest wait for one answer, seconds; None: as the API has it.
    answer_s: float | None = None
    #: While a socket that was never lost has reported within so many seconds, the queue is not asked.
    fresh_s = 0.0
    #: False while a socket that is not open is not missed.
    needs_socket = True
    #: No event is waited for beyond this (time.monotonic()), nor once the token is set.
    deadline: float = math.inf
    cancel: Cancel | None = None
    #: True once ComfyUI was told to end it.
    is_canceled = False

    def __init__(
        self,
        api: HttpApi,
        socket: EventSocket,
        prompt_id: str,
        graph: Workflow,
        *,
        senders: Collection[str],
        history_s: float,
    ) -> None:
        """``senders``: nodes whose outputs may be pictures that are sent after history is stored, and nowhere else.
        ``history_s``: how long history may come after the end, and pictures after history."""
        self._api, self._socket, self.graph = api, socket, graph
        self._senders, self._history_s = set(senders), history_s
        #: The job's prompts: its own first.
        self.known = [prompt_id]
        #: What came of those that have ended.
        self.ended = Ended()
        self._begin(prompt_id)

    def _begin(self, prompt_id: str) -> None:
        """Turn to a prompt."""
        #: The one that is followed.
        self.prompt_id = prompt_id
        # Events of one that another one started may go to someone else.
        self.gets_events = prompt_id == self.known[0]
        self.meter = Meter(self.graph)
        #: True once the socket reported the end: it is alive and may serve the next job.
        self.ended_by_event = False
        self.socket_was_lost = False
        #: True once the socket reported anything since the prompt was submitted, and once it reported its begin.
        self.heard = self.begun = False
        #: When the last event came that is of it.
        self._last_event = now = time.monotonic()
        # One that was started may have ended while another was followed: no event will report it.
        self._next_look = now + (self.interval_s if self.gets_events else 0.0)
        #: Since when neither queue nor history has had it.
        self._absent: float | None = None

    # --- its user's ---------------------------------------------------------------------------------------

    @abstractmethod
    def check(self) -> None:
        """Raise when the wait must not go on."""

    @abstractmethod
    def pause(self, seconds: float) -> None:
        """Wait; shorter when :meth:`check` would raise."""

    @abstractmethod
    def queued(self, queue: Queue) -> None:
        """Take the queue, which has the prompt. May raise."""

    @abstractmethod
    def lost(self) -> Exception:
        """Return the error for a prompt that ComfyUI does not have any more; or, if ``ended_by_event``, for one whose
        history did not come."""

    @abstractmethod
    def started(self) -> list[str]:
        """Return the ids of the prompts beyond those ``known`` that the job's nodes started."""

    @abstractmethod
    def progressed(self) -> None:
        """Take the news of ``meter``."""

    # --- to the end ---------------------------------------------------------------------------------------

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield the history entry of each of the job's prompts at its end. Raises what the user's methods raise."""
        for prompt_id in self.known:  # which grows
            if prompt_id != self.prompt_id:
                self._begin(prompt_id)
            entry = self._end()
            self.ended.outputs.append(mapping(entry.get("outputs")))
            if self.gets_events:
                is_whole = self.ended_by_event and self._socket.pristine and not self.socket_was_lost
                self.ended.lost_messages = not is_whole
            yield entry
            # Unless the socket reported that nothing more waits or runs, once this prompt had ended.
            if not self.ended_by_event or self._socket.remaining != 0:
                self.known += self.started()

    def _end(self) -> dict[str, Any]:
        """Return the history entry of the prompt once it has ended."""
        entry: dict[str, Any] | None = None
        while True:
            self.check()
            if self.ended_by_event or time.monotonic() >= self._next_look:
                entry = self.look() or entry
                if entry is not None and not self._more_to_come(entry):
                    return entry
                continue
            self._listen()

    def _more_to_come(self, entry: Mapping[str, Any]) -> bool:
        """Return True if pictures may still come: they are sent after history is stored, before the last message."""
        return (
            self.gets_events
            and not self.ended_by_event
            and bool(self._senders - saving_nodes(mapping(entry.get("outputs"))))
            and self._socket.is_open
            and time.monotonic() - self._last_event < self._history_s
        )

    # --- what the socket reports --------------------------------------------------------------------------

    def _listen(self) -> None:
        """Take events until the prompt's last, or the next look."""
        until = min(self._next_look, self.deadline)
        if not self._socket.is_open:
            self.pause(max(0.0, until - time.monotonic()))
            return
        try:
            for event in self._socket.receive(until, self.cancel):
                self._take(event)
                if self.ended_by_event:
                    return
        except SocketLost as error:
            # Ask at once: a socket that closes is how a server's death shows first.
            log.info("the event socket closed (%s); history and queue decide", error)
            self.socket_was_lost = True
            self._next_look = 0.0

    def _take(self, event: Event | ImageEvent) -> None:
        if isinstance(event, ImageEvent):
            self._last_event = time.monotonic()
            node_id = event.node_id or self.meter.node_id
            # A node that another one expanded into is not in the graph.
            if not event.is_preview and (node_id in self._senders or node_id not in self.graph):
                self.ended.pictures.append(replace(event, node_id=node_id))
            return
        self.heard = True
        named = event.data.get("prompt_id")
        # After a reconnect the server repeats `executing` without a prompt id (reconnect_midrun.json).
        if named != self.prompt_id and not (named is None and event.type == "executing" and event.data.get("node")):
            return
        self.begun, self._last_event = True, time.monotonic()
        if event.type == "executing" and event.data.get("node") is None:
            self.ended_by_event = True
        elif self.meter.take(event):
            self.progressed()

    # --- what is true -------------------------------------------------------------------------------------

    def look(self) -> dict[str, Any] | None:
        """Look at history and queue; return the history entry if it is there. Raises what requests raise."""
        self._next_look = time.monotonic() + self.interval_s
        entry = self._history()
        is_whole = self.begun and not self.socket_was_lost
        if entry is None and not (is_whole and time.monotonic() - self._last_event < self.fresh_s):
            self._look_at_queue()
        if entry is None and self.needs_socket and not self._socket.is_open:
            # For progress only: whatever it missed is in history.
            try:
                self._socket.reconnect(timeout_s=_RECONNECT_S)
            except SocketLost:
                log.debug("the event socket could not be opened again yet")
        return entry

    def _history(self) -> dict[str, Any] | None:
        """Return the entry if it is there. After `executing: null` it must come, if late: wait with backoff."""
        pause_s, give_up = 0.001, time.monotonic() + self._history_s
        while True:
            entry = self._api.history(self.prompt_id, timeout_s=self.answer_s)
            if entry is not None or not self.ended_by_event:
                return entry
            if time.monotonic() >= give_up:
                raise self.lost()
            self.pause(pause_s)
            self.check()
            pause_s = min(pause_s * 2, 0.25)

    def _look_at_queue(self) -> None:
        """Look for the prompt in the queue; raise when it is lost or will never run."""
        queue = self._api.queue(timeout_s=self.answer_s)
        now = time.monotonic()
        if self.prompt_id in queue.items:
            self._absent = None
            self.queued(queue)
            return
        # It may have ended between the two questions: ask again before believing that it is gone.
        if self._api.history(self.prompt_id, timeout_s=self.answer_s) is not None:
            self._next_look = now
            return
        self._absent = self._absent or now
        # Look again soon, not in a second.
        self._next_look = now + 0.25
        if self.is_canceled or now - self._absent >= LOST_AFTER_S:
            raise self.lost()


def started(
    api: HttpApi, known: Collection[str], belongs: Callable[[Any], bool], newest: int, timeout_s: float | None = None
) -> list[str]:
    """Return the ids of the prompts beyond those ``known`` that belong to the same job: those that ended first.

    ``belongs`` gets a prompt as ComfyUI has it, ``[number, id, prompt, extra_data, …]``, or anything else that is
    there. Of history, so many of the ``newest`` entries are looked at. Raises what requests raise.
    """
    # The queue first: what leaves it meanwhile is in history then.
    queue = api.queue(timeout_s=timeout_s).items
    recent = api.recent(newest, timeout_s=timeout_s)
    # History is in the order of ends: what ended before the first one, an earlier job's nodes had started.
    since = dropwhile(lambda each: each not in known, recent) if recent.keys() & set(known) else recent
    items = {each: mapping(recent[each]).get("prompt") for each in since} | dict(queue)
    return [each for each, item in items.items() if each not in known and belongs(item)]
