"""Ctrl-C: what becomes of jobs that are on their way. A job costs money until somebody ends it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from settee.client import streams
from settee.client.endpoint import Job
from settee.client.errors import ClientError, JobStopped
from settee.client.following import NOT_KEPT, ways_back

#: Between two looks at whether something has ended: a wait without limit would not let Ctrl-C through everywhere.
LOOK_S = 0.5
#: What takes longer is worth a word.
MOMENT_S = 0.3
#: How long threads get to end by themselves after Ctrl-C: one that is not done then leaves at most half a file.
END_S = 2.0
SENDING = "stopping when it is known whether the job was taken (Ctrl-C again: at once)"


def interrupted(jobs: Sequence[Job]) -> JobStopped:
    """Ctrl-C: a job costs money until somebody ends it, and may be wanted all the same. What came of the question.

    With nobody at a terminal to be asked, the jobs are ended. Nobody is asked about what cannot be had.
    """
    if not any(job.endpoint.target.keeps(job.id) for job in jobs):
        return _stopped(left_as_is(jobs), jobs)
    what, them = (f"job {jobs[0].id}", "it") if len(jobs) == 1 else (f"{len(jobs)} jobs", f"{len(jobs)} jobs")
    problems, left = [], list(jobs)
    try:
        if not _asked(f"Cancel {them} there? [Y/n] (Ctrl-C again: leave as is) "):
            return _stopped(left_as_is(jobs), jobs)
        for job in jobs:
            try:
                job.cancel()
                left.remove(job)
            except ClientError as error:
                problems.append(error.message)
    except KeyboardInterrupt:
        streams.say("")
    if not left:
        return _stopped(f"{what} asked to end", jobs)
    return _stopped("; ".join([*dict.fromkeys(problems), left_as_is(left)]), jobs)


def left_as_is(jobs: Sequence[Job]) -> str:
    ids = ", ".join(job.id for job in jobs)
    if not any(job.endpoint.target.keeps(job.id) for job in jobs):
        return f"job {ids} left: {NOT_KEPT}" if len(jobs) == 1 else f"{len(jobs)} jobs left ({ids}): {NOT_KEPT}"
    if len(jobs) == 1:
        return f"job {ids} left as it is: {ways_back(ids)}"
    return f"{len(jobs)} jobs left to run there ({ids}): the same command again picks them up"


def _stopped(message: str, jobs: Sequence[Job]) -> JobStopped:
    return JobStopped(message, job_id=jobs[0].id, details={"jobs": [job.id for job in jobs]})


def _asked(question: str) -> bool:
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    sys.stderr.write(question)
    sys.stderr.flush()
    return not sys.stdin.readline().strip().lower().startswith("n")
