"""Many jobs at once, with one display, and a ledger by which the same command goes on after an interruption."""

from __future__ import annotations

import argparse
import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from settee.client import batch, cli_options, streams
from settee.client.arguments import options_of, wishes_of
from settee.client.batch import Entry, Ledger, Row
from settee.client.client_errors import ClientError, JobStopped, NetworkError, Unsure, UsageError
from settee.client.display import Display
from settee.client.endpoint import Endpoint, Job
from settee.client.follow import Interrupted
from settee.client.prepared import Prepared
from settee.client.run_one import END_S, LOOK_S, MOMENT_S, SENDING, interrupted, left_as_is
from settee.client.targets import Status

if TYPE_CHECKING:
    from settee.client.saving import Saved


@dataclass
class Outcome:
    """How one row ended."""

    row: Row
    status: str
    job_id: str | None = None
    files: list[dict[str, Any]] = field(default_factory=list)
    seeds: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    error: ClientError | None = None

    def as_json(self) -> dict[str, Any]:
        found = {"name": self.row.name, "status": self.status, "job_id": self.job_id, "files": self.files}
        error = {"error": self.error.message, "code": self.error.code} if self.error else {}
        return {**found, "seeds": self.seeds, "warnings": self.warnings, **error}


def run(endpoint: Endpoint, args: argparse.Namespace, parse: cli_options.Parse) -> int:
    """Run many jobs. Returns the exit code: 0 when all outputs are saved, else that of the failures. Raises
    ClientError."""
    rows = batch.read(args.batch, args, parse) if args.batch else batch.repeated(args, args.repeat)
    if args.dry_run:
        return _dry(endpoint, rows, args)
    from settee.client.saving import make_folder

    make_folder(args.out)
    with Ledger(args.out) as ledger:
        try:
            return _run(endpoint, args, rows, ledger)
        except KeyboardInterrupt:
            # The user was asked already.
            raise JobStopped("stopped: the same command resumes where this one ended") from None


def _run(endpoint: Endpoint, args: argparse.Namespace, rows: Sequence[Row], ledger: Ledger) -> int:
    todo = [row for row in rows if not ledger.is_done(row.key)]
    skipped = len(rows) - len(todo)
    if skipped and not args.quiet:
        streams.say(f"{skipped} of {len(rows)} jobs are already done ({ledger.path})")
    with Display.on_stderr(endpoint.environment.all, quiet=args.quiet, total=len(rows), done=skipped) as display:
        outcomes = _Many(endpoint, args, ledger, display).run(todo)
    failures = [outcome.error for outcome in outcomes if outcome.error is not None]
    if args.json:
        found = {"status": "error" if failures else "success", "done": len(rows) - len(failures), "skipped": skipped}
        known = {outcome.row.key: outcome for outcome in outcomes}
        jobs = [known.get(row.key) or _before(row, ledger, args) for row in rows]
        streams.document({**found, "jobs": [job.as_json() for job in jobs]})
    if not failures:
        if args.repeat:
            ledger.remove()  # the next --repeat starts again
        return 0
    streams.say(f"{len(failures)} of {len(rows)} jobs did not succeed: the same command sends only those again")
    return max(error.exit_code for error in failures)


def _before(row: Row, ledger: Ledger, args: argparse.Namespace) -> Outcome:
    """Return the outcome of a row that an earlier run has done."""
    entry = ledger.get(row.key)
    assert entry is not None, "it is done"
    files = [{"path": str(args.out / name)} for name in entry.files]
    return Outcome(row, "done_before", entry.job_id, files, entry.seeds)


def _dry(endpoint: Endpoint, rows: Sequence[Row], args: argparse.Namespace) -> int:
    found: list[dict[str, Any]] = []
    failures = []
    for row in rows:
        try:
            ready = endpoint.prepare(row.args.workflow, wishes_of(row.args))
            endpoint.check_size(ready, options_of(row.args))
        except ClientError as error:
            failures.append(error)
            found.append({"name": row.name, "error": error.message})
            streams.say(f"{row.name}: {error.message}")
            continue
        found.append({"name": row.name, "seeds": ready.seeds, "workflow": ready.workflow})
        if not args.quiet:
            streams.say(f"{row.name}: {len(ready.changes)} inputs changed, {len(ready.files)} files")
    if args.json:
        streams.document({"status": "error" if failures else "dry_run", "jobs": found})
    return max((error.exit_code for error in failures), default=0)


class _Many:
    """One run over the rows that are left."""

    def __init__(self, endpoint: Endpoint, args: argparse.Namespace, ledger: Ledger, display: Display) -> None:
        self._endpoint, self._args, self._ledger, self._display = endpoint, args, ledger, display
        #: Set when nothing is to be started or followed any more.
        self._stop = threading.Event()
        #: Why no more jobs are started: the target is gone, or requires another key, or the disk is full.
        self._dead: ClientError | None = None
        self._mutex = threading.Lock()
        #: How many are being sent now; notified when one has been sent.
        self._sending = 0
        self._was_sent = threading.Condition(self._mutex)
        self._running: dict[str, Job] = {}
        #: Warnings before a job is sent, each reported once: repeated jobs have the same.
        self._warned: set[str] = set()

    def run(self, rows: Sequence[Row]) -> list[Outcome]:
        """Run the rows, and return their outcomes in order. Raises JobStopped after Ctrl-C."""
        # Asked once, by one thread, instead of by each.
        _ = self._endpoint.target
        left = iter(enumerate(rows))
        found: list[Outcome | None] = [None] * len(rows)
        # Daemons: after Ctrl-C an answer that does not come is not awaited.
        threads = [
            threading.Thread(target=self._work, args=(left, found), name=f"job-{number}", daemon=True)
            for number in range(min(self._args.jobs, len(rows)))
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(LOOK_S)
        except KeyboardInterrupt:
            raise self._interrupted(threads) from None
        return [outcome for outcome in found if outcome is not None]

    def _work(self, left: Iterator[tuple[int, Row]], found: list[Outcome | None]) -> None:
        while not self._stop.is_set():
            with self._mutex:
                index, row = next(left, (0, None))
            if row is None:
                return
            found[index] = self._one(row)

    def _interrupted(self, threads: Sequence[threading.Thread]) -> JobStopped:
        self._stop.set()
        with self._display.hidden():
            try:
                if not self._all_sent(MOMENT_S):
                    streams.say(SENDING)
                    while not self._all_sent(LOOK_S):
                        pass
            except KeyboardInterrupt:
                jobs = self._left()
                words = f"; {left_as_is(jobs)}" if jobs else ""
                return JobStopped(
                    f"stopped while jobs were being sent, which may have been accepted all the same{words}"
                )
            jobs = self._left()
            error = interrupted(jobs) if jobs else JobStopped("stopped: no job is left running there")
        ends_at = time.monotonic() + END_S
        for thread in threads:
            if thread.is_alive():
                thread.join(max(0.0, ends_at - time.monotonic()))
        return error

    def _all_sent(self, seconds: float) -> bool:
        with self._mutex:
            return self._was_sent.wait_for(lambda: self._sending == 0, seconds)

    def _left(self) -> list[Job]:
        with self._mutex:
            return list(self._running.values())

    def _one(self, row: Row) -> Outcome:
        outcome = Outcome(row, "failed")
        try:
            if self._dead is not None:
                kind = UsageError if isinstance(self._dead, UsageError) else NetworkError
                raise kind(f"not sent: {self._dead.message}")
            job = self._begun(row)
            outcome.job_id, outcome.seeds = job.id, job.seeds
            self._finish(row, job, outcome)
        except Interrupted:
            outcome.status, outcome.error = "sent", JobStopped("left running", job_id=outcome.job_id)
        except ClientError as error:
            self._failed(outcome, error)
        except Exception as error:  # a thread's edge: the other jobs go on
            self._failed(outcome, ClientError(f"an internal error of the client: {type(error).__name__}: {error}"))
        return outcome

    def _begun(self, row: Row) -> Job:
        """Return the job of this row, sent now or by an earlier run, and count it among the running ones."""
        with self._mutex:
            self._sending += 1
        try:
            job = self._taken_up(row) or self._sent(row)
            with self._mutex:
                self._running[row.key] = job
            return job
        finally:
            with self._mutex:
                self._sending -= 1
                self._was_sent.notify_all()

    def _taken_up(self, row: Row) -> Job | None:
        """Return the job that an earlier run has sent for this row, if the target still knows it."""
        entry = self._ledger.get(row.key)
        if entry is None or entry.status != "sent" or not entry.job_id or entry.target != self._endpoint.target.name:
            return None
        try:
            job = self._endpoint.job(entry.job_id)
        except JobStopped:
            return None
        if job.answer.status.is_terminal and job.answer.status is not Status.COMPLETED:
            # It failed unseen, or was canceled when we were stopped: what failed is sent again.
            return None
        job.seeds = entry.seeds
        return job

    def _sent(self, row: Row) -> Job:
        folder = self._args.out / row.name
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} exists and is not a folder: move it away, or give the row another name")
        ready = self._endpoint.prepare(row.args.workflow, wishes_of(row.args))
        self._warn(ready, row)
        try:
            job = self._endpoint.send(ready, options_of(row.args), stop=self._stop)
        except Unsure:
            raise
        except NetworkError as error:
            self._dead = error
            raise
        with contextlib.suppress(UsageError):  # it is followed all the same, and its end is noted again
            self._note(row, "sent", job)
        return job

    def _warn(self, ready: Prepared, row: Row) -> None:
        warnings = [*ready.warnings]
        if self._args.repeat and not ready.seeds and not row.args.keep_seed:
            warnings.append("this workflow has no seed to draw: every job makes the same result")
        with self._mutex:
            new = [warning for warning in warnings if warning not in self._warned]
            self._warned.update(new)
        for warning in new:
            self._display.line(f"{row.name}: warning: {warning}")

    def _finish(self, row: Row, job: Job, outcome: Outcome) -> None:
        def on_saved(file: Saved) -> None:
            outcome.files.append(file.as_json())
            if not self._args.json:
                # Standard output may be the same terminal as the display's.
                with self._display.hidden():
                    streams.line(file.path)

        try:
            result = job.wait(
                self._args.timeout, on_update=lambda answer: self._display.update(answer, row.name), stop=self._stop
            )
        except ClientError as error:
            # Only what has ended is sent again: one that is out of our time, or that cannot be asked for, may go on.
            if job.answer.status.is_terminal and not isinstance(error, UsageError):
                with contextlib.suppress(UsageError):  # the job's own error has more detail
                    self._note(row, "failed", job, error=error.message)
            self._forget(row)
            raise
        self._forget(row)
        outcome.warnings, outcome.seeds = result.warnings, result.seeds
        job.seeds = result.seeds
        for warning in result.warnings:
            self._display.line(f"{row.name}: warning: {warning}")
        # What is not saved now is asked for again: it is paid for.
        try:
            result.save(
                self._args.out / row.name,
                overwrite=self._args.overwrite,
                metadata=self._args.metadata,
                on_saved=on_saved,
                stop=self._stop,
            )
        except UsageError:
            self._dead = UsageError(f"{row.name} cannot be saved")
            raise
        files = [os.path.relpath(file["path"], self._args.out) for file in outcome.files]
        self._note(row, "done", job, files=files)
        outcome.status = "done"

    def _forget(self, row: Row) -> None:
        with self._mutex:
            self._running.pop(row.key, None)

    def _failed(self, outcome: Outcome, error: ClientError) -> None:
        outcome.error = error
        if self._stop.is_set() and isinstance(error, JobStopped):
            return  # our own doing
        self._display.lost(outcome.row.name)
        self._display.line(f"{outcome.row.name}: {error.message}" + (f" [{error.code}]" if error.code else ""))

    def _note(self, row: Row, status: str, job: Job, files: Sequence[str] = (), error: str | None = None) -> None:
        name = self._endpoint.target.name
        entry = Entry(row.key, row.name, status, job.id, name, files=list(files), seeds=job.seeds, error=error)
        try:
            self._ledger.write(entry)
        except UsageError as problem:
            # What would be sent now would be forgotten.
            self._dead = problem
            raise UsageError(f"{problem.message}; --resume {job.id} fetches the result", job_id=job.id) from problem
