"""Many jobs at once, with one display, and a ledger by which the same command goes on after an interruption."""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
from collections.abc import Sequence
from typing import Any

from settee.client import batch, streams
from settee.client.arguments import options_of, wishes_of
from settee.client.batch import Entry, Ledger, Row
from settee.client.client_errors import ClientError, JobStopped, NetworkError, Unsure, UsageError
from settee.client.display import Display
from settee.client.endpoint import Endpoint, Job
from settee.client.saving import make_folder
from settee.client.targets import Status
from settee.client.under_way import UnderWay

#: A bare ComfyUI runs one job at a time, and each that waits there costs threads, sockets and questions: the most.
COMFY_JOBS = 32


def run(endpoint: Endpoint, args: argparse.Namespace) -> int:
    """Run many jobs. Returns the exit code: 0 when all outputs are saved, else that of the failures. Raises
    ClientError."""
    rows = batch.read(args.batch, args) if args.batch else batch.repeated(args, args.repeat)
    if args.dry_run:
        return _dry(endpoint, rows, args)
    make_folder(args.out)
    with Ledger(args.out) as ledger:
        todo = [row for row in rows if not ledger.is_done(row.key)]
        skipped = len(rows) - len(todo)
        if skipped and not args.quiet:
            streams.say(f"{skipped} of {len(rows)} jobs are already done ({ledger.path})")
        with Display.on_stderr(endpoint.environment.all, quiet=args.quiet, total=len(rows), done=skipped) as display:
            many = _Many(endpoint, args, ledger, UnderWay(display))
            many.run(todo)
        if args.json:
            status = {"status": "error" if many.failures else "success", "done": len(rows) - len(many.failures)}
            jobs = [many.found.get(row.key) or _done_before(row, ledger, args) for row in rows]
            streams.document({**status, "skipped": skipped, "jobs": jobs})
        if not many.failures and args.repeat:
            ledger.remove()  # the next --repeat starts again
    if many.failures:
        streams.say(
            f"{len(many.failures)} of {len(rows)} jobs did not succeed: the same command sends only those again"
        )
    return max((error.exit_code for error in many.failures), default=0)


def _document(row: Row, status: str) -> dict[str, Any]:
    """Return what ``--json`` reports of a row."""
    return {"name": row.name, "status": status, "job_id": None, "files": [], "seeds": {}, "warnings": []}


def _done_before(row: Row, ledger: Ledger, args: argparse.Namespace) -> dict[str, Any]:
    entry = ledger.get(row.key)
    assert entry is not None, "it is done"
    files = [{"path": str(args.out / name)} for name in entry.files]
    return {**_document(row, "done_before"), "job_id": entry.job_id, "seeds": entry.seeds, "files": files}


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

    def __init__(self, endpoint: Endpoint, args: argparse.Namespace, ledger: Ledger, jobs: UnderWay) -> None:
        self._endpoint, self._args, self._ledger, self._jobs = endpoint, args, ledger, jobs
        #: What ``--json`` reports of each row, by its key.
        self.found: dict[str, dict[str, Any]] = {}
        self.failures: list[ClientError] = []
        #: Why no more jobs are started: the target is gone, or requires another key, or the disk is full.
        self._dead: ClientError | None = None
        #: Warnings before a job is sent, by the row that reported each first: repeated jobs have the same.
        self._warned: dict[str, str] = {}

    def run(self, rows: Sequence[Row]) -> None:
        """Run the rows. Raises JobStopped after Ctrl-C."""
        left = collections.deque(rows)  # whose methods are atomic

        def work() -> None:
            with contextlib.suppress(IndexError):
                while not self._jobs.stop.is_set():
                    self._one(left.popleft())

        most = COMFY_JOBS if self._endpoint.is_comfy else len(rows)
        self._jobs.run(work, min(self._args.jobs, len(rows), most))

    def _one(self, row: Row) -> None:
        document = self.found[row.key] = _document(row, "failed")
        try:
            if self._dead is not None:
                kind = UsageError if isinstance(self._dead, UsageError) else NetworkError
                raise kind(f"not sent: {self._dead.message}")
            self._done(row, document)
        except ClientError as error:
            self._failed(row, error)
        except Exception as error:  # a thread's edge: the other jobs go on
            self._failed(row, ClientError(f"an internal error of the client: {type(error).__name__}: {error}"))

    def _done(self, row: Row, document: dict[str, Any]) -> None:
        """Take the row's job up or send it, follow it, and save its outputs. Raises ClientError."""
        job = self._jobs.begun(lambda: self._sent_before(row) or self._sent(row))
        document |= {"job_id": job.id, "seeds": job.seeds}
        try:
            result = self._jobs.followed(job, self._args, row.name)
        except ClientError as error:
            # Only what has ended is sent again: one that is out of our time, or that cannot be asked for, may go on.
            if job.answer.status.is_terminal and not isinstance(error, UsageError):
                with contextlib.suppress(UsageError):  # the job's own error has more detail
                    self._note(row, "failed", job, error=error.message)
            raise
        job.seeds = result.seeds
        document |= {"seeds": result.seeds, "warnings": result.warnings}
        # What is not saved now is asked for again: it is paid for.
        try:
            saved = self._jobs.saved(job, result, self._args.out / row.name, self._args)
        except UsageError:
            self._dead = UsageError(f"{row.name} cannot be saved")
            raise
        document["files"] = [file.as_json() for file in saved]
        self._note(row, "done", job, files=[os.path.relpath(file.path, self._args.out) for file in saved])
        document["status"] = "done"

    def _sent_before(self, row: Row) -> Job | None:
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
        warnings = [*ready.warnings]
        if self._args.repeat and not ready.seeds and not row.args.keep_seed:
            warnings.append("this workflow has no seed to draw: every job makes the same result")
        for warning in warnings:
            if self._warned.setdefault(warning, row.key) == row.key:
                self._jobs.display.line(f"{row.name}: warning: {warning}")
        try:
            job = self._endpoint.send(ready, options_of(row.args), stop=self._jobs.stop)
        except Unsure:
            raise
        except NetworkError as error:
            self._dead = error
            raise
        with contextlib.suppress(UsageError):  # it is followed all the same, and its end is noted again
            self._note(row, "sent", job)
        return job

    def _failed(self, row: Row, error: ClientError) -> None:
        files = [{"path": path} for path in error.details.get("saved", ())]
        self.found[row.key] |= {"files": files, "error": error.message, "code": error.code}
        self.failures.append(error)
        if self._jobs.stop.is_set() and isinstance(error, JobStopped):
            return  # our own doing
        self._jobs.display.lost(row.name)
        self._jobs.display.line(f"{row.name}: {error.message}" + (f" [{error.code}]" if error.code else ""))

    def _note(self, row: Row, status: str, job: Job, files: Sequence[str] = (), error: str | None = None) -> None:
        name = self._endpoint.target.name
        entry = Entry(row.key, row.name, status, job.id, name, files=list(files), seeds=job.seeds, error=error)
        try:
            self._ledger.write(entry)
        except UsageError as problem:
            # What would be sent now would be forgotten.
            self._dead = problem
            raise UsageError(f"{problem.message}; --resume {job.id} fetches the result", job_id=job.id) from problem
