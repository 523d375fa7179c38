"""What the event socket of a bare ComfyUI reports, read by a thread: how far each job is, and pictures that come no
other way.

Never the truth about a job: the socket may break, or fall silent, and its last message be lost.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from settee.comfyui.event_socket import EventSocket, SocketLost
from settee.comfyui.messages import Event, ImageEvent, Meter, Report
from settee.comfyui.node_registry import NodeRegistry
from settee.comfyui.workflow import Workflow
from settee.net.retry import Backoff

log = logging.getLogger(__name__)

#: Ours begin like this: no other connection, such as that of an editor in a browser, is taken over.
CLIENT_PREFIX = "settee-"
#: How long a new connection and its greeting may take, seconds.
CONNECT_S = 5.0
#: After this long without a message the server is pinged, and after as long again it counts as gone.
SILENCE_S = 15.0
#: Pauses before attempts to connect again.
BACKOFF = Backoff(first_s=0.5, longest_s=5.0)


@dataclass
class Heard:
    """The socket's reports about one job so far."""

    meter: Meter = field(repr=False, default_factory=lambda: Meter({}))
    #: Nodes whose pictures are outputs.
    senders: set[str] = field(default_factory=set)
    #: True if nothing can have been missed.
    is_whole: bool = False
    #: When the last message about it came, by the clock.
    last: float = 0.0
    has_begun: bool = False
    has_ended: bool = False
    #: True unless no other prompt waited or ran when it had ended.
    had_others: bool = True
    pictures: list[ImageEvent] = field(repr=False, default_factory=list)

    @property
    def report(self) -> Report:
        return self.meter.report

    @property
    def surely_runs(self) -> bool:
        return self.has_begun and not self.has_ended and self.is_whole


class Events:
    """One connection for all jobs that one target sends, opened with the first.

    ``base_url`` is http(s)://…. It is opened again when it breaks, while there are jobs to watch.
    """

    def __init__(self, base_url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._url, self._clock = base_url, clock
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._socket: EventSocket | None = None
        #: None while the first attempt is under way.
        self._is_open: bool | None = None
        self._jobs: dict[str, Heard] = {}
        #: The job that runs, by the last messages: pictures do not name theirs.
        self._running: str | None = None
        self.client_id = CLIENT_PREFIX + uuid.uuid4().hex

    # --- for the target, from any thread ---------------------------------------------------------------------

    def watch(self, job_id: str, workflow: Workflow, registry: NodeRegistry, client_id: str | None = None) -> None:
        """Note what is reported about a job that is not sent yet.

        Waits for the first attempt to connect; others go on behind. ``client_id``: of another process that sent the
        job, and has ended or will receive nothing more. It is used where it is one of ours, and this process has not
        begun to listen for jobs of its own.
        """
        with self._changed:
            if client_id is not None:
                if self._thread is not None or not client_id.startswith(CLIENT_PREFIX) or not client_id.isascii():
                    return
                self.client_id = client_id
            job = Heard(Meter(workflow), registry.picture_senders(workflow), last=self._clock())
            self._jobs[job_id] = job
            if self._thread is None and not self._closed.is_set():
                self._is_open = None
                self._thread = threading.Thread(target=self._run, name="settee-comfyui-events", daemon=True)
                self._thread.start()
            self._changed.wait_for(lambda: self._is_open is not None or self._closed.is_set(), CONNECT_S)
            job.is_whole = client_id is None and self._is_open is True

    def heard(self, job_id: str) -> Heard | None:
        """Return what was reported about a job until now; None when it is not watched."""
        with self._changed:
            job = self._jobs.get(job_id)
            return None if job is None else replace(job)

    def forget(self, job_id: str) -> None:
        """Stop watching a job."""
        with self._changed:
            self._jobs.pop(job_id, None)

    def close(self) -> None:
        """Close it, and end the thread."""
        self._closed.set()
        with self._changed:
            thread, socket = self._thread, self._socket
            self._changed.notify_all()
        if socket is not None:
            socket.shut()
        if thread is not None:
            # It may be waiting for a server that is frozen, and dies with the process.
            thread.join(1.0)

    # --- the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        failures = 0
        while True:
            socket = EventSocket(self._url, self.client_id)
            try:
                socket.connect(CONNECT_S)
                failures = 0
                self._note(socket)
                self._listen(socket)
            except SocketLost as error:
                log.info("no event socket (%s): progress is not known, how jobs end is", error)
            finally:
                # Before the next is opened: ComfyUI forgets the newer of two with one client id.
                socket.close()
                self._note(None)
            failures += 1
            if self._closed.wait(BACKOFF.pause_s(failures)) or self._is_idle():
                return

    def _is_idle(self) -> bool:
        """Return True if there is nothing to listen for, so that the thread ends; the next job starts another."""
        with self._changed:
            if not self._jobs:
                self._thread = None
            return not self._jobs

    def _note(self, socket: EventSocket | None) -> None:
        with self._changed:
            self._socket, self._is_open = socket, socket is not None
            if socket is None:
                self._running = None
                for job in self._jobs.values():
                    job.is_whole = job.is_whole and job.has_ended
            self._changed.notify_all()

    def _listen(self, socket: EventSocket) -> None:
        """Take what comes until the end. Raises SocketLost."""
        was_silent = False
        while not self._closed.is_set():
            seen = socket.frames
            for event in socket.receive(time.monotonic() + SILENCE_S):
                with self._changed:
                    self._take(event, socket.remaining)
            is_silent = socket.frames == seen
            if is_silent and was_silent:
                raise SocketLost("it does not answer a ping")
            if is_silent:
                # ComfyUI sends nothing while it has nothing to do, nor does a connection that died on the way.
                socket.ping()
            was_silent = is_silent

    def _take(self, event: Event | ImageEvent, remaining: int | None) -> None:
        if isinstance(event, ImageEvent):
            job = self._jobs.get(self._running or "")
            node_id = event.node_id or (job.report.node_id if job is not None else None)
            if job is not None and node_id in job.senders and not event.is_preview:
                job.pictures.append(replace(event, node_id=node_id))
            return
        prompt_id = event.data.get("prompt_id")
        if prompt_id is None and event.type == "executing" and event.data.get("node") is not None:
            # After a reconnect the server repeats it without a prompt id (reconnect_midrun.json).
            prompt_id = self._running or (next(iter(self._jobs)) if len(self._jobs) == 1 else None)
        job = self._jobs.get(prompt_id) if isinstance(prompt_id, str) else None
        if job is None:
            return
        self._running, job.has_begun, job.last = prompt_id, True, self._clock()
        if event.type == "executing" and event.data.get("node") is None:
            self._running, job.has_ended, job.had_others = None, True, remaining != 0
        else:
            job.meter.take(event)
