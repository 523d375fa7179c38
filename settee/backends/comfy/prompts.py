"""The prompts of a job: the one that was submitted, and all that its nodes start.

Batch managers of video packs put the prompt that runs into ComfyUI's queue once more, under a new id and ahead of all
others, and only the last one saves; other nodes post a graph of their own to POST /prompt. All of them belong to the
job: they are followed to their ends, and nothing of them runs on when the job has failed or was canceled. What ComfyUI
keeps of them afterwards (history, models, caches) is dropped.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

from settee.backends.backend import Limits
from settee.backends.comfy.comfy_client import ComfyDied, NoAnswer
from settee.backends.comfy.process import Server
from settee.base.errors import ComfyError, JobCanceled, JobTimeout, WorkflowRejected
from settee.base.json_io import dumps
from settee.base.settings import Settings
from settee.base.threads import Call
from settee.comfyui.follower import started
from settee.comfyui.history import mapping
from settee.comfyui.workflow import Workflow

log = logging.getLogger(__name__)

#: A server that refuses connections for this long is not there, and runs nothing.
GONE_AFTER_S = 2.0
#: The newest entries of history in which started prompts are looked for: one that ran may have ended already.
RECENT = 50
#: The same, for prompts that no one has followed.
LEFT = 1000
#: So many show whether another prompt has ended since a job began.
NEWEST = 10
#: The first time, once after ComfyUI went away, and once after it ran out of memory.
MAX_ATTEMPTS = 3
#: A prompt of no consequence: two of ComfyUI's core nodes. What it leaves in temp is wiped with the job's own.
_NOTHING = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 1, "height": 1, "batch_size": 1, "color": 0}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}


def prompt_ids(first: str) -> Iterator[str]:
    """Yield every id that a job may run under, in order; ``first`` is its own, a UUID.

    Each attempt has another, since history may hold the one before. They follow from the first, so that the worker
    after one that was killed can take back the one that runs.
    """
    yield first
    for number in range(1, MAX_ATTEMPTS):
        yield str(uuid.uuid5(uuid.UUID(first), str(number)))


def folder_of(prompt_id: str) -> str:
    """Return the folder, within ComfyUI's output and temp folders, that a prompt writes to."""
    return f"settee-{prompt_id[:13]}"


class Prompts:
    """The part of a server's queue and history that is ours."""

    def __init__(self, server: Server, settings: Settings, note: Callable[[str], None]) -> None:
        """``note`` keeps what :meth:`inherit` takes, for the worker that comes after one that was killed."""
        self._server, self._client, self._note = server, server.client, note
        self._interrupt_s, self._unresponsive_s = settings.comfy_interrupt_s, settings.comfy_unresponsive_s
        #: Prompts that would not stop on a server we cannot restart, and the client ids of what they start.
        self.leftovers: dict[str, str | None] = {}
        #: Prompts to forget once they have ended.
        self._used: list[str] = []
        # In a thread: for a small job it takes as long as all that comes after the execution.
        self._forgetting: list[Call[None]] = []

    # --- submitting ----------------------------------------------------------------------------------------

    def submit(
        self,
        graph: Workflow,
        prompt_id: str,
        client_id: str,
        limits: Limits,
        *,
        extra_data: dict[str, Any],
        allow_partial: bool,
    ) -> dict[str, Any]:
        """POST /prompt; return the node errors of a prompt that was taken in part.

        Raises WorkflowRejected, also for a prompt taken in part unless that is allowed; JobCanceled or JobTimeout once
        what it brings can be stopped; ComfyDied when no answer comes.
        """
        if not self._server.is_ours:  # ours ends with its worker
            self._note(f"{prompt_id} {client_id}")

        # In a thread: ComfyUI validates before it answers, which may take as long as its custom nodes like.
        submit, timeout_s = self._client.submit, self._unresponsive_s
        answer = Call(lambda: submit(graph, prompt_id, client_id, extra_data, timeout_s), name="comfyui-submit")
        try:
            node_errors = answer.result(check=limits.check)
        except (JobCanceled, JobTimeout):
            if not answer.ended.wait(self._interrupt_s):
                if self._server.is_ours:
                    self._server.restart("a canceled job is still being submitted")
                else:
                    self.leftovers[prompt_id] = client_id
            raise
        except NoAnswer as error:
            # It may have been taken, and with the answer its node_errors are lost: take it back.
            if self._server.is_running() and not error.timed_out and not error.refused:
                self.stop(prompt_id)
            message = f"{error.message} (the answer to POST /prompt did not come)"
            raise ComfyDied(message, needs_restart=error.timed_out) from error
        if node_errors and not allow_partial:
            # 200 all the same: ComfyUI runs the valid outputs, and reports nothing about the others later.
            self.stop(prompt_id)
            raise WorkflowRejected(details={"error": {}, "node_errors": node_errors})
        return node_errors

    # --- whose prompts are in queue and history ------------------------------------------------------------

    def started(self, prompt_id: str, client_id: str | None, known: Collection[str], newest: int = RECENT) -> list[str]:
        """Return ids of the prompts that this one and its like started, beyond those ``known``: those that ended first.
        They are forgotten with it. Raises ComfyError, NoAnswer.
        """

        def belongs(item: Any) -> bool:
            return self._belongs(item, prompt_id, client_id)

        found = started(self._client, known, belongs, newest, timeout_s=2)
        self._used += found
        return found

    def _belongs(self, item: Any, prompt_id: str, client_id: str | None = None) -> bool:
        """Return True for a prompt of the same job: ``item`` is ``[number, id, prompt, extra_data, …]``.

        A server of our own runs nothing else. On any other a started prompt carries our client id, or the folder that
        isolation wrote into the graph it repeats.
        """
        if not isinstance(item, (list, tuple)) or len(item) < 4:
            return False
        sender = mapping(item[3]).get("client_id")
        if self._server.is_ours:
            return bool(sender != item[1])  # which only ``free`` is
        return (client_id is not None and sender == client_id) or folder_of(prompt_id).encode() in dumps(item[2])

    def ended(self) -> set[str]:
        """Return ids of the newest prompts in history, everyone's; none where ComfyUI does not answer."""
        try:
            return set(self._client.recent(NEWEST, timeout_s=2))
        except ComfyError:
            return set()

    def are_only(self, known: set[str]) -> bool:
        """Return False if any other prompt waits, runs or ended lately, or if ComfyUI does not answer."""
        try:
            return {*self._client.queue(timeout_s=2).items, *self._client.recent(NEWEST, timeout_s=2)} <= known
        except ComfyError:
            return False

    # --- stopping ------------------------------------------------------------------------------------------

    def stop(self, prompt_id: str, client_id: str | None = None) -> None:
        """Take a prompt and all that it started out of ComfyUI, waiting or running, and return when they are out.

        On a server that is not ours, those with graphs of their own are known by ``client_id``. A prompt that does not
        leave within COMFY_INTERRUPT_S costs ComfyUI a restart; on a server that is not ours it is remembered, and no
        job starts before it is gone.
        """
        give_up, pause = time.monotonic() + self._interrupt_s, 0.02
        is_known = prompt_id in self.leftovers
        client_id = self.leftovers.pop(prompt_id, None) or client_id
        stopping = {prompt_id}
        while True:
            try:
                for each in stopping:
                    self._client.delete(each, timeout_s=2)
                    self._client.interrupt(each, timeout_s=2)
                items = self._client.queue(timeout_s=2).items
                left = {i for i, item in items.items() if i == prompt_id or self._belongs(item, prompt_id, client_id)}
                if not left:
                    return
                for each in left - stopping:
                    self.forget(each)
                    pause = 0.001  # it may start another as soon as this one was started
                stopping = left
            except ComfyError as error:
                log.debug("ComfyUI does not take the stop yet: %s", error)
            if self._server.is_ours and not self._server.is_running():
                return
            if self._client.refused_for_s > GONE_AFTER_S:
                return  # nothing listens any more, so nothing runs
            if time.monotonic() >= give_up:
                break
            # No message reports that a prompt left the queue, so the queue is asked, ever less often.
            time.sleep(pause)
            pause = min(pause * 1.5, 0.5)
        if self._server.is_ours:
            self._server.restart(f"a stopped job did not end within {self._interrupt_s:g} s")
            return
        self.leftovers |= dict.fromkeys({prompt_id, *stopping}, client_id)
        if not is_known:
            log.error("ComfyUI did not stop a job within %g s", self._interrupt_s)

    def stop_strays(self, client_id: str) -> None:
        """Stop what an earlier job's nodes started after that job had ended: on a server of ours nothing else is left.

        Raises ComfyError, NoAnswer.
        """
        for each, item in self._client.queue(timeout_s=2).items.items():
            if self._belongs(item, each, client_id):
                self.stop(each, client_id)

    def inherit(self, prompt_id: str, client_id: str | None = None) -> None:
        """Take over a prompt that an earlier worker left: it is stopped before the first job, and forgotten."""
        self.leftovers[prompt_id] = client_id

    def stop_leftovers(self) -> bool:
        """Ask each of them once more to stop; True when none is left."""
        for prompt_id, client_id in tuple(self.leftovers.items()):
            self.stop(prompt_id)
            self.forget(prompt_id)  # it may have had no entry in history before
            with contextlib.suppress(ComfyError):
                self.started(prompt_id, client_id, {prompt_id}, LEFT)
        return not self.leftovers

    # --- forgetting ----------------------------------------------------------------------------------------

    def free(self) -> None:
        """Unload models and drop the execution cache before any prompt that is submitted after this. Raises ComfyError.

        POST /free only sets flags. The thread that runs prompts looks at them after a prompt, or when it is woken with
        nothing to run: a prompt that arrives before it has woken runs first, on the old cache. So a prompt of no
        consequence goes ahead; whichever way that race ends, the flags are dealt with before the one after it.
        """
        self._client.free()
        own = str(uuid.uuid4())
        self._client.submit(_NOTHING, own, own, {}, self._unresponsive_s)
        self.forget(own)

    def forget(self, prompt_id: str) -> None:
        """Take a prompt (its texts too) out of ComfyUI's history the next time, when it will have ended."""
        self._used.append(prompt_id)

    def begin_to_forget(self) -> None:
        used, self._used = self._used, []
        if used:
            self._forgetting.append(Call(partial(self._forget, used), name="comfyui-forget"))

    def settle(self) -> None:
        """Return when all that was used is forgotten, or could not be (2 s a prompt at most)."""
        self.begin_to_forget()
        while self._forgetting:
            self._forgetting.pop().result()

    def _forget(self, prompt_ids: list[str]) -> None:
        for prompt_id in prompt_ids:
            try:
                self._client.forget(prompt_id)
            except ComfyError as error:
                # A server that died has forgotten by itself.
                log.warning("a prompt stays in ComfyUI's history: %s", error)
