"""A job on a bare ComfyUI, followed to what came of it by a thread of its own."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from settee.base.errors import JobCanceled, JobTimeout, PromptLost, SetteeError
from settee.base.threads import Call
from settee.client.client_errors import JobStopped, NetworkError
from settee.client.targets import Answer, Status
from settee.client.targets.comfy_api import Wire
from settee.client.targets.comfy_job import Asked, belongs_to, execution_ms, failed, output
from settee.client.targets.json_http import awaited
from settee.comfyui.event_socket import PICTURE_NODE, EventSocket, SocketLost
from settee.comfyui.follower import Follower, Meter, started
from settee.comfyui.history import Place, failure_of, mapping
from settee.comfyui.http_api import Queue
from settee.comfyui.node_registry import NodeRegistry
from settee.comfyui.outputs import Collector

log = logging.getLogger(__name__)

#: Our client ids begin like this: no other connection, such as that of an editor in a browser, is taken over.
CLIENT_PREFIX = "settee-"
#: How long a new connection and its greeting may take, seconds.
CONNECT_S = 5.0
#: The longest pause between two looks at a job that waits for its turn, seconds.
SLOWEST_S = 5.0
#: A queue in which nothing runs for this long is reported, seconds.
STALL_S = 15.0
#: How long history may come after the end, and pictures after history, seconds.
PICTURES_S = 10.0
#: How long :meth:`Run.answer` waits for the first that is known of a job, seconds.
LOOK_S = 10.0
#: The newest entries of history in which the prompts that a job's nodes started are looked for.
RECENT = 100


class Run(Follower):
    """A job that was sent: :meth:`start` to follow it, and ask for its :meth:`answer`."""

    #: The queue, which holds all graphs, is not asked while the socket reports so often that the job runs, seconds.
    fresh_s = 10.0

    def __init__(
        self,
        wire: Wire,
        registry: NodeRegistry,
        job_id: str,
        asked: Asked,
        cancel_job: Callable[[str], None],
        client_id: str | None = None,
    ) -> None:
        """``client_id``: of another process that sent the job, and has ended or receives nothing more. Its events are
        received in its place where the id is one of ours."""
        is_ours = client_id is not None and client_id.startswith(CLIENT_PREFIX) and client_id.isascii()
        self.socket = EventSocket(wire.base_url, client_id if is_ours else CLIENT_PREFIX + uuid.uuid4().hex)
        senders = registry.picture_senders(asked.workflow)
        super().__init__(wire, self.socket, job_id, asked.workflow, senders=senders, history_s=PICTURES_S)
        self.id, self.registry, self._wire, self._asked, self._cancel_job = job_id, registry, wire, asked, cancel_job
        # Until it runs, if it sends no pictures: with hundreds of jobs a process has no descriptors left.
        self.needs_socket = bool(senders)
        self._is_late = False
        self._closed = threading.Event()
        #: Set once anything is known about it.
        self._is_known = threading.Event()
        self._queue_position: int | None = None
        self._meter: Meter | None = None
        #: Since when, by time.monotonic(), it has run; and since when nothing has.
        self._runs_since: float | None = None
        self._idle_since: float | None = None
        self._call: Call[Answer] | None = None
        self._starting = threading.Lock()

    def connect(self) -> None:
        """Open its socket before it is sent, as ComfyUI does not repeat messages."""
        try:
            self.socket.connect(CONNECT_S)
        except SocketLost as error:
            log.info("no event socket (%s): progress is not known, how the job ends is", error)

    def start(self) -> Call[Answer]:
        self._next_look = 0.0
        self.ended.outputs.clear()
        self._call = Call(self._follow, name="settee-comfyui-job")
        return self._call

    def close(self) -> None:
        """Ask for it no more; it goes on in ComfyUI."""
        self._closed.set()
        if self._call is None:
            self.socket.close()
        else:  # by the thread that reads it
            self.socket.shut()

    def answer(self) -> Answer:
        """Return how it stands, or what came of it. Raises what following it raised; asked again, it is followed on."""
        with self._starting:
            call = self._call or self.start()
        awaited(self._is_known, LOOK_S)
        if call.ended.is_set():
            try:
                return call.result()
            except NetworkError:
                if self._call is call:
                    self._call = None
                raise
        meter = self._meter or Meter({})
        if self._runs_since is None:
            waits: dict[str, Any] = {}
            idle_s = time.monotonic() - (self._idle_since or math.inf)
            if idle_s >= STALL_S:
                # An executor thread that died leaves a server that answers, and runs nothing (worker_death.json).
                waits = {"message": f"ComfyUI has run nothing for {idle_s:.0f} s: see its log"}
            return Answer(self.id, Status.IN_QUEUE, queue_position=self._queue_position, progress=waits)
        node_type = mapping(self.graph.get(meter.node_id or "")).get("class_type")
        steps = {"node": meter.node_id, "node_type": node_type, "step": meter.value, "max": meter.maximum}
        found = {"phase": "running", "percent": None if self._meter is None else meter.percent, **steps}
        progress = {key: value for key, value in found.items() if value is not None}
        return Answer(self.id, Status.IN_PROGRESS, progress=progress)

    # --- in its thread ---------------------------------------------------------------------------------------

    def _follow(self) -> Answer:
        try:
            return Answer(self.id, Status.COMPLETED, output=self._result())
        except SetteeError as error:
            if self.is_canceled and isinstance(error, (PromptLost, JobCanceled)):
                error = JobCanceled("the job was canceled")
                if self._is_late:
                    error = JobTimeout(f"the job ran into its time limit of {self._asked.timeout_s:g} s")
            return failed(self.id, error)
        finally:
            self.socket.close()
            self._is_known.set()

    def _result(self) -> dict[str, Any]:
        """Return what its prompts made, at their ends. Raises SetteeError, NetworkError."""
        took_ms: float | None = None
        for entry in self.entries():
            status = mapping(entry.get("status"))
            failure = failure_of(status, self.graph, self.registry, self._asked.extra_data, is_freed=False)
            if isinstance(failure, PromptLost) or (failure is None and self.is_canceled and self.known[1:]):
                raise JobCanceled("the job was interrupted in ComfyUI")
            if failure is not None:
                raise failure
            took_ms = execution_ms(status) if self.prompt_id == self.id else took_ms
        file_at = functools.cache(self._wire.file_at)

        class Served(Collector):
            def exists(self, place: Place) -> bool:
                return file_at(place) is not None

            def may_have_sent(self, node_id: str) -> bool:
                # A job that is resumed has lost messages: not each of its nodes that are silent fails it.
                return bool(self.graph[node_id]["class_type"] == PICTURE_NODE)

        artifacts, warnings = Served(self.ended, self.graph, self.registry).collect(self._asked.include_temp)
        return output(artifacts, file_at, took_ms, warnings)

    def started(self) -> list[str]:
        return started(self._wire, self.known, belongs_to(self.id), RECENT)

    def check(self) -> None:
        if self._closed.is_set():
            raise JobStopped(f"stopped following job {self.id}", job_id=self.id)
        limit_s, since = self._asked.timeout_s, self._runs_since
        self.deadline = math.inf if limit_s is None or since is None or self._is_late else since + limit_s
        if time.monotonic() >= self.deadline:
            self._cancel_job(self.id)
            self._is_late = True  # only then: one that cannot be asked for now is followed on later

    def pause(self, seconds: float) -> None:
        self._closed.wait(min(seconds, max(0.0, self.deadline - time.monotonic())))

    def progressed(self) -> None:
        self._runs_since = self._runs_since or time.monotonic()
        if self.prompt_id == self.id:
            self._meter = self.meter
        self._is_known.set()

    def queued(self, queue: Queue) -> None:
        now = time.monotonic()
        if self.prompt_id in queue.running:
            self._runs_since, self.needs_socket = self._runs_since or now, True
        else:
            self._queue_position = len(queue.running) + queue.pending.index(self.prompt_id)
            self.interval_s = min(SLOWEST_S, self.interval_s * 1.5)
        self._idle_since = None if queue.running else self._idle_since or now
        with contextlib.suppress(SocketLost):
            self.socket.ping()
        self._is_known.set()

    def lost(self) -> PromptLost:
        return PromptLost(
            "the job is gone: it was deleted from ComfyUI's queue, or ComfyUI was restarted; send it again"
        )
