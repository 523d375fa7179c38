"""Runs one prompt after another on one ComfyUI: submits, follows, retries what deserves it, stops what must stop."""

from __future__ import annotations

import logging
import time

from settee.backends.backend import Limits, Report
from settee.backends.comfy.comfy_client import ComfyDied
from settee.backends.comfy.process import Server
from settee.backends.comfy.prompts import Prompts, folder_of, prompt_ids
from settee.backends.comfy.watcher import Watcher
from settee.base.errors import ComfyUnavailable, ExecutionFailed, OutOfMemory, WorkflowRejected
from settee.base.job import Job, Status
from settee.base.settings import Settings
from settee.comfyui.event_socket import EventSocket, SocketLost
from settee.comfyui.history import failure_of, located, mapping
from settee.comfyui.isolation import Salts, isolate
from settee.comfyui.node_registry import UNKNOWN
from settee.comfyui.outputs import Ended
from settee.comfyui.problems import explained
from settee.comfyui.workflow import Workflow, own_node
from settee.staging.workspace import Workspace

log = logging.getLogger(__name__)


class Session:
    """The one user of a server. Not thread-safe: the engine lets one job in at a time."""

    def __init__(self, server: Server, settings: Settings, workspace: Workspace) -> None:
        self._server, self._settings, self._workspace = server, settings, workspace
        self._socket: EventSocket | None = None
        self.registry = UNKNOWN
        self._known_generation = -1
        self._expanding: set[str] = set()
        self.prompts = Prompts(server, settings, workspace.note)

    # --- readiness ----------------------------------------------------------------------------------------

    def ready(self, limits: Limits, report: Report) -> None:
        """Return once ComfyUI answers, is idle of our prompts, and its registry is known.

        Raises ComfyUnavailable, JobCanceled or JobTimeout.
        """
        server = self._server
        is_known = self._known_generation == server.generation and server.is_running()
        if is_known and not self.prompts.leftovers and not server.executor_died:
            return
        if server.executor_died and server.is_running():
            server.restart("the thread that runs prompts has ended")
        report(message="waiting for ComfyUI to answer")
        try:
            left_s = max(0.0, limits.deadline - time.monotonic())
            server.wait_ready(min(self.ready_timeout_s, left_s), limits.cancel, for_job=True)
        except ComfyUnavailable:
            limits.check()
            raise
        if not self.prompts.stop_leftovers():
            raise ComfyUnavailable("ComfyUI does not stop an earlier job: try again later, or restart ComfyUI")
        generation = server.generation
        self.refresh_registry()
        self._known_generation = generation

    @property
    def ready_timeout_s(self) -> float:
        """Our own server may still be starting; an external one must answer within COMFY_UNRESPONSIVE_S."""
        return self._settings.comfy_start_timeout_s if self._server.is_ours else self._settings.comfy_unresponsive_s

    def refresh_registry(self) -> None:
        self.registry = self._server.client.node_registry()

    # --- one job -------------------------------------------------------------------------------------------

    def run(self, job: Job, graph: Workflow, salts: Salts, limits: Limits, report: Report) -> Ended:
        """Run a graph to its end; ``salts`` as in isolation.isolate.

        A prompt that ComfyUI's death took with it is submitted once more on the restarted server, and one that ran
        out of memory once more after POST /free. When this raises, nothing of the job runs on any more.
        """
        warnings: list[str] = []
        died = ran_out = False
        for prompt_id in prompt_ids(job.prompt_id):
            try:
                ended = self._attempt(job, prompt_id, graph, salts, limits, report)
                ended.warnings[:0] = warnings
                return ended
            except ComfyDied as error:
                where = located(error.node_id, graph) if error.node_id else "this workflow"
                # What is left of a ComfyUI that failed us must be gone; its supervisor starts the next one.
                self._drop_socket()
                self._known_generation = -1
                if error.needs_restart and self._server.is_ours and self._server.is_running():
                    self._server.restart(error.message)
                if error.is_fatal:
                    raise ExecutionFailed(f"ComfyUI cannot run {where}: {error.message}") from error
                if died:
                    raise ComfyUnavailable(
                        f"ComfyUI went away twice while it ran {where}: {error.message}",
                        details={"log": self._server.log_tail()},
                    ) from error
                died = True
                warnings.append(f"the workflow ran twice: {error.message}")
                try:
                    self.ready(limits, report)
                except ComfyUnavailable as unavailable:
                    raise ComfyUnavailable(
                        f"{error.message}, and it did not come back: {unavailable.message}", details=unavailable.details
                    ) from unavailable
            except OutOfMemory:
                if ran_out:
                    raise
                ran_out = True
                warnings.append("the workflow ran twice: the first time it ran out of memory")
                log.warning("job %s ran out of memory; freeing memory for one more try", job.id)
                self.prompts.free()
        raise AssertionError("each cause is tried again once")

    def _attempt(
        self, job: Job, prompt_id: str, graph: Workflow, salts: Salts, limits: Limits, report: Report
    ) -> Ended:
        server, prompts, request = self._server, self.prompts, job.request
        # Asked before the output folder is wiped: what lies there later was made since.
        earlier = set() if server.is_ours else prompts.ended()
        if not server.is_ours or prompt_id != job.prompt_id:
            # An earlier attempt, or others, may have written there.
            self._workspace.wipe("output", "temp")
        prefix = folder_of(prompt_id)
        isolated = isolate(
            graph,
            self.registry,
            prefix,
            salts,
            previews=request.delivery.include_temp,
            expanding=self._expanding,
        )
        extra_data = dict(request.extra_data)
        if (key := request.comfy_org_api_key or self._settings.comfy_org_api_key) is not None:
            extra_data["api_key_comfy_org"] = key.get_secret_value()
        limits.check()
        socket = self._open_socket()
        senders = self.registry.picture_senders(isolated)
        watcher = Watcher(server, socket, prompt_id, isolated, self._settings, report, prompts, limits, senders=senders)
        ended = watcher.ended
        ended.prefix = prefix
        try:
            if socket.remaining:
                prompts.stop_strays(socket.client_id)
            socket.peak = 0
            refused = prompts.submit(
                isolated,
                prompt_id,
                socket.client_id,
                limits,
                extra_data=extra_data,
                allow_partial=request.allow_partial,
            )
            report(Status.SUBMITTED)
            for entry in watcher.entries():
                # Classes whose nodes became others with outputs: the registry does not show them.
                own = {own_node(isolated, node_id) for node_id in ended.outputs[-1].keys() - isolated.keys()}
                self._expanding.update(isolated[node_id]["class_type"] for node_id in own & isolated.keys())
                failure = failure_of(mapping(entry.get("status")), graph, self.registry, request.extra_data)
                if failure is not None:
                    raise failure
            known = {*watcher.known}
            was_alone = len(known) == socket.peak == 1 and socket.pristine and socket.is_open
            ended.is_alone = lambda: server.is_ours or (was_alone and prompts.are_only(known | earlier))
        except ComfyDied as error:
            error.node_id = watcher.meter.node_id
            if not server.is_ours:
                # It may only have been frozen: it must not go on with this when it wakes.
                prompts.leftovers[prompt_id] = socket.client_id
            raise
        except WorkflowRejected as error:
            raise explained(error, graph, self.registry) from error
        except BaseException:
            # Failed, canceled, out of time or lost: whatever it is, the GPU must not go on with it.
            may_yet_come = prompt_id in prompts.leftovers
            prompts.stop(prompt_id, socket.client_id)
            if may_yet_come:
                prompts.leftovers[prompt_id] = socket.client_id
            raise
        finally:
            if not watcher.ended_by_event or not socket.pristine:
                self._drop_socket()
            prompts.forget(prompt_id)
        prompts.begin_to_forget()
        ended.refuse(refused, graph, self.registry)
        return ended

    # --- the socket ------------------------------------------------------------------------------------------

    def _open_socket(self) -> EventSocket:
        """Return the socket of the last job when it is still good, else a new one; without any, polling has to do."""
        if self._socket is not None:
            try:
                self._socket.drain()
                return self._socket
            except SocketLost:
                self._drop_socket()
        self._socket = EventSocket(self._server.client.url)
        try:
            self._socket.connect()
        except SocketLost as error:
            log.warning("no event socket (%s): this job's progress comes from history and queue alone", error)
        return self._socket

    def _drop_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        self._drop_socket()
        self.prompts.settle()
