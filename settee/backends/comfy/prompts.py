"""The prompts of a job: the one that was submitted, and all that its nodes start.

Batch managers of video packs put the prompt that runs into ComfyUI's queue once more, under a new id and ahead of all
others, and only the last one saves; other nodes post a graph of their own to POST /prompt. All of them belong to the
job: they are followed to their ends, and nothing of them runs on when the job has failed or was canceled.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeout
from itertools import dropwhile
from typing import Any

from settee.backends.comfy.http_api import Client, NoAnswer, dumps
from settee.backends.comfy.memory import Forgetter
from settee.backends.comfy.process import Server
from settee.backends.comfy.watcher import ComfyDied
from settee.base.errors import ComfyError, JobCanceled, JobTimeout, WorkflowRejected
from settee.base.job import Cancel
from settee.base.settings import Settings
from settee.comfyui.history import mapping
from settee.comfyui.workflow import Workflow

log = logging.getLogger(__name__)

#: How often a cancel is looked at while ComfyUI validates, seconds.
ANSWER_POLL_S = 0.25
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


def prompt_ids(first: str) -> Iterator[str]:
    """Yield every id that a job may run under, in order; ``first`` is its own, a UUID.

    Each attempt has another, since history may hold the one before. They follow from the first, so that the worker
    after one that was killed can take back the one that runs.
    """
    yield first
    for number in range(1, MAX_ATTEMPTS):
        yield str(uuid.uuid5(uuid.UUID(first), str(number)))


def folder_of(prompt_id: str) -> str:
    """The folder, within ComfyUI's output and temp folders, that a prompt writes to."""
    return f"settee-{prompt_id[:13]}"


class Prompts:
    """What of a server's queue and history is ours."""

    def __init__(self, server: Server, forgetter: Forgetter, settings: Settings, note: Callable[[str], None]) -> None:
        """``note`` keeps what :meth:`inherit` takes, for the worker that comes after one that was killed."""
        self._server, self._note = server, note
        self._client: Client = server.client
        self._forgetter = forgetter
        self._interrupt_s, self._unresponsive_s = settings.comfy_interrupt_s, settings.comfy_unresponsive_s
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="comfyui-submit")
        #: Prompts that would not stop on a server we cannot restart, and the client ids of what they start.
        self.leftovers: dict[str, str | None] = {}

    def submit(
        self,
        graph: Workflow,
        prompt_id: str,
        client_id: str,
        *,
        extra_data: dict[str, Any],
        allow_partial: bool,
        cancel: Cancel,
        deadline: float,
    ) -> dict[str, Any]:
        """POST /prompt; return the node errors of a prompt that was taken in part.

        Raises WorkflowRejected, also for a prompt taken in part unless that is allowed; JobCanceled, JobTimeout (the
        deadline is in time.monotonic()); ComfyDied when no answer comes.
        """
        if not self._server.is_ours:  # ours ends with its worker
            self._note(f"{prompt_id} {client_id}")
        try:
            # In a thread: ComfyUI validates before it answers, which may take as long as its custom nodes like.
            answer = self._pool.submit(
                self._client.submit,
                graph,
                prompt_id=prompt_id,
                client_id=client_id,
                extra_data=extra_data,
                timeout_s=self._unresponsive_s,
            )
            node_errors = self._await_answer(answer, prompt_id, client_id, cancel, deadline)
        except NoAnswer as error:
            # It may have been taken, and with the answer its node_errors are lost: take it back.
            if self._server.is_running() and not error.timed_out and not error.refused:
                self.stop(prompt_id)
            died = ComfyDied(f"{error.message} (the answer to POST /prompt did not come)")
            died.needs_restart = error.timed_out
            raise died from error
        if node_errors and not allow_partial:
            # 200 all the same: ComfyUI runs the good outputs, and says nothing of the others afterwards.
            self.stop(prompt_id)
            raise WorkflowRejected(details={"error": {}, "node_errors": node_errors})
        return node_errors

    def _await_answer(
        self, answer: Future[dict[str, Any]], prompt_id: str, client_id: str, cancel: Cancel, deadline: float
    ) -> dict[str, Any]:
        """The answer to POST /prompt; raises JobCanceled or JobTimeout once what it brings can be stopped."""
        while True:
            try:
                return answer.result(timeout=ANSWER_POLL_S)
            except FutureTimeout:
                if not cancel.is_set() and time.monotonic() < deadline:
                    continue
            done, _ = wait([answer], timeout=self._interrupt_s)
            if not done and self._server.is_ours:
                self._server.restart("a canceled job is still being submitted")
            elif not done:
                self.leftovers[prompt_id] = client_id
            check(cancel, deadline)

    def started(self, prompt_id: str, client_id: str | None, known: set[str], newest: int = RECENT) -> list[str]:
        """Ids of the prompts that this one and its like started, beyond those ``known``: those that ended first.

        Raises ComfyError, NoAnswer.
        """
        # The queue first: what leaves it meanwhile is in history then.
        queue = self._client.queue(timeout_s=2).items
        recent = self._client.recent(newest, timeout_s=2)
        # History is in the order of ends: what ended before this one, an earlier job's nodes had started.
        since = dropwhile(lambda each: each not in known, recent) if known & recent.keys() else recent
        items = {each: mapping(recent[each]).get("prompt") for each in since} | dict(queue)
        return [each for each, item in items.items() if each not in known and self._belongs(item, prompt_id, client_id)]

    def _belongs(self, item: Any, prompt_id: str, client_id: str | None = None) -> bool:
        """True for a prompt of the same job: ``item`` is ``[number, id, prompt, extra_data, …]``.

        A server of our own runs nothing else. On any other a started prompt carries our client id, or the folder that
        isolation wrote into the graph it repeats.
        """
        if not isinstance(item, (list, tuple)) or len(item) < 4:
            return False
        sender = mapping(item[3]).get("client_id")
        if self._server.is_ours:
            return bool(sender != item[1])  # which only ``free`` is
        return (client_id is not None and sender == client_id) or folder_of(prompt_id).encode() in dumps(item[2])

    def stop(self, prompt_id: str, client_id: str | None = None) -> None:
        """Take a prompt and all that it started out of ComfyUI, waiting or running, and return when they are out.

        On a server that is not ours ``client_id`` tells those with graphs of their own.
        One that does not leave within COMFY_INTERRUPT_S costs ComfyUI a restart; on a server that is not ours it is
        remembered, and no job starts before it is gone.
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
                    self._forgetter.add(each)
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
            # No message says that a prompt left the queue, so the queue is asked, ever less often.
            time.sleep(pause)
            pause = min(pause * 1.5, 0.5)
        if self._server.is_ours:
            self._server.restart(f"a stopped job did not end within {self._interrupt_s:g} s")
        else:
            self.leftovers |= dict.fromkeys({prompt_id, *stopping}, client_id)
            if not is_known:
                log.error("ComfyUI did not stop a job within %g s", self._interrupt_s)

    def ended(self) -> set[str]:
        """Ids of the newest prompts in history, everyone's; none where ComfyUI does not say."""
        try:
            return set(self._client.recent(NEWEST, timeout_s=2))
        except ComfyError:
            return set()

    def are_only(self, known: set[str]) -> bool:
        """False if any other prompt waits, runs or ended lately, or if ComfyUI does not say."""
        try:
            return {*self._client.queue(timeout_s=2).items, *self._client.recent(NEWEST, timeout_s=2)} <= known
        except ComfyError:
            return False

    def stop_strays(self, client_id: str) -> None:
        """Stop what an earlier job's nodes started after that job had ended: on a server of ours nothing else is left.

        Raises ComfyError, NoAnswer.
        """
        for each, item in self._client.queue(timeout_s=2).items.items():
            if self._belongs(item, each, client_id):
                self.stop(each, client_id)

    def inherit(self, prompt_id: str, client_id: str | None = None) -> None:
        """A prompt that a worker before this one left: stopped before the first job, and its texts forgotten."""
        self.leftovers[prompt_id] = client_id

    def settle(self, deadline: float, is_over: Callable[[], bool]) -> bool:
        """Go on asking the prompts that would not stop; True when none of them is left.

        Until ``deadline`` (in time.monotonic()), or ``is_over``, which is looked at every COMFY_INTERRUPT_S.
        """
        had_any = bool(self.leftovers)
        while self.leftovers and not is_over() and time.monotonic() < deadline:
            self.stop_leftovers()
        if had_any and not self.leftovers:
            self._forgetter.settle()
        return not self.leftovers

    def stop_leftovers(self) -> bool:
        """Ask each of them once more; True when none is left."""
        for prompt_id, client_id in tuple(self.leftovers.items()):
            self.stop(prompt_id)
            self._forgetter.add(prompt_id)  # it may have had no entry in history before
            with contextlib.suppress(ComfyError):
                for each in self.started(prompt_id, client_id, {prompt_id}, LEFT):
                    self._forgetter.add(each)
        return not self.leftovers

    def close(self) -> None:
        self._pool.shutdown()


def check(cancel: Cancel, deadline: float) -> None:
    """Raise JobCanceled or JobTimeout when a job must not go on; the deadline is in time.monotonic()."""
    if cancel.is_set():
        raise JobCanceled(cancel.reason or None)
    if time.monotonic() >= deadline:
        raise JobTimeout
