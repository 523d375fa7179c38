"""The event socket of a bare ComfyUI, read by a thread: how far each job is, and pictures that come no other way.

Never the truth about a job: the socket may break, or fall silent, and its last message be lost.
"""

from __future__ import annotations

import contextlib
import logging
import socket as sockets
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from settee.comfyui.messages import FEATURES, Event, ImageEvent, Meter, image_event, remaining, text_event
from settee.comfyui.workflow import Workflow
from settee.net.retry import Backoff

if TYPE_CHECKING:
    import websocket

log = logging.getLogger(__name__)

#: Ours begin like this: no other connection, such as that of an editor in a browser, is taken over.
CLIENT_PREFIX = "settee-"
#: How long a new connection and its greeting may take, seconds.
CONNECT_S = 5.0
#: After this long without a message the server is pinged, and after as long again it counts as gone.
SILENCE_S = 15.0
#: Pauses between attempts to connect.
BACKOFF = Backoff(first_s=0.5, longest_s=5.0)


class Lost(Exception):
    """The connection is closed. What runs goes on."""


@dataclass(frozen=True)
class Heard:
    """The socket's reports about one job so far."""

    node_id: str | None = None
    value: int | None = None
    maximum: int | None = None
    percent: float = 0.0
    has_begun: bool = False
    has_ended: bool = False
    #: Whether other prompts waited or ran when it had ended.
    had_others: bool = True
    #: Whether nothing can have been missed.
    is_whole: bool = False
    #: Seconds since the last word about it.
    silent_s: float = float("inf")


@dataclass
class _Watched:
    meter: Meter
    #: Nodes whose pictures are outputs.
    sending: frozenset[str]
    is_whole: bool
    last: float
    has_begun: bool = False
    has_ended: bool = False
    had_others: bool = True
    pictures: list[ImageEvent] = field(default_factory=list)


class Events:
    """One connection for all jobs that one target sends, opened with the first.

    ``base_url`` is http(s)://…. It is opened again when it breaks, while there are jobs to watch: the old one closed
    first, as ComfyUI forgets the newer of two with one client id when the older closes (reconnect_takeover.json).
    """

    def __init__(self, base_url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        scheme, rest = base_url.split("://", 1)
        self._url = f"{'wss' if scheme == 'https' else 'ws'}://{rest}/ws"
        self._clock = clock
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._ws: websocket.WebSocket | None = None
        #: None while the first attempt is under way.
        self._is_open: bool | None = None
        self._jobs: dict[str, _Watched] = {}
        #: The job that runs, by the last messages: pictures do not name theirs.
        self._running: str | None = None
        #: How many prompts wait or run, by the server's last word.
        self._remaining: int | None = None
        self.client_id = CLIENT_PREFIX + uuid.uuid4().hex

    # --- for the target, from any thread ---------------------------------------------------------------------

    def watch(self, job_id: str, workflow: Workflow, sending: frozenset[str], *, is_new: bool = True) -> None:
        """Note from now on what is reported about a job; ``sending``: nodes whose pictures are outputs.

        ``is_new``: it has not been sent yet, so that no message about it is missed.
        """
        with self._changed:
            self._jobs[job_id] = _Watched(Meter(workflow), sending, is_new and self._is_open is True, self._clock())

    def open(self, timeout_s: float = CONNECT_S) -> bool:
        """Return True if the server listens. Waits for the first attempt only, at most so long; others go on behind."""
        with self._changed:
            if self._closed.is_set():
                return False
            if self._thread is None:
                self._is_open = None
                self._thread = threading.Thread(target=self._run, name="settee-comfyui-events", daemon=True)
                self._thread.start()
            self._changed.wait_for(lambda: self._is_open is not None, timeout_s)
            return self._is_open is True

    def adopt(self, client_id: str, job_id: str, workflow: Workflow, sending: frozenset[str]) -> None:
        """Listen for a job that another process of ours sent, which has ended or will receive nothing more.

        Only where this one has not begun to listen for jobs of its own, and only for a client id of ours.
        """
        with self._changed:
            if self._thread is not None or not client_id.startswith(CLIENT_PREFIX) or not client_id.isascii():
                return
            self.client_id = client_id
        self.watch(job_id, workflow, sending, is_new=False)
        self.open(timeout_s=1.0)

    def heard(self, job_id: str) -> Heard | None:
        """Return what was reported about a job; None when it is not watched."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is None:
                return None
            report = job.meter.report
            return Heard(
                report.node_id,
                report.value,
                report.maximum,
                report.percent,
                job.has_begun,
                job.has_ended,
                job.had_others,
                job.is_whole,
                self._clock() - job.last,
            )

    def forget(self, job_id: str) -> list[ImageEvent]:
        """Stop watching a job. Returns its pictures."""
        with self._changed:
            job = self._jobs.pop(job_id, None)
            return job.pictures if job is not None else []

    def close(self) -> None:
        """Close it, and end the thread."""
        self._closed.set()
        with self._changed:
            thread, sock = self._thread, self._ws.sock if self._ws is not None else None
            self._changed.notify_all()
        if sock is not None:
            # Closing alone would not wake the thread that reads.
            with contextlib.suppress(OSError):
                sock.shutdown(sockets.SHUT_RDWR)
        if thread is not None:
            # It may be waiting for a server that is frozen, and dies with the process.
            thread.join(1.0)

    # --- the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        failures = 0
        while True:
            try:
                ws = self._connect()
            except Lost as error:
                log.info("no event socket (%s): progress is not known, how jobs end is", error)
                self._note(None)
                failures += 1
                if self._closed.wait(BACKOFF.pause_s(failures)) or self._is_idle():
                    return
                continue
            failures = 0
            self._note(ws)
            try:
                while not self._closed.is_set():
                    self._take(self._read(ws))
            except Lost as error:
                if not self._closed.is_set():
                    log.info("the event socket closed: %s", error)
            finally:
                ws.shutdown()  # type: ignore[no-untyped-call]  # the library has no annotation here
                self._note(None)
            if self._closed.is_set() or self._is_idle():
                return

    def _is_idle(self) -> bool:
        """Return True if there is nothing to listen for, so that the thread ends; the next job starts another."""
        with self._changed:
            if self._jobs:
                return False
            self._thread = None
            return True

    def _note(self, ws: websocket.WebSocket | None) -> None:
        with self._changed:
            self._ws, self._is_open = ws, ws is not None
            if ws is None:
                self._running = None
                for job in self._jobs.values():
                    job.is_whole = job.is_whole and job.has_ended
            self._changed.notify_all()

    def _connect(self) -> websocket.WebSocket:
        """Return a connection that the server has greeted: events of what is submitted from now on have an address."""
        import websocket

        try:
            ws = websocket.create_connection(
                f"{self._url}?clientId={self.client_id}",
                timeout=CONNECT_S,
                skip_utf8_validation=True,
                redirect_limit=0,
            )
        except (OSError, ValueError, websocket.WebSocketException) as error:
            raise Lost(type(error).__name__) from error
        give_up = time.monotonic() + CONNECT_S
        try:
            ws.send(FEATURES)
            while time.monotonic() < give_up:
                event = self._read(ws, is_new=True)
                if isinstance(event, Event) and event.type == "status" and "sid" in event.data:
                    ws.settimeout(SILENCE_S)
                    return ws
            raise Lost("no greeting")
        except (OSError, websocket.WebSocketException) as error:
            ws.shutdown()  # type: ignore[no-untyped-call]
            raise Lost(type(error).__name__) from error
        except Lost:
            ws.shutdown()  # type: ignore[no-untyped-call]
            raise

    def _read(self, ws: websocket.WebSocket, *, is_new: bool = False) -> Event | ImageEvent | None:
        """Return the next message; None for one without content. Raises Lost."""
        import websocket

        try:
            try:
                opcode, raw = ws.recv_data(control_frame=True)
            except websocket.WebSocketTimeoutException:
                if is_new:
                    raise
                # ComfyUI says nothing while it has nothing to do, nor does a connection that died on the way.
                ws.ping()
                opcode, raw = ws.recv_data(control_frame=True)
        except (OSError, websocket.WebSocketException) as error:
            raise Lost(type(error).__name__) from error
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            raise Lost("closed by the server")
        if opcode == websocket.ABNF.OPCODE_BINARY:
            return image_event(raw)
        return text_event(raw) if opcode == websocket.ABNF.OPCODE_TEXT else None

    def _take(self, event: Event | ImageEvent | None) -> None:
        if event is None:
            return
        with self._changed:
            if isinstance(event, ImageEvent):
                self._take_picture(event)
                return
            if event.type == "status":
                self._remaining = remaining(event)
            prompt_id = event.data.get("prompt_id")
            if prompt_id is None and event.type == "executing" and event.data.get("node") is not None:
                # After a reconnect the server repeats it without a prompt id (reconnect_midrun.json).
                prompt_id = self._running or (next(iter(self._jobs)) if len(self._jobs) == 1 else None)
            job = self._jobs.get(prompt_id) if isinstance(prompt_id, str) else None
            if job is None:
                return
            self._running, job.has_begun, job.last = prompt_id, True, self._clock()
            if event.type == "executing" and event.data.get("node") is None:
                self._running, job.has_ended, job.had_others = None, True, self._remaining != 0
            else:
                job.meter.take(event)

    def _take_picture(self, picture: ImageEvent) -> None:
        job = self._jobs.get(self._running or "")
        node_id = picture.node_id or (job.meter.report.node_id if job is not None else None)
        if job is not None and node_id in job.sending and not picture.is_preview:
            job.pictures.append(ImageEvent(node_id, picture.media_type, picture.content))
