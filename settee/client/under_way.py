"""The jobs of a command that are under way, and Ctrl-C: a job costs money until it is ended.

They are sent, followed and saved in threads, while the main one only waits: a Ctrl-C in the midst of library code may
get lost, and must not come between an accepted job and the id that names it.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from settee.base.threads import Call
from settee.client import streams
from settee.client.client_errors import ClientError, JobStopped, Unsure
from settee.client.display import Display
from settee.client.endpoint import Job
from settee.client.follow import NOT_KEPT, ways_back
from settee.client.saving import Result, Saved
from settee.client.targets import Status

T = TypeVar("T")

#: What takes longer is reported, seconds; and how long a wait may be that must let Ctrl-C through on every system.
_MOMENT_S, _WAIT_S = 0.3, 0.5
#: How long threads may take to end after Ctrl-C, seconds: one that has not ended then leaves at most half a file.
_END_S = 2.0


class UnderWay:
    """The jobs of one command. A job belongs to it from :meth:`begun` until it failed, or its outputs are saved."""

    def __init__(self, display: Display) -> None:
        self.display = display
        #: Set when nothing is to be started or followed any more.
        self.stop = threading.Event()
        #: How many are being sent now; notified when one has been sent.
        self._sending = 0
        self._changed = threading.Condition()
        self._jobs: list[Job] = []
        #: Errors of those that were being sent when Ctrl-C came.
        self._unsure: list[Unsure] = []

    def run(self, work: Callable[[], T], threads: int = 1) -> list[T]:
        """Return what ``work`` returns in so many threads. Raises what it raises; JobStopped after Ctrl-C."""
        calls: list[Call[T]] = []
        try:
            calls += [Call(work, name=f"job-{number}") for number in range(threads)]
            return [call.result() for call in calls]
        except KeyboardInterrupt:
            error = self._interrupted()
            ends_at = time.monotonic() + _END_S
            with contextlib.suppress(KeyboardInterrupt):
                for call in calls:
                    call.ended.wait(max(0.0, ends_at - time.monotonic()))
            raise error from None

    def begun(self, begin: Callable[[], Job]) -> Job:
        """Return the job that ``begin`` sends, or finds."""
        with self._changed:
            self._sending += 1
        found: list[Job] = []
        try:
            found.append(begin())
            return found[0]
        except Unsure as error:
            if self.stop.is_set():
                self._unsure.append(error)
            raise
        finally:
            with self._changed:
                self._sending -= 1
                self._jobs += found
                self._changed.notify_all()

    def followed(self, job: Job, args: argparse.Namespace, name: str | None = None) -> Result:
        """Return the job's result. Raises as :meth:`Job.wait` does; the display shows it under ``name``, or its id."""
        try:
            result = job.wait(args.timeout, on_update=lambda now: self.display.update(now, name), stop=self.stop)
        except ClientError:
            if not self.stop.is_set():
                self._leave(job)
            raise
        for warning in result.warnings:
            self.display.line(f"{f'{name}: ' if name else ''}warning: {warning}")
        return result

    def saved(self, job: Job, result: Result, folder: Path, args: argparse.Namespace) -> list[Saved]:
        """Save the job's outputs into the folder, and print their paths. Raises as :meth:`Result.save` does."""

        def on_saved(file: Saved) -> None:
            if not args.json:
                # Standard output may be the same terminal as the display's.
                with self.display.hidden():
                    streams.line(file.path)

        try:
            options = {"overwrite": args.overwrite, "metadata": args.metadata}
            return result.save(folder, **options, on_saved=on_saved, stop=self.stop)
        finally:
            if not self.stop.is_set():
                self._leave(job)

    def _leave(self, job: Job) -> None:
        with self._changed:
            self._jobs.remove(job)

    # --- Ctrl-C ---------------------------------------------------------------------------------------------------

    def _interrupted(self) -> JobStopped:
        """Stop, and return the error that reports what became of the jobs."""
        self.stop.set()
        with self.display.hidden():
            is_second = False
            try:
                if not self._all_sent(_MOMENT_S):
                    streams.say("stopping as soon as the job is accepted or refused (Ctrl-C again: immediately)")
                    while not self._all_sent(_WAIT_S):
                        pass
                unsure = [error.message for error in self._unsure]
            except KeyboardInterrupt:
                unsure = ["stopped while a job was being sent: it may have been accepted all the same"]
                is_second = True
            jobs = [job for job in self._jobs if not job.answer.status.is_terminal]
            # Those that have ended well are being saved.
            done = [job for job in self._jobs if job.answer.status is Status.COMPLETED]
            if jobs:
                return _stopped([*unsure, left_as_is(jobs) if is_second else canceled(jobs).message], jobs)
            if unsure:
                return _stopped(unsure, jobs)
            return _stopped([left_as_is(done) if done else "stopped: no job is left running there"], done)

    def _all_sent(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._sending == 0, seconds)


def canceled(jobs: Sequence[Job]) -> JobStopped:
    """Cancel these jobs, if the user at the terminal wants it. Returns the error that reports what was done.

    Not asked where the target cannot cancel them.
    """
    if not any(job.endpoint.target.keeps(job.id) for job in jobs):
        return _stopped([left_as_is(jobs)], jobs)
    what, them = (f"job {jobs[0].id}", "it") if len(jobs) == 1 else (f"{len(jobs)} jobs", f"{len(jobs)} jobs")
    problems, left = [], list(jobs)
    try:
        if not _agreed(f"Cancel {them} there? [Y/n] (Ctrl-C again: leave as is) "):
            return _stopped([left_as_is(jobs)], jobs)
        for job in jobs:
            try:
                job.cancel()
                left.remove(job)
            except ClientError as error:
                problems.append(error.message)
    except KeyboardInterrupt:
        streams.say("")
    return _stopped([*dict.fromkeys(problems), left_as_is(left) if left else f"{what} asked to end"], jobs)


def left_as_is(jobs: Sequence[Job]) -> str:
    """Return the line about jobs that go on without us."""
    ids = ", ".join(job.id for job in jobs)
    if not any(job.endpoint.target.keeps(job.id) for job in jobs):
        return f"job {ids} left: {NOT_KEPT}" if len(jobs) == 1 else f"{len(jobs)} jobs left ({ids}): {NOT_KEPT}"
    if len(jobs) == 1:
        return f"job {ids} left as it is: {ways_back(ids)}"
    return f"{len(jobs)} jobs left running there ({ids}): the same command resumes them"


def _stopped(lines: Sequence[str], jobs: Sequence[Job]) -> JobStopped:
    ids = [job.id for job in jobs]
    return JobStopped("; ".join(lines), job_id=ids[0] if ids else None, details={"jobs": ids} if ids else None)


def _agreed(question: str) -> bool:
    """Ask at the terminal; without one to ask at, the answer is yes."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    sys.stderr.write(question)
    sys.stderr.flush()
    return not sys.stdin.readline().strip().lower().startswith("n")
