"""A bare ComfyUI as a target: no worker, no RunPod. The same requests as docs/api.md, the same answers.

What a worker would do, as far as a stranger to that machine can: files are uploaded and their names put where they
are loaded, the prompt has an id of our own, history and queue decide how it stands, and results are addresses to be
fetched. What stays behind there: uploaded files, as ComfyUI has no way to delete them (below input/settee, a folder
for each content, so that sending a file again stores nothing), the outputs and the entry in its history, where
a user of its page expects them.
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from settee.client.client_errors import ClientError, JobStopped, NetworkError, Unsure
from settee.client.targets import Answer, Status, comfy_job
from settee.client.targets.comfy_api import SUBMIT_S, Wire
from settee.client.targets.comfy_events import Events, Heard
from settee.client.targets.comfy_job import Asked, Entry
from settee.client.targets.json_http import limited
from settee.comfyui.history import mapping, saving_nodes
from settee.comfyui.http_api import Queue, Reply
from settee.comfyui.messages import PICTURE_NODE
from settee.comfyui.node_registry import NodeRegistry
from settee.comfyui.workflow import Workflow

#: How long a prompt whose answer was lost is looked for, and one that is nowhere to be seen is waited for, seconds.
SEARCH_S, GONE_S = 10.0, 3.0
#: How long it may take to take back a prompt, seconds.
WITHDRAW_S = 5.0
#: After this long without a message over the socket the queue is asked again, seconds.
FRESH_S = 10.0
#: A queue in which nothing runs for this long is reported, seconds.
STALL_S = 15.0
#: How long pictures may come after the history entry, seconds.
PICTURES_S = 10.0
#: The newest entries of history in which the prompts that a job's nodes started are looked for.
RECENT = 100

GONE = "{name} does not know job {job_id} (any more): its history is lost when it is restarted or cleared"


@dataclass
class _Sent:
    """State of a job that has not ended."""

    workflow: Workflow = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    timeout_s: float | None = None
    is_canceled: bool = False
    is_late: bool = False
    #: Since when, by the clock, something has held.
    since: dict[str, float] = field(default_factory=dict)

    def lasted_s(self, what: str, now: float) -> float:
        """Return for how long this has held, from the first time that it was asked for."""
        return now - self.since.setdefault(what, now)


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
        asked = comfy_job.read(payload)
        registry = self.node_registry()
        places = {name: self._wire.put(name, base64.b64decode(data)) for name, data in asked.files.items()}
        job_id = str(uuid.uuid4())
        workflow = comfy_job.with_files(asked.workflow, places)
        sent = _Sent(workflow, timeout_s=asked.timeout_s)
        # Before the prompt: ComfyUI does not repeat messages.
        self._events.watch(job_id, workflow, registry)
        self._sent[job_id] = sent
        try:
            answer = self._queue_prompt(job_id, sent, asked)
        except BaseException as error:
            if not isinstance(error, Exception):
                self._withdraw(job_id)  # Ctrl-C: its id is known nowhere else
            self._forget(job_id)
            raise
        if answer.status.is_terminal:
            self._forget(job_id)
        return answer

    def _queue_prompt(self, job_id: str, sent: _Sent, asked: Asked) -> Answer:
        registry, extra_data = self.node_registry(), dict(asked.extra_data)
        if self._api_key:
            extra_data.setdefault("api_key_comfy_org", self._api_key)
        if asked.include_temp:
            extra_data[comfy_job.NOTES] = {"include_temp": True}
        salted = comfy_job.salted(sent.workflow, registry, job_id)
        try:
            reply = self._wire.post_prompt(salted, job_id, self._events.client_id, extra_data, SUBMIT_S)
        except Unsure as error:
            reply = Reply(200, {"node_errors": self._left_out(job_id, sent.workflow, error)})
        answer = mapping(reply.data)
        node_errors = mapping(answer.get("node_errors"))
        if reply.status == 200 and not node_errors:
            return Answer(job_id, Status.IN_QUEUE)
        if reply.status in (200, 400):
            line, details = comfy_job.refusal(mapping(answer.get("error")), node_errors, sent.workflow, registry)
        else:
            line, details = f"ComfyUI failed while it checked the workflow (HTTP {reply.status}): see its log", {}
        if reply.status == 200 and asked.allow_partial:
            sent.warnings = tuple(
                f"not run (allow_partial): {problem['path']}: {problem['problem']}" for problem in details["problems"]
            )
            return Answer(job_id, Status.IN_QUEUE)
        if reply.status == 200:
            # ComfyUI runs the valid outputs, and reports nothing about the others later.
            self._withdraw(job_id)
        return Answer(job_id, Status.FAILED, error=line, code="workflow_rejected", details=details)

    def _left_out(self, job_id: str, workflow: Workflow, unsure: Unsure) -> dict[str, Any]:
        """Find a prompt whose answer was lost; the output nodes that it will not run, as ``node_errors``.

        Raises NetworkError when it does not show up: it may still be being validated, so it is not sent again.
        """
        give_up, pause_s = self._clock() + SEARCH_S, 0.05
        with limited(threading.Event(), lambda: give_up - self._clock()):
            while True:
                with contextlib.suppress(NetworkError):
                    if (item := self._wire.item(job_id)) is not None:
                        break
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

    # --- how it stands -----------------------------------------------------------------------------------------

    def status(self, job_id: str) -> Answer:
        """Raises JobStopped for a job that ComfyUI does not know, NetworkError."""
        heard, sent = self._events.heard(job_id), self._sent.get(job_id)
        entry = self._wire.history(job_id)
        if entry is None:
            # While the socket reports that it runs the queue is not needed, which holds all graphs.
            if sent and heard and heard.surely_runs and self._clock() - heard.last < FRESH_S:
                return self._under_way(job_id, sent, heard)
            queue = self._wire.queue()
            if (item := queue.items.get(job_id)) is not None:
                return self._queued(job_id, sent or self._adopted(job_id, item), queue)
            # It may have ended between the two questions.
            entry = self._wire.history(job_id)
        if entry is None:
            return self._vanished(job_id, sent)
        answer = self._ended(job_id, Entry(entry), sent or _Sent(), self._events.heard(job_id) or Heard())
        if answer.status.is_terminal:
            self._forget(job_id)
        return answer

    def _adopted(self, job_id: str, item: list[Any]) -> _Sent:
        """Return a job that another process sent."""
        workflow = Entry({"prompt": item}).workflow
        client_id = mapping(item[3]).get("client_id") if len(item) > 3 else None
        if isinstance(client_id, str):
            self._events.watch(job_id, workflow, self.node_registry(), client_id)
        return self._sent.setdefault(job_id, _Sent(workflow))

    def _queued(self, job_id: str, sent: _Sent, queue: Queue) -> Answer:
        sent.since.pop("absent", None)
        if job_id in queue.running:
            return self._under_way(job_id, sent, self._events.heard(job_id) or Heard())
        progress = {}
        if queue.running:
            sent.since.pop("idle", None)
        elif (idle_s := sent.lasted_s("idle", self._clock())) >= STALL_S:
            # An executor thread that died leaves a server that answers, and runs nothing (worker_death.json).
            progress = {"message": f"ComfyUI has run nothing for {idle_s:.0f} s: see its log"}
        ahead = len(queue.running) + queue.pending.index(job_id)
        return Answer(job_id, Status.IN_QUEUE, queue_position=ahead, progress=progress)

    def _under_way(self, job_id: str, sent: _Sent, heard: Heard) -> Answer:
        report, runs_s = heard.report, sent.lasted_s("runs", self._clock())
        if sent.timeout_s is not None and runs_s >= sent.timeout_s and not sent.is_late:
            sent.is_late = True
            self.cancel(job_id)
        progress = {
            "phase": "running",
            "percent": report.percent if heard.has_begun else None,
            "node": report.node_id,
            "node_type": mapping(sent.workflow.get(report.node_id or "")).get("class_type"),
            "step": report.value,
            "max": report.maximum,
        }
        known = {key: value for key, value in progress.items() if value is not None}
        return Answer(job_id, Status.IN_PROGRESS, progress=known)

    def _vanished(self, job_id: str, sent: _Sent | None) -> Answer:
        """Answer for a job that neither history nor queue has."""
        if sent is None:
            raise JobStopped(GONE.format(name=self.name, job_id=job_id), job_id=job_id)
        if not sent.is_canceled and sent.lasted_s("absent", self._clock()) < GONE_S:
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

    def _ended(self, job_id: str, entry: Entry, sent: _Sent, heard: Heard) -> Answer:
        failure = comfy_job.failure(job_id, entry)
        if failure is not None:
            was_stopped = sent.is_canceled and failure.status is Status.CANCELLED
            return self._stopped(job_id, sent) if was_stopped else failure
        if self._awaits_pictures(sent, heard, entry):
            return self._under_way(job_id, sent, heard)
        is_whole = heard.is_whole and heard.has_ended
        started: list[Entry] = []
        if not is_whole or heard.had_others:
            if _started_by(job_id, self._wire.queue().items):
                return self._under_way(job_id, sent, heard)
            recent = {each: mapping(data) for each, data in self._wire.recent(RECENT).items()}
            graphs = {each: data.get("prompt") for each, data in recent.items()}
            started = [Entry(recent[each]) for each in _started_by(job_id, graphs)]
        if started and sent.is_canceled:
            return self._stopped(job_id, sent)
        for each in started:
            if (failure := comfy_job.failure(job_id, each)) is not None:
                return failure
        found, graph = comfy_job.found_in(entry, self.node_registry(), started), entry.workflow
        only_sent = {i for i, node in graph.items() if node.get("class_type") == PICTURE_NODE}.union(found.sent)
        if only_sent and not (is_whole and len(found.sent) <= len(heard.pictures)):
            names = " and ".join(sorted({str(graph[i].get("class_type")) for i in only_sent if i in graph}))
            line = (
                f"the pictures of {names} come over ComfyUI's event socket only, to the process that sent the "
                "job, and that connection was lost; send the job again, or use SaveImage"
            )
            return Answer(job_id, Status.FAILED, error=line, code="output_missing", details={"retryable": True})
        output, missing = comfy_job.output(
            found,
            file_at=self._wire.file_at,
            pictures=heard.pictures,
            execution_ms=entry.execution_ms,
            warnings=sent.warnings,
        )
        if missing:
            names = ", ".join(missing)
            line = f"ComfyUI reports output that it does not have: {names}; was it deleted? send the job again"
            return Answer(job_id, Status.FAILED, error=line, code="output_missing")
        return Answer(job_id, Status.COMPLETED, output=output)

    def _awaits_pictures(self, sent: _Sent, heard: Heard, entry: Entry) -> bool:
        """Return True if pictures may still come: they are sent after history is stored, before the last message."""
        if not heard.senders - saving_nodes(entry.outputs) or heard.has_ended or not heard.is_whole:
            return False
        return sent.lasted_s("ended", self._clock()) < PICTURES_S

    # --- ending it ---------------------------------------------------------------------------------------------

    def cancel(self, job_id: str) -> None:
        """Take it out of the queue, or interrupt it, with all that it started; nothing happens to one that has ended.

        Raises JobStopped for a job that ComfyUI does not know, NetworkError.
        """
        queue = self._wire.queue()
        started, item = _started_by(job_id, queue.items), queue.items.get(job_id)
        if item is None and not started:
            if job_id not in self._sent and self._wire.history(job_id) is None:
                raise JobStopped(GONE.format(name=self.name, job_id=job_id), job_id=job_id)
            return
        self._sent.setdefault(job_id, _Sent(Entry({"prompt": item}).workflow)).is_canceled = True
        for each in started:
            # At once: it may be about to start another.
            stop = self._wire.interrupt if each in queue.running else self._wire.delete
            stop(each)
        if item is not None:
            self._wire.delete(job_id)
            # Only if it runs: an older ComfyUI interrupts whatever does, whichever is asked for.
            if job_id in self._wire.queue().running:
                self._wire.interrupt(job_id)

    def _withdraw(self, job_id: str) -> None:
        """Cancel without an error, if that can be done soon: the error that led here is the one to report."""
        give_up = self._clock() + WITHDRAW_S
        with contextlib.suppress(ClientError), limited(threading.Event(), lambda: give_up - self._clock()):
            self.cancel(job_id)

    def _forget(self, job_id: str) -> None:
        self._events.forget(job_id)
        self._sent.pop(job_id, None)


def _started_by(job_id: str, prompts: Mapping[str, Any]) -> list[str]:
    """Return the ids of the prompts that a job's nodes started: they repeat its graph, and so its salt."""
    return [
        each
        for each, prompt in prompts.items()
        if each != job_id and isinstance(prompt, list) and job_id in json.dumps(prompt[2:3])
    ]
