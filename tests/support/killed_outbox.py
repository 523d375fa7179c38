"""An outbox in a process of its own, for tests that kill it: python -m tests.support.killed_outbox ARGUMENTS.

ARGUMENTS is JSON: ``folder``; ``urls``; ``jobs``, ids that are begun and ended one after another; ``kill``, a moment of
the last job at which the process kills itself (one of MOMENTS), or null. Prints each id when it is begun, the
interrupted job (``interrupted <id>``) before them, and ``done`` when the outbox is empty.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from settee.base.job import Status
from settee.doors.agent.intake import report_interrupted
from settee.service.callbacks import Outbox
from settee.service.store import Callback, Store
from settee.service.webhooks import Answer, WebhookSender
from tests.support.outbox import ReportedJob, succeed
from tests.support.waiting import eventually

#: Where a kill may fall: the last three while it is delivered.
MOMENTS = ("begun", "running", "before-end", "before-commit", "after-end", "before-post", "after-post", "after-remove")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Sender:
    """Kills around the post of the terminal callback."""

    def __init__(self, kill: str | None) -> None:
        self.kill = kill
        self._sender = WebhookSender()

    async def __call__(self, post: Callback, timeout_s: float) -> Answer:
        is_terminal = post.url.endswith("completion")
        if is_terminal and self.kill == "before-post":
            die()
        answer = await self._sender(post, timeout_s)
        if is_terminal and self.kill == "after-post":
            die()
        return answer


def say(line: str) -> None:
    print(line, flush=True)


def killing(store: Store, name: str, before: bool, after: bool) -> None:
    """Make a method of the store the last thing that happens, or what no longer happens."""
    method: Callable[..., Any] = getattr(store, name)

    def run(*args: Any, **more: Any) -> Any:
        if before:
            die()
        value = method(*args, **more)
        if after:
            die()
        return value

    setattr(store, name, run)


def kill_at_commit(store: Store) -> None:
    assert store._db is not None
    store._db.set_trace_callback(lambda statement: die() if statement == "COMMIT" else None)


def main() -> None:
    given = json.loads(sys.argv[1])
    kill: str | None = given.get("kill")
    sender, store = Sender(None), Store(Path(given["folder"]))
    store.open()
    interrupted = report_interrupted(store)
    outbox = Outbox(store, sender=sender, timeout_s=2, retry_backoff_s=0.01, longest_pause_s=0.05)
    outbox.start()
    for attempt in interrupted:
        say(f"interrupted {attempt.job_id}")
    for job_id in given["jobs"]:
        job = ReportedJob(outbox, given["urls"], job_id, heartbeat_s=0.01)
        say(job_id)
        is_last = job_id == given["jobs"][-1]
        if is_last:
            sender.kill = kill
            if kill == "begun":
                die()
            killing(store, "end", kill == "before-end", kill == "after-end")
            killing(store, "remove", False, kill == "after-remove")
        job.state(Status.PREPARING)
        job.state(Status.RUNNING)
        if is_last and kill == "running":
            die()
        if is_last and kill == "before-commit":
            kill_at_commit(store)
        succeed(job)
    eventually(lambda: outbox.pending == 0, 60)
    outbox.close(5)
    say("done")


if __name__ == "__main__":
    main()
