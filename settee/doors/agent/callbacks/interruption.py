"""What is said of a job that ran when its agent went away. Pure."""

from __future__ import annotations

from datetime import datetime

from settee.base.errors import SetteeError
from settee.base.job import Status
from settee.doors.agent.callbacks import payloads
from settee.doors.agent.callbacks.letters import Running
from settee.doors.agent.callbacks.posting import Post

#: The heartbeat_seq of its last status: above that of any heartbeat before, which nobody wrote down.
SEQ = 1_000_000_000


class AgentRestarted(SetteeError):
    """The agent was stopped while the job ran, and nothing of it was kept: send it again."""


def report(running: Running, moment: datetime) -> Post | None:
    """FAILED with SYSTEM_ERROR; to the status address when there is none for failures, and None without either."""
    error, urls = AgentRestarted(), running.urls
    about = payloads.About(job_id=running.job_id, client_id=running.client_id)
    if urls.failure is not None:
        body = payloads.failure(about, moment, running.started_at, error, prompt_id=running.prompt_id)
        return Post(urls.failure, payloads.terminal_key(running.job_id, Status.FAILED), payloads.as_json(body))
    if urls.status is not None:
        body = payloads.status(
            about, Status.FAILED, SEQ, moment, prompt_id=running.prompt_id, reason=payloads.reason(error)
        )
        return Post(urls.status, payloads.status_key(running.job_id, Status.FAILED, SEQ), payloads.as_json(body))
    return None
