"""Runs one prompt after another on one ComfyUI: submits, follows, retries what deserves it, stops what must stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from settee.backends.comfy.event_socket import EventSocket, SocketLost
from settee.backends.comfy.http_api import NoAnswer
from settee.backends.comfy.memory import Forgetter, free
from settee.backends.comfy.process import Server
from settee.backends.comfy.prompts import Prompts, check, folder_of, prompt_ids
from settee.backends.comfy.watcher import ComfyDied, ComfyStalled, Limits, Watcher
from settee.base.errors import (
    ComfyError,
    ComfyUnavailable,
    ExecutionFailed,
    OutOfMemory,
    WorkflowRejected,
    problem_line,
)
from settee.base.job import Cancel, Job
from settee.base.settings import Settings
from settee.comfyui.history import failure_of, located, mapping
from settee.comfyui.isolation import Salts, isolate
from settee.comfyui.messages import ImageEvent, Report
from settee.comfyui.node_registry import UNKNOWN
from settee.comfyui.problems import explain, explained
from settee.comfyui.workflow import Workflow, own_node

log = logging.getLogger(__name__)


@dataclass
class Ended:
    """A job's prompts that succeeded: the one that was submitted, and all that its nodes started."""

    #: The folder below output that its nodes wrote to.
    prefix: str
    #: History's, of each prompt.
    outputs: list[dict[str, Any]] = field(default_factory=list)
    #: What came over the socket, previews apart; more may have been sent if ``lost_messages``.
    pictures: list[ImageEvent] = field(default_factory=list)
    lost_messages: bool = False
    #: True if nothing else has run on the server: whatever lay in its output folder before this was asked is the job's.
    is_alone: Callable[[], bool] = lambda: False
    #: Output nodes that ComfyUI refused and did not run (allow_partial).
    refused: Collection[str] = ()
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Hooks:
    """Who hears of a running prompt."""

    #: The workflow is about to be submitted, and an earlier attempt, or others, may have written to its folders.
    on_dirty: Callable[[], object]
    on_submitted: Callable[[], None]
    #: ComfyUI is waited for, which may take long.
    on_wait: Callable[[], None]
    on_report: Callable[[Report], None]


class Session:
    """The one user of a server. Not thread-safe: the engine lets one job in at a time."""

    def __init__(self, server: Server, settings: Settings, note: Callable[[str], None]) -> None:
        """``note`` as in Prompts."""
        self._server = server
        self._settings = settings
        self._socket: EventSocket | None = None
        self.registry = UNKNOWN
        self._known_generation = -1
        self._expanding: set[str] = set()
        self.forgetter = Forgetter(server.client)
        self.prompts = Prompts(server, self.forgetter, settings, note)

    # --- readiness ----------------------------------------------------------------------------------------

    def ready(self, cancel: Cancel, deadline: float, on_wait: Callable[[], None]) -> None:
        """Return once ComfyUI answers, is idle of our prompts, and its registry is known; ``on_wait`` as in Hooks.

        Raises ComfyUnavailable, JobCanceled or JobTimeout (the deadline is in time.monotonic()).
        """
        is_known = self._known_generation == self._server.generation and self._server.is_running()
        if is_known and not self.prompts.leftovers and not self._server.executor_died:
            return
        if self._server.executor_died and self._server.is_running():
            self._server.restart("the thread that runs prompts has ended")
        limit = min(self.patience_s, max(0.0, deadline - time.monotonic()))
        on_wait()
        try:
            self._server.wait_ready(limit, cancel, for_job=True)
        except ComfyUnavailable:
            check(cancel, deadline)
            raise
        if not self.prompts.stop_leftovers():
            raise ComfyUnavailable("ComfyUI does not stop an earlier job: try again later, or restart ComfyUI")
        generation = self._server.generation
        self.refresh_registry()
        self._known_generation = generation

    @property
    def patience_s(self) -> float:
        """Our own server may still be starting; an external one must answer within COMFY_UNRESPONSIVE_S."""
        return self._settings.comfy_start_timeout_s if self._server.is_ours else self._settings.comfy_unresponsive_s

    def free(self) -> None:
        """Have ComfyUI unload its models and drop what it has cached, before the next prompt. Raises ComfyError."""
        self.forgetter.add(free(self._server.client, timeout_s=self._settings.comfy_unresponsive_s))

    def refresh_registry(self) -> None:
        self.registry = self._server.client.node_registry()

    # --- one job -------------------------------------------------------------------------------------------

    def run(self, job: Job, graph: Workflow, salts: Salts, *, cancel: Cancel, deadline: float, hooks: Hooks) -> Ended:
        """Run a graph to its end; ``salts`` as in isolation.isolate.

        A prompt that ComfyUI's death took with it is submitted once more on the restarted server, and one that ran
        out of memory once more after POST /free. When this raises, nothing of the job runs on any more.
        """
        warnings: list[str] = []
        died = ran_out = False
        for prompt_id in prompt_ids(job.prompt_id):
            try:
                ended = self._attempt(job, prompt_id, graph, salts, cancel=cancel, deadline=deadline, hooks=hooks)
                ended.warnings[:0] = warnings
                return ended
            except ComfyDied as error:
                self._recover(error)
                where = located(error.node_id, graph) if error.node_id else "this workflow"
                if error.is_fatal:
                    raise ExecutionFailed(f"ComfyUI cannot run {where}: {error.message}") from error
                if died:
                    raise ComfyUnavailable(
                        f"ComfyUI went away twice while it ran {where}: {error.message}",
                        details={"log": self._server.log_tail()},
                    ) from error
                died = True
                warnings.append(f"the workflow ran twice: {error.message}")
                self._await_return(error, cancel, deadline, hooks)
            except OutOfMemory:
                if ran_out:
                    raise
                ran_out = True
                warnings.append("the workflow ran twice: the first time it ran out of memory")
                log.warning("job %s ran out of memory; freeing memory for one more try", job.id)
                self.free()
        raise AssertionError("each cause is tried again once")

    def _attempt(
        self, job: Job, prompt_id: str, graph: Workflow, salts: Salts, *, cancel: Cancel, deadline: float, hooks: Hooks
    ) -> Ended:
        # Asked before the output folder is wiped: what lies there later was made since.
        earlier = set() if self._server.is_ours else self.prompts.ended()
        if not self._server.is_ours or prompt_id != job.prompt_id:
            hooks.on_dirty()
        prefix = folder_of(prompt_id)
        isolated = isolate(
            graph,
            self.registry,
            prefix,
            salts,
            previews=job.request.delivery.include_temp,
            expanding=self._expanding,
        )
        ended = Ended(prefix)
        check(cancel, deadline)
        socket = self._open_socket()
        watch = partial(self._watcher, socket, isolated, ended, hooks.on_report)
        watcher = watch(prompt_id)
        try:
            if socket.remaining:
                self.prompts.stop_strays(socket.client_id)
            socket.peak = 0
            refused = self.prompts.submit(
                isolated,
                prompt_id,
                socket.client_id,
                extra_data=self._extra_data(job),
                allow_partial=job.request.allow_partial,
                cancel=cancel,
                deadline=deadline,
            )
            hooks.on_submitted()
            known, following = {prompt_id}, [prompt_id]
            while following:
                if following[0] != prompt_id:
                    watcher = watch(following[0], is_told=False)
                entry = watcher.wait(cancel, deadline)
                ended.outputs.append(mapping(entry.get("outputs")))
                self._note_expanding(isolated, ended.outputs[-1])
                failure = failure_of(mapping(entry.get("status")), graph, self.registry, job.request.extra_data)
                if failure is not None:
                    raise failure
                ended.lost_messages |= watcher.lost_messages
                started = self._started(prompt_id, known, socket, cancel, deadline) if watcher.others_wait else []
                for each in started:
                    self.forgetter.add(each)
                known.update(started)
                following = [*following[1:], *started]
            was_alone = len(known) == socket.peak == 1 and socket.pristine and socket.is_open
            ended.is_alone = lambda: self._server.is_ours or (was_alone and self.prompts.are_only(known | earlier))
        except ComfyDied as error:
            error.node_id = watcher.node_id
            if not self._server.is_ours:
                # It may only have been frozen: it must not go on with this when it wakes.
                self.prompts.leftovers[prompt_id] = socket.client_id
            raise
        except WorkflowRejected as error:
            raise explained(error, graph, self.registry) from error
        except BaseException:
            # Failed, canceled, out of time or lost: whatever it is, the GPU must not go on with it.
            may_yet_come = prompt_id in self.prompts.leftovers
            self.prompts.stop(prompt_id, socket.client_id)
            if may_yet_come:
                self.prompts.leftovers[prompt_id] = socket.client_id
            raise
        finally:
            if not watcher.ended_by_event or not socket.pristine:
                self._drop_socket()
            self.forgetter.add(prompt_id)
        self.forgetter.begin()
        if len(known) > 1:
            ended.warnings.append(
                f"the workflow started {len(known) - 1} more prompt(s), whose outputs are among these"
            )
        ended.refused = {
            own_node(graph, node_id)
            for at, error in refused.items()
            for node_id in (at, *mapping(error).get("dependent_outputs", ()))
        }
        ended.warnings += [
            f"not run (allow_partial): {problem_line(problem)}" for problem in explain(refused, graph, self.registry)
        ]
        return ended

    def _note_expanding(self, graph: Workflow, outputs: Mapping[str, Any]) -> None:
        """Remember classes whose nodes became others with outputs: nothing in the registry tells them."""
        for node_id in outputs.keys() - graph.keys():
            if (own := own_node(graph, node_id)) in graph:
                self._expanding.add(graph[own]["class_type"])

    def _watcher(
        self,
        socket: EventSocket,
        graph: Workflow,
        ended: Ended,
        on_report: Callable[[Report], None],
        prompt_id: str,
        *,
        is_told: bool = True,
    ) -> Watcher:
        senders = self.registry.picture_senders(graph)

        def on_image(picture: ImageEvent) -> None:
            # A node that another one expanded into is not in the graph.
            if not picture.is_preview and (picture.node_id in senders or picture.node_id not in graph):
                ended.pictures.append(picture)

        return Watcher(
            self._server.client,
            socket,
            prompt_id,
            graph,
            limits=Limits(
                unresponsive_s=self._settings.comfy_unresponsive_s,
                stall_s=self._settings.comfy_stall_s,
                history_s=self._settings.comfy_history_s,
            ),
            check_server=self._watchdog(self._server.generation, prompt_id),
            owns_queue=self._server.is_ours,
            on_report=on_report,
            on_image=on_image,
            may_send=senders,
            is_told=is_told,
        )

    def _started(
        self, prompt_id: str, known: set[str], socket: EventSocket, cancel: Cancel, deadline: float
    ) -> list[str]:
        """The prompts that those known started: all of them, as one may end unseen while another is followed."""
        give_up = time.monotonic() + self._settings.comfy_unresponsive_s
        check_server = self._watchdog(self._server.generation, prompt_id)
        while True:
            check(cancel, deadline)
            check_server()
            try:
                return self.prompts.started(prompt_id, socket.client_id, known)
            except NoAnswer as error:
                if time.monotonic() >= give_up:
                    raise ComfyDied(error.message) from error
                cancel.wait(0.0 if error.timed_out else 0.2)

    def _extra_data(self, job: Job) -> dict[str, Any]:
        key = job.request.comfy_org_api_key or self._settings.comfy_org_api_key
        own = {} if key is None else {"api_key_comfy_org": key.get_secret_value()}
        return {**job.request.extra_data, **own}

    # --- trouble -------------------------------------------------------------------------------------------

    def _recover(self, error: ComfyDied) -> None:
        """Make sure that what is left of a ComfyUI that failed us is gone; its supervisor starts the next one."""
        self._drop_socket()
        self._known_generation = -1
        if error.needs_restart and self._server.is_ours and self._server.is_running():
            self._server.restart(error.message)

    def _await_return(self, error: ComfyDied, cancel: Cancel, deadline: float, hooks: Hooks) -> None:
        try:
            self.ready(cancel, deadline, hooks.on_wait)
        except (ComfyUnavailable, NoAnswer) as unavailable:
            raise ComfyUnavailable(
                f"{error.message}, and it did not come back: {unavailable.message}", details=unavailable.details
            ) from unavailable

    def _watchdog(self, generation: int, prompt_id: str) -> Callable[[], None]:
        """A check that raises when the server with this generation number runs the prompt no more."""

        def check() -> None:
            if self._server.generation != generation or not self._server.is_running():
                raise ComfyDied("ComfyUI's process ended while it ran the workflow")
            if self._server.executor_died:
                stalled = ComfyStalled("the thread of ComfyUI that runs prompts ended")
                # One that still waits for its turn did not end it.
                stalled.is_fatal = not self._still_waits(prompt_id)
                raise stalled

        return check

    def _still_waits(self, prompt_id: str) -> bool:
        try:
            return prompt_id in self._server.client.queue(timeout_s=2).pending
        except ComfyError:
            return False

    # --- the socket ------------------------------------------------------------------------------------------

    def _open_socket(self) -> EventSocket:
        """The socket of the last job when it is still good, else a new one; without any, polling has to do."""
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
        self.forgetter.close()
        self.prompts.close()
