"""A bare ComfyUI as a target: no worker, no RunPod. The same requests as docs/api.md, the same answers.

What a worker would do, as far as a stranger to that machine can: files are uploaded and their names put where they
are loaded, the prompt has an id of our own, history and queue decide how it stands, and results are addresses to be
fetched. What stays behind there: uploaded files, as ComfyUI has no way to delete them (below input/settee, a folder
for each content, so that sending a file again stores nothing), the outputs and the entry in its history, where
a user of its page expects them.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from settee.client.client_errors import ClientError, JobStopped, NetworkError, Unsure
from settee.client.targets import Answer, Status, comfy_request, comfy_result
from settee.client.targets.comfy_api import Queue, Wire, json_of
from settee.client.targets.comfy_events import Events, Heard
from settee.client.targets.comfy_request import Asked
from settee.client.targets.comfy_result import Entry
from settee.client.targets.json_http import Reply, limited
from settee.comfyui.history import mapping, saving_nodes
from settee.comfyui.messages import PICTURE_NODE
from settee.comfyui.node_registry import NodeRegistry
from settee.comfyui.workflow import Workflow

#: How long a prompt whose answer was lost is looked for, and one that is nowhere to be seen is waited for, seconds.
LOOK_S, GONE_S = 10.0, 3.0
#: How long it may take to take back a prompt, seconds.
WITHDRAW_S = 5.0
#: After this long without a message over the socket the queue is asked again, seconds.
FRESH_S = 10.0
#: A queue in which nothing runs for this long is reported, seconds.
STALL_S = 15.0
#: How long pictures may come after the history entry, seconds.
PICTURES_S = 10.0

GONE = "{name} does not know job {job_id} (any more): its history is lost when it is restarted or cleared"


@dataclass
class _Sent:
    """State of a job that has not ended. Times are the clock's."""

    workflow: Workflow
    #: Nodes whose outputs may be pictures that are only sent.
    senders: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()
    timeout_s: float | None = None
    runs_since: float | None = None
    absent_since: float | None = None
    idle_since: float | None = None
    ended_since: float | None = None
    is_canceled: bool = False
    is_late: bool = False


class Comfy:
    """A Target. ``api_key`` is of comfy.org, for API nodes: it is sent with the jobs that have none themselves."""

    request_cap: int | None = None

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make no request yet. Raises UsageError for an invalid address."""
        base = base_url.rstrip("/")
        self.name = f"ComfyUI at {base}"
        self._api_key, self._clock = api_key, clock
        self._wire = Wire(base_url, name=self.name)
        self._events = Events(base, clock=clock)
        self._lock = threading.Lock()
        self._info_lock = threading.Lock()
        self._registry: NodeRegistry | None = None
        self._sent: dict[str, _Sent] = {}

    def close(self) -> None:
        self._events.close()
        self._wire.close()

    def keeps(self, job_id: str) -> bool:
        """Return True: history keeps every job."""
        return True

    def health(self) -> dict[str, Any]:
        """Return ``/system_stats``, and how many prompts run and wait."""
        stats, queue = self._wire.system_stats(), self._wire.queue()
        return {**stats, "queue": {"running": len(queue.running), "pending": len(queue.pending)}}

    def node_registry(self) -> NodeRegistry:
        """Return the node registry, asked for once."""
        with self._info_lock:
            if self._registry is None:
                self._registry = self._wire.node_registry()
            return self._registry

    # --- sending -----------------------------------------------------------------------------------------------

    def submit(self, payload: dict[str, Any]) -> Answer:
        """Upload the files and queue the prompt. A workflow that ComfyUI refuses is a FAILED answer.

        Raises UsageError for what only a worker can do, Rejected for a file that it does not take, NetworkError; one
        with a ``job_id`` when it is not known whether the prompt was queued under that id.
        """
        asked = comfy_request.read(payload)
        registry = self.node_registry()
        places = {name: self._wire.put(name, comfy_request.upload(name, data)) for name, data in asked.files.items()}
        job_id = str(uuid.uuid4())
        workflow = comfy_request.with_files(asked.workflow, places)
        senders = frozenset(registry.picture_senders(workflow))
        # Before the prompt: ComfyUI does not repeat messages.
        self._events.open()
        self._events.watch(job_id, workflow, senders)
        sent = _Sent(workflow, senders=senders, timeout_s=asked.timeout_s)
        with self._lock:
            self._sent[job_id] = sent
        try:
            answer = self._queue_prompt(job_id, sent, asked, comfy_request.salted(workflow, registry, job_id))
        except BaseException as error:
            if not isinstance(error, Exception):
                self._withdraw(job_id)  # Ctrl-C: its id is known nowhere else
            self._forget(job_id)
            raise
        if answer.status.is_terminal:
            self._forget(job_id)
        return answer

    def _queue_prompt(self, job_id: str, sent: _Sent, asked: Asked, workflow: Workflow) -> Answer:
        extra_data = dict(asked.extra_data)
        if self._api_key:
            extra_data.setdefault("api_key_comfy_org", self._api_key)
        if asked.include_temp:
            extra_data[comfy_result.NOTES] = {"include_temp": True}
        body = {"prompt": workflow, "prompt_id": job_id, "client_id": self._events.client_id, "extra_data": extra_data}
        try:
            reply = self._wire.prompt(body)
        except Unsure as error:
            refused = self._left_out(job_id, workflow, error)
        else:
            if reply.status != 200:
                return self._refusal(job_id, reply, workflow)
            refused = mapping(json_of(reply).get("node_errors"))
        if refused:
            line, details = comfy_request.refusal({}, refused, sent.workflow, self.node_registry())
            if not asked.allow_partial:
                # 200 all the same: ComfyUI runs the valid outputs, and reports nothing about the others later.
                self._withdraw(job_id)
                return Answer(job_id, Status.FAILED, error=line, code="workflow_rejected", details=details)
            sent.warnings = tuple(
                f"not run (allow_partial): {problem['path']}: {problem['problem']}" for problem in details["problems"]
            )
        return Answer(job_id, Status.IN_QUEUE)

    def _refusal(self, job_id: str, reply: Reply, workflow: Workflow) -> Answer:
        if reply.status == 400:
            said = json_of(reply)
            error, node_errors = mapping(said.get("error")), mapping(said.get("node_errors"))
            line, details = comfy_request.refusal(error, node_errors, workflow, self.node_registry())
        else:
            line, details = f"ComfyUI failed while it checked the workflow (HTTP {reply.status}): see its log", {}
        return Answer(job_id, Status.FAILED, error=line, code="workflow_rejected", details=details)

    def _left_out(self, job_id: str, workflow: Workflow, unsure: Unsure) -> dict[str, Any]:
        """Find a prompt whose answer was lost; the output nodes that it will not run, as ``node_errors``.

        Raises NetworkError when it does not show up: it may still be being validated, so it is not sent again.
        """
        give_up, pause_s = self._clock() + LOOK_S, 0.05
        while (item := self._seen(job_id, give_up)) is None:
            if self._clock() >= give_up:
                message = f"{unsure.message}; --resume {job_id} looks for it, --cancel {job_id} ends it"
                raise NetworkError(message, job_id=job_id) from unsure
            # No event reports that ComfyUI has validated.
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)
        runs = item[4] if len(item) > 4 and isinstance(item[4], list) else []
        error = {"type": "not_run", "message": "it would not run; the reason was lost with ComfyUI's answer"}
        return {
            node_id: {"errors": [error], "class_type": workflow[node_id]["class_type"]}
            for node_id in self.node_registry().output_nodes(workflow)
            if node_id not in runs
        }

    def _seen(self, job_id: str, give_up: float) -> list[Any] | None:
        with contextlib.suppress(NetworkError), limited(threading.Event(), lambda: give_up - self._clock()):
            return self._wire.item(job_id)
        return None

    # --- how it stands -----------------------------------------------------------------------------------------

    def status(self, job_id: str) -> Answer:
        """Raises JobStopped for a job that ComfyUI does not know, NetworkError."""
        heard = self._events.heard(job_id)
        with self._lock:
            sent = self._sent.get(job_id)
        entry = self._wire.history(job_id)
        if entry is None:
            # While the socket reports that it runs the queue is not needed, which holds all graphs.
            if sent is not None and heard is not None and _surely_runs(heard):
                return self._under_way(job_id, sent, heard)
            queue = self._wire.queue()
            if (item := queue.item(job_id)) is not None:
                return self._queued(job_id, sent or self._adopted(job_id, item), queue)
            # It may have ended between the two questions.
            entry = self._wire.history(job_id)
        if entry is None:
            return self._vanished(job_id, sent)
        answer = self._ended(job_id, Entry(entry), sent)
        if answer.status.is_terminal:
            self._forget(job_id)
        return answer

    def _adopted(self, job_id: str, item: list[Any]) -> _Sent:
        """Return a job that another process sent."""
        workflow = mapping(item[2]) if len(item) > 2 else {}
        senders = frozenset(self.node_registry().picture_senders(workflow))
        client_id = mapping(item[3]).get("client_id") if len(item) > 3 else None
        if isinstance(client_id, str):
            self._events.adopt(client_id, job_id, workflow, senders)
        with self._lock:
            return self._sent.setdefault(job_id, _Sent(workflow, senders=senders))

    def _queued(self, job_id: str, sent: _Sent, queue: Queue) -> Answer:
        sent.absent_since = None
        if queue.runs(job_id):
            return self._under_way(job_id, sent, self._events.heard(job_id) or Heard())
        now, progress = self._clock(), {}
        sent.idle_since = None if queue.running else _first(sent.idle_since, now)
        if sent.idle_since is not None and now - sent.idle_since >= STALL_S:
            # An executor thread that died leaves a server that answers, and runs nothing (worker_death.json).
            progress = {"message": f"ComfyUI has run nothing for {now - sent.idle_since:.0f} s: see its log"}
        return Answer(job_id, Status.IN_QUEUE, queue_position=queue.ahead(job_id), progress=progress)

    def _under_way(self, job_id: str, sent: _Sent, heard: Heard) -> Answer:
        now = self._clock()
        sent.runs_since = _first(sent.runs_since, now)
        if sent.timeout_s is not None and now - sent.runs_since >= sent.timeout_s and not sent.is_late:
            sent.is_late = True
            self.cancel(job_id)
        node = mapping(sent.workflow.get(heard.node_id or ""))
        progress = {
            "phase": "running",
            "percent": heard.percent if heard.has_begun else None,
            "node": heard.node_id,
            "node_type": node.get("class_type"),
            "step": heard.value,
            "max": heard.maximum,
        }
        known = {key: value for key, value in progress.items() if value is not None}
        return Answer(job_id, Status.IN_PROGRESS, progress=known)

    def _vanished(self, job_id: str, sent: _Sent | None) -> Answer:
        """Answer for a job that neither history nor queue has."""
        if sent is None:
            raise JobStopped(GONE.format(name=self.name, job_id=job_id), job_id=job_id)
        now = self._clock()
        sent.absent_since = _first(sent.absent_since, now)
        if not sent.is_canceled and now - sent.absent_since < GONE_S:
            return Answer(job_id, Status.IN_PROGRESS, progress={"phase": "running"})
        self._forget(job_id)
        if sent.is_canceled:
            return self._stopped(job_id, sent)
        line = "the job is gone: it was deleted from ComfyUI's queue, or ComfyUI was restarted; send it again"
        return Answer(job_id, Status.FAILED, error=line, code="prompt_lost", details={"retryable": True})

    def _stopped(self, job_id: str, sent: _Sent) -> Answer:
        if sent.is_late:
            line = f"the job ran into its time limit of {sent.timeout_s:g} s"
            return Answer(job_id, Status.TIMED_OUT, error=line, code="timeout")
        return Answer(job_id, Status.CANCELLED, error="the job was canceled", code="canceled")

    # --- how it ended ------------------------------------------------------------------------------------------

    def _ended(self, job_id: str, entry: Entry, sent: _Sent | None) -> Answer:
        failure = comfy_result.failure(job_id, entry)
        if failure is not None:
            was_stopped = sent is not None and sent.is_canceled and failure.status is Status.CANCELLED
            return self._stopped(job_id, sent) if sent is not None and was_stopped else failure
        heard = self._events.heard(job_id)
        if sent is not None and self._awaits_pictures(sent, heard, entry):
            return self._under_way(job_id, sent, heard or Heard())
        is_whole = heard is not None and heard.is_whole and heard.has_ended
        started: list[Entry] = []
        if heard is None or not is_whole or heard.had_others:
            if self._wire.queue().started_by(job_id):
                return self._under_way(job_id, sent or _Sent(entry.workflow), heard or Heard())
            started = [Entry(each) for each in self._wire.started_by(job_id)]
        if started and sent is not None and sent.is_canceled:
            return self._stopped(job_id, sent)
        for each in started:
            if (failure := comfy_result.failure(job_id, each)) is not None:
                return failure
        found, pictures = comfy_result.found_in(entry, self.node_registry(), started), self._events.forget(job_id)
        only_sent = {i for i, node in entry.workflow.items() if node.get("class_type") == PICTURE_NODE} | set(
            found.sent
        )
        if only_sent and not (is_whole and len(found.sent) <= len(pictures)):
            names = " and ".join(
                sorted({str(entry.workflow[i].get("class_type")) for i in only_sent if i in entry.workflow})
            )
            line = (
                f"the pictures of {names} come over ComfyUI's event socket only, to the process that sent the "
                "job, and that connection was lost; send the job again, or use SaveImage"
            )
            return Answer(job_id, Status.FAILED, error=line, code="output_missing", details={"retryable": True})
        output, missing = comfy_result.output(
            found,
            look=self._wire.look,
            pictures=pictures,
            execution_ms=entry.execution_ms,
            warnings=sent.warnings if sent is not None else (),
        )
        if missing:
            names = ", ".join(f"{place.filename} (node {place.node_id})" for place in missing)
            line = f"ComfyUI reports output that it does not have: {names}; was it deleted? send the job again"
            return Answer(job_id, Status.FAILED, error=line, code="output_missing")
        return Answer(job_id, Status.COMPLETED, output=output)

    def _awaits_pictures(self, sent: _Sent, heard: Heard | None, entry: Entry) -> bool:
        """Return True if pictures may still come: they are sent after history is stored, before the last message."""
        may_come = sent.senders - saving_nodes(entry.outputs)
        if not may_come or heard is None or heard.has_ended or not heard.is_whole:
            return False
        now = self._clock()
        sent.ended_since = _first(sent.ended_since, now)
        return now - sent.ended_since < PICTURES_S

    # --- ending it ---------------------------------------------------------------------------------------------

    def cancel(self, job_id: str) -> None:
        """Take it out of the queue, or interrupt it; nothing happens to one that has ended.

        Raises JobStopped for a job that ComfyUI does not know, NetworkError.
        """
        queue = self._wire.queue()
        started = queue.started_by(job_id)
        for each in started:
            self._wire.delete(each)
            if queue.runs(each):
                self._wire.interrupt(each)
        item = queue.item(job_id)
        if item is None and started:
            with self._lock:
                self._sent.setdefault(job_id, _Sent({})).is_canceled = True
        if item is None:
            if not started and self._wire.history(job_id) is None and job_id not in self._sent:
                raise JobStopped(GONE.format(name=self.name, job_id=job_id), job_id=job_id)
            return
        with self._lock:
            self._sent.setdefault(job_id, _Sent(mapping(item[2]) if len(item) > 2 else {})).is_canceled = True
        self._wire.delete(job_id)
        # Only if it runs: an older ComfyUI interrupts whatever does, whichever is asked for.
        if self._wire.queue().runs(job_id):
            self._wire.interrupt(job_id)

    def _withdraw(self, job_id: str) -> None:
        """Cancel without an error, if that can be done soon: the error that led here is the one to report."""
        give_up = self._clock() + WITHDRAW_S
        with contextlib.suppress(ClientError), limited(threading.Event(), lambda: give_up - self._clock()):
            self.cancel(job_id)

    def _forget(self, job_id: str) -> None:
        self._events.forget(job_id)
        with self._lock:
            self._sent.pop(job_id, None)


def _surely_runs(heard: Heard) -> bool:
    return heard.has_begun and not heard.has_ended and heard.is_whole and heard.silent_s < FRESH_S


def _first(known: float | None, now: float) -> float:
    return now if known is None else known
