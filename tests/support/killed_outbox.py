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
from settee.doors.agent.callbacks.letters import Shelf
from settee.doors.agent.callbacks.outbox import Outbox
from settee.doors.agent.callbacks.posting import Answer, Post, Poster
from settee.doors.agent.callbacks.reporter import RenderParams, Reporter, Urls
from tests.support.waiting import eventually

#: Where a kill may fall; the last three while it is delivered.
MOMENTS = ("begun", "running", "before-put", "after-put", "after-end", "before-post", "after-post", "after-remove")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Sender:
    """Kills around the post of the terminal callback."""

    def __init__(self, kill: str | None) -> None:
        self.kill = kill
        self._poster = Poster()

    def __call__(self, post: Post, timeout_s: float) -> Answer:
        is_terminal = post.url.endswith("completion")
        if is_terminal and self.kill == "before-post":
            die()
        answer = self._poster(post, timeout_s)
        if is_terminal and self.kill == "after-post":
            die()
        return answer


def say(line: str) -> None:
    print(line, flush=True)


def killing(shelf: Shelf, name: str, before: bool, after: bool) -> None:
    """Make a method of the shelf the last thing that happens, or what no longer happens."""
    method: Callable[..., Any] = getattr(shelf, name)

    def run(*args: Any) -> Any:
        if before:
            die()
        value = method(*args)
        if after:
            die()
        return value

    setattr(shelf, name, run)


def main() -> None:
    given = json.loads(sys.argv[1])
    kill: str | None = given.get("kill")
    sender = Sender(None)
    outbox = Outbox(Path(given["folder"]), sender=sender, timeout_s=2, retry_backoff_s=0.01, longest_pause_s=0.05)
    interrupted = outbox.start()
    if interrupted is not None:
        say(f"interrupted {interrupted.job_id}")
    for job_id in given["jobs"]:
        reporter = Reporter(job_id, "agent", Urls(**given["urls"]), outbox, heartbeat_s=0.01)
        reporter.begin()
        say(job_id)
        if job_id == given["jobs"][-1]:
            sender.kill = kill
            shelf = outbox._shelf
            if kill == "begun":
                die()
            killing(shelf, "put", kill == "before-put", kill == "after-put")
            killing(shelf, "end", False, kill == "after-end")
            killing(shelf, "remove", False, kill == "after-remove")
        reporter.state(Status.PREPARING)
        reporter.state(Status.RUNNING)
        if kill == "running" and job_id == given["jobs"][-1]:
            die()
        reporter.completed(artifacts=[], params=RenderParams(seed=1))
    eventually(lambda: outbox.pending == 0, 60)
    outbox.close(5)
    say("done")


if __name__ == "__main__":
    main()
