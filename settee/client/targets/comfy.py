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
import threading
import time
import uuid
from dataclasses import replace
from typing import Any

from settee.base.errors import SetteeError, WorkflowRejected
from settee.client.client_errors import ClientError, JobStopped, NetworkError, Unsure
from settee.client.targets import Answer, Status, comfy_job
from settee.client.targets.comfy_api import SUBMIT_S, Wire
from settee.client.targets.comfy_job import Asked, belongs_to
from settee.client.targets.comfy_run import Run
from settee.client.targets.json_http import limited
from settee.comfyui.node_registry import NodeRegistry

#: How long a prompt whose answer was lost is looked for, and how long it may take to take back one, seconds.
SEARCH_S, WITHDRAW_S = 10.0, 5.0
#: Beyond so many jobs, one that sends no pictures gets a socket when it runs.
SOCKETS = 32

GONE = "{name} does not know job {job_id} (any more): its history is lost when it is restarted or cleared"


class Comfy:
    """A Target. ``api_key`` is of comfy.org, for API nodes: it is sent with the jobs that have none themselves."""

    request_cap: int | None = None

    def __init__(self, base_url: str, *, api_key: str | None = None) -> None:
        """Make no request yet. Raises UsageError for an invalid address."""
        self.name = f"ComfyUI at {base_url.rstrip('/')}"
        self._api_key = api_key
        self._wire = Wire(base_url, name=self.name)
        self._info_lock = threading.Lock()
        self._registry: NodeRegistry | None = None
        #: The jobs that this process follows; each change is one atomic call.
        self._runs: dict[str, Run] = {}

    def close(self) -> None:
        for run in list(self._runs.values()):
            run.close()
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
        asked = replace(asked, workflow=comfy_job.with_files(asked.workflow, places), files={})
        run = Run(self._wire, registry, str(uuid.uuid4()), asked, self.cancel)
        if run.needs_socket or len(self._runs) < SOCKETS:
            run.connect()
        self._runs[run.id] = run
        try:
            self._queue_prompt(run, asked)
        except BaseException as error:
            if not isinstance(error, Exception):
                self._withdraw(run.id)  # Ctrl-C: its id is known nowhere else
            self._forget(run)
            if isinstance(error, SetteeError):
                return comfy_job.failed(run.id, error)
            raise
        run.start()
        return Answer(run.id, Status.IN_QUEUE)

    def _queue_prompt(self, run: Run, asked: Asked) -> None:
        """Raises WorkflowRejected, PayloadTooLarge, NetworkError."""
        graph, registry = run.graph, run.registry
        extra_data = dict(asked.extra_data)
        if self._api_key:
            extra_data.setdefault("api_key_comfy_org", self._api_key)
        if asked.include_temp:
            extra_data[comfy_job.NOTES] = {"include_temp": True}
        salted = comfy_job.salted(graph, registry, run.id)
        try:
            try:
                node_errors = self._wire.submit(salted, run.id, run.socket.client_id, extra_data, SUBMIT_S)
            except Unsure as error:
                node_errors = self._left_out(run, error)
            if node_errors and not asked.allow_partial:
                # ComfyUI runs the valid outputs, and reports nothing about the others later.
                self._withdraw(run.id)
                raise WorkflowRejected(details={"error": {}, "node_errors": node_errors})
        except WorkflowRejected as error:
            raise comfy_job.refusal(error, graph, registry) from error
        run.ended.refuse(node_errors, graph, registry)

    def _left_out(self, run: Run, unsure: Unsure) -> dict[str, Any]:
        """Find a prompt whose answer was lost; the output nodes that it will not run, as ``node_errors``.

        Raises NetworkError when it does not show up: it may still be being validated, so it is not sent again.
        """
        give_up, pause_s = time.monotonic() + SEARCH_S, 0.05
        with limited(threading.Event(), lambda: give_up - time.monotonic()):
            while True:
                with contextlib.suppress(NetworkError):
                    if (item := self._wire.item(run.id)) is not None:
                        break
                if time.monotonic() >= give_up:
                    message = f"{unsure.message}; --resume {run.id} looks for it, --cancel {run.id} ends it"
                    raise NetworkError(message, job_id=run.id) from unsure
                # No event reports that ComfyUI has validated.
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 1.0)
        runs = item[4] if len(item) > 4 and isinstance(item[4], list) else []
        error = {"type": "not_run", "message": "it would not run; the reason was lost with ComfyUI's answer"}
        return {
            node_id: {"errors": [error], "class_type": run.graph[node_id]["class_type"]}
            for node_id in run.registry.output_nodes(run.graph)
            if node_id not in runs
        }

    # --- how it stands -----------------------------------------------------------------------------------------

    def status(self, job_id: str) -> Answer:
        """Raises JobStopped for a job that ComfyUI does not know, NetworkError."""
        run = self._runs.get(job_id) or self._adopted(job_id)
        answer = run.answer()
        if answer.status.is_terminal:
            self._forget(run)
        return answer

    def _forget(self, run: Run) -> None:
        run.close()
        self._runs.pop(run.id, None)

    def _adopted(self, job_id: str) -> Run:
        """Follow a job that another process sent, or that has ended. Raises JobStopped."""
        item = self._wire.item(job_id)
        if item is None:
            raise JobStopped(GONE.format(name=self.name, job_id=job_id), job_id=job_id)
        asked, client_id = comfy_job.read_back(item)
        run = Run(self._wire, self.node_registry(), job_id, asked, self.cancel, client_id)
        return self._runs.setdefault(job_id, run)

    # --- ending it ---------------------------------------------------------------------------------------------

    def cancel(self, job_id: str) -> None:
        """Take it out of the queue, or interrupt it, with all that it started; nothing happens to one that has ended.

        Raises JobStopped for a job that ComfyUI does not know, NetworkError.
        """
        queue, belongs = self._wire.queue(), belongs_to(job_id)
        found = [each for each, item in queue.items.items() if each == job_id or belongs(item)]
        run = self._runs.get(job_id)
        if not found:
            if run is None and self._wire.history(job_id) is None:
                raise JobStopped(GONE.format(name=self.name, job_id=job_id), job_id=job_id)
            return
        if run is not None:
            run.is_canceled = True
        for each in found:
            if each != job_id:
                # At once: it may be about to start another.
                stop = self._wire.interrupt if each in queue.running else self._wire.delete
                stop(each)
        if job_id in found:
            self._wire.delete(job_id)
            # Only if it runs: an older ComfyUI interrupts whatever does, whichever is asked for.
            if job_id in self._wire.queue().running:
                self._wire.interrupt(job_id)

    def _withdraw(self, job_id: str) -> None:
        """Cancel without an error, if that can be done soon: the error that led here is the one to report."""
        give_up = time.monotonic() + WITHDRAW_S
        with contextlib.suppress(ClientError), limited(threading.Event(), lambda: give_up - time.monotonic()):
            self.cancel(job_id)
