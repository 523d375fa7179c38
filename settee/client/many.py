"""Many jobs at once, with one display, and a ledger by which the same command goes on after an interruption."""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from settee.client import batch, options
from settee.client.batch import Entry, Ledger, Row
from settee.client.display import Display
from settee.client.endpoint import Endpoint, Job
from settee.client.errors import ClientError, JobStopped, NetworkError, UsageError
from settee.client.following import Interrupted
from settee.client.running import file_as_json, interrupted, options_of, wishes_of

#: Between two looks at whether everything has ended: a wait without limit would not let Ctrl-C through everywhere.
_LOOK_S = 0.5


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


def run(endpoint: Endpoint, args: argparse.Namespace, parse: options.Parse) -> int:
    """The exit code: 0 when all that was asked for is there, else that of the failures. Raises ClientError."""
    rows = batch.read(args.batch, args, parse) if args.batch else batch.repeated(args, args.repeat)
    if args.dry_run:
        return _dry(endpoint, rows, args)
    from settee.client.saving import make_folder

    make_folder(args.out)
    ledger = Ledger(args.out)
    todo = [row for row in rows if not ledger.is_done(row.key)]
    skipped = len(rows) - len(todo)
    if skipped and not args.quiet:
        print(f"{skipped} of {len(rows)} jobs are done already ({ledger.path})", file=sys.stderr)
    with Display(sys.stderr, quiet=args.quiet, total=len(rows), done=skipped) as display:
        outcomes = _Many(endpoint, args, ledger, display).run(todo)
    failures = [outcome.error for outcome in outcomes if outcome.error is not None]
    if args.json:
        found = {"status": "error" if failures else "success", "done": len(rows) - len(failures), "skipped": skipped}
        print(json.dumps({**found, "jobs": [outcome.as_json() for outcome in outcomes]}, ensure_ascii=False))
    if not failures:
        if args.repeat:
            ledger.remove()  # the next --repeat is wanted anew
        return 0
    print(
        f"{len(failures)} of {len(rows)} jobs did not succeed: the same command sends those again, and no other",
        file=sys.stderr,
    )
    return max(error.exit_code for error in failures)


def _dry(endpoint: Endpoint, rows: Sequence[Row], args: argparse.Namespace) -> int:
    found, failures = [], []
    for row in rows:
        try:
            ready = endpoint.prepare(row.args.workflow, wishes_of(row.args))
            endpoint.check_size(ready, options_of(row.args))
        except ClientError as error:
            failures.append(error)
            print(f"{row.name}: {error.message}", file=sys.stderr)
            continue
        found.append({"name": row.name, "seeds": ready.seeds, "workflow": ready.workflow})
        if not args.quiet:
            print(f"{row.name}: {len(ready.changes)} inputs changed, {len(ready.files)} files", file=sys.stderr)
    if args.json:
        print(json.dumps({"status": "dry_run", "jobs": found}, ensure_ascii=False))
    return max((error.exit_code for error in failures), default=0)


class _Many:
    """One run over the rows that are left."""

    def __init__(self, endpoint: Endpoint, args: argparse.Namespace, ledger: Ledger, display: Display) -> None:
        self._endpoint, self._args, self._ledger, self._display = endpoint, args, ledger, display
        #: Nobody starts or follows anything any more.
        self._stop = threading.Event()
        #: Why no more jobs are started: the target is gone, or wants another key.
        self._dead: NetworkError | None = None
        self._mutex = threading.Lock()
        self._running: dict[str, Job] = {}

    def run(self, rows: Sequence[Row]) -> list[Outcome]:
        """Every row's outcome, in order. Raises JobStopped after Ctrl-C."""
        pool = ThreadPoolExecutor(max(1, min(self._args.jobs, len(rows) or 1)), thread_name_prefix="job")
        futures: list[Future[Outcome]] = []
        try:
            # Asked once, by one: many would each learn the same of the target.
            _ = self._endpoint.target
            futures = [pool.submit(self._one, row) for row in rows]
            while wait(futures, timeout=_LOOK_S).not_done:
                pass
        except KeyboardInterrupt:
            self._stop.set()
            with self._display.hidden():
                jobs = self._left()
                error = interrupted(jobs) if jobs else JobStopped("stopped before anything was sent")
            for future in futures:
                future.cancel()
            raise error from None
        finally:
            pool.shutdown(wait=not self._stop.is_set(), cancel_futures=True)
        return [future.result() for future in futures]

    def _left(self) -> list[Job]:
        with self._mutex:
            return list(self._running.values())

    def _one(self, row: Row) -> Outcome:
        outcome = Outcome(row, "failed")
        try:
            if self._stop.is_set():
                raise JobStopped("not sent")
            if self._dead is not None:
                raise NetworkError(f"not sent: {self._dead.message}")
            job = self._taken_up(row) or self._sent(row)
            outcome.job_id, outcome.seeds = job.id, job.seeds
            self._finish(row, job, outcome)
        except Interrupted:
            outcome.status, outcome.error = "sent", JobStopped("left running", job_id=outcome.job_id)
        except ClientError as error:
            self._failed(outcome, error)
        except Exception as error:  # a thread's edge: the other jobs go on
            self._failed(outcome, ClientError(f"a fault of the client's ({type(error).__name__}: {error})"))
        return outcome

    def _taken_up(self, row: Row) -> Job | None:
        """The job that an earlier run has sent for this row, if the target still knows it."""
        entry = self._ledger.get(row.key)
        if entry is None or entry.status != "sent" or not entry.job_id or entry.target != self._endpoint.target.name:
            return None
        try:
            job = self._endpoint.job(entry.job_id)
        except JobStopped:
            return None
        job.seeds = entry.seeds
        return job

    def _sent(self, row: Row) -> Job:
        ready = self._endpoint.prepare(row.args.workflow, wishes_of(row.args))
        try:
            job = self._endpoint.send(ready, options_of(row.args))
        except NetworkError as error:
            self._dead = error
            raise
        self._note(row, "sent", job)
        return job

    def _finish(self, row: Row, job: Job, outcome: Outcome) -> None:
        from settee.client.saving import Saved, save

        def on_saved(file: Saved) -> None:
            outcome.files.append(file_as_json(file))
            if not self._args.json:
                # Standard output may be the same terminal as the display's.
                with self._display.hidden():
                    print(file.path, flush=True)

        with self._mutex:
            self._running[row.key] = job
        try:
            result = job.wait(
                self._args.timeout, on_update=lambda answer: self._display.update(answer, row.name), stop=self._stop
            )
            with self._mutex:
                self._running.pop(row.key)
        except ClientError:
            with self._mutex:
                self._running.pop(row.key)
            raise
        outcome.warnings = result.warnings
        for warning in result.warnings:
            self._display.line(f"{row.name}: warning: {warning}")
        save(
            result,
            self._args.out / row.name,
            overwrite=self._args.overwrite,
            metadata=self._args.metadata,
            on_saved=on_saved,
            stop=self._stop,
        )
        outcome.status = "done"
        files = [os.path.relpath(file["path"], self._args.out) for file in outcome.files]
        self._note(row, "done", job, files=files)

    def _failed(self, outcome: Outcome, error: ClientError) -> None:
        outcome.error = error
        self._display.lost(outcome.row.name)
        self._display.line(f"{outcome.row.name}: {error.message}" + (f" [{error.code}]" if error.code else ""))
        if outcome.job_id is None or isinstance(error, NetworkError):
            return  # a job that may go on is asked for again
        try:
            self._ledger.write(
                Entry(
                    outcome.row.key,
                    outcome.row.name,
                    "failed",
                    outcome.job_id,
                    error=error.message,
                    seeds=outcome.seeds,
                )
            )
        except UsageError as unwritten:
            self._display.line(unwritten.message)

    def _note(self, row: Row, status: str, job: Job, files: Sequence[str] = ()) -> None:
        name = self._endpoint.target.name
        self._ledger.write(Entry(row.key, row.name, status, job.id, name, files=list(files), seeds=job.seeds))
