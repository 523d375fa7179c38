"""A service's one slot: one job at a time in front of one engine. It is free when the job has ended and ComfyUI has
nothing of it any more."""

from __future__ import annotations

import hmac
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic import SecretStr

from settee.base.errors import Busy, ComfyUnavailable
from settee.base.job import Cancel
from settee.engine.engine import Engine

log = logging.getLogger(__name__)

#: The reason of a cancel that no caller asked for.
SHUTDOWN = "the agent is shutting down"


@dataclass
class SlotJob:
    """A job in the slot."""

    id: str
    #: What a cancel must name.
    cancel_token: SecretStr | None = None
    cancel: Cancel = field(default_factory=Cancel)
    is_over: bool = False


class Slot:
    """Every method may be called from any thread; none waits for a job but :meth:`close`."""

    def __init__(self, engine: Engine, settle_s: float) -> None:
        """``settle_s``: how long ComfyUI may take to stop a job that it was told to stop."""
        self._engine, self._settle_s = engine, settle_s
        #: Held for moments only: the event loop takes it.
        self._lock = threading.Lock()
        self._job: SlotJob | None = None
        #: Before the first job: while ComfyUI still has what a killed service left there.
        self._is_recovering = False
        self._thread: threading.Thread | None = None
        self._is_closing = False

    @property
    def is_busy(self) -> bool:
        """Return True if a job would be refused: one runs, or ComfyUI has not stopped an earlier one yet."""
        return self._job is not None or self._is_recovering

    def recover(self, afterwards: Callable[[], None]) -> None:
        """Keep the slot taken until ComfyUI is idle of what a killed service left there. Does not wait."""
        self._is_recovering = True

        def work() -> None:
            try:
                if not self._settled():
                    log.error("ComfyUI still runs a job of an agent that was killed")
            finally:
                self._is_recovering = False
            afterwards()

        threading.Thread(target=work, name="settee-recovering", daemon=True).start()

    def take(self, job: SlotJob) -> None:
        """Raises Busy, ComfyUnavailable."""
        with self._lock:
            if self._is_closing:
                raise ComfyUnavailable(SHUTDOWN, retryable=True)
            if self.is_busy:
                raise Busy
            self._job = job

    def start(self, job: SlotJob, work: Callable[[], None]) -> None:
        """Run the job that has the slot in a thread; afterwards the slot is free. Raises RuntimeError."""

        def run() -> None:
            try:
                work()
                if self._job is job and not self._settled():
                    log.error("ComfyUI still runs job %s, which was canceled", job.id)
            finally:
                self.free(job)

        thread = threading.Thread(target=run, name="settee-job", daemon=True)
        with self._lock:
            self._thread = thread
        thread.start()

    def ended(self, job: SlotJob) -> None:
        """The job's end is in the store: who learns of it is welcome to send the next, if ComfyUI is idle."""
        job.is_over = True
        if self._engine.settle(0.0, lambda: True):
            self.free(job)

    def free(self, job: SlotJob) -> None:
        """Free the slot, if this job still has it."""
        with self._lock:
            if self._job is job:
                self._job = None

    def cancel(self, token: str) -> bool:
        """Ask the job with this cancel token to stop. False when no job that runs has it."""
        with self._lock:
            job = self._job
            if job is None or job.cancel_token is None or job.is_over:
                return False
            expected = job.cancel_token.get_secret_value().encode(errors="replace")
            if not hmac.compare_digest(expected, token.encode(errors="replace")):
                return False
            job.cancel.set("canceled by its dispatcher")
            return True

    def close(self, timeout_s: float) -> None:
        """Take no more jobs, and end the one that runs."""
        with self._lock:
            self._is_closing = True
            if self._job is not None:
                self._job.cancel.set(SHUTDOWN)
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def _settled(self) -> bool:
        """Wait until ComfyUI is idle of earlier jobs; return whether it is."""
        return self._engine.settle(self._settle_s, lambda: self._is_closing)
