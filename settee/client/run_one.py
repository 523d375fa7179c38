"""One job of the command line: sent, followed and saved; and Ctrl-C. A job costs money until it is ended."""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from settee.base.threads import Call
from settee.client import streams
from settee.client.arguments import options_of, wishes_of
from settee.client.client_errors import ClientError, JobStopped, Unsure, UsageError
from settee.client.display import Display, table
from settee.client.endpoint import Endpoint, Job
from settee.client.follow import NOT_KEPT, Result, ways_back
from settee.client.inject.media_files import unfed
from settee.client.prepared import Prepared

if TYPE_CHECKING:
    from settee.client.saving import Saved

#: Between two looks at whether something has ended, seconds: a wait without a limit would not let Ctrl-C through
#: everywhere.
LOOK_S = 0.5
#: What takes longer is reported, seconds.
MOMENT_S = 0.3
#: How long threads may take to end after Ctrl-C, seconds: one that has not ended then leaves at most half a file.
END_S = 2.0
SENDING = "stopping as soon as it is known whether the job was accepted (Ctrl-C again: at once)"


def run(endpoint: Endpoint, args: argparse.Namespace) -> int:
    """Send the command's job and save its outputs. Returns the exit code; raises ClientError."""
    ready = endpoint.prepare(args.workflow, wishes_of(args))
    if not args.quiet:
        streams.say(table(ready.workflow, ready.changes, streams.columns()) or "the workflow is not changed")
        # A ComfyUI has an input folder of its own; a worker has only the files that come with the job.
        missing = [] if endpoint.is_comfy else unfed(ready.workflow, ready.changes)
        for line in (*ready.warnings, *missing):
            streams.say(line)
    if args.save_workflow:
        _write_workflow(ready, args.save_workflow)
    if args.dry_run:
        # Also reads the files, and checks that they fit into a request.
        endpoint.check_size(ready, options_of(args))
        if args.json:
            changes = [{"node": c.node_id, "input": c.input, "value": c.value, "why": c.why} for c in ready.changes]
            found = {"status": "dry_run", "changes": changes, "seeds": ready.seeds}
            streams.document({**found, "workflow": ready.workflow})
        return 0
    if not args.detach:
        _make_folder(args)
    job = _sent(endpoint, ready, args)
    if not args.detach:
        return _finish(job, args)
    if args.json:
        streams.document({"status": job.answer.status.value, "job_id": job.id, "seeds": job.seeds})
    else:
        streams.line(job.id)
    return 0


def resume(endpoint: Endpoint, args: argparse.Namespace) -> int:
    """Wait for a job that was sent before, and save its outputs. Returns the exit code; raises ClientError."""
    _make_folder(args)
    return _finish(endpoint.job(args.resume), args)


def _make_folder(args: argparse.Namespace) -> None:
    from settee.client.saving import make_folder

    make_folder(args.out)


def _write_workflow(ready: Prepared, where: str) -> None:
    if where == "-":
        streams.document(ready.workflow, indent=2)
        return
    try:
        # Half a surrogate pair, which UTF-8 cannot encode, is written as its JSON escape.
        text = json.dumps(ready.workflow, indent=2, ensure_ascii=False) + "\n"
        Path(where).write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(f"--save-workflow {where}: {error.strerror}") from error


def _sent(endpoint: Endpoint, ready: Prepared, args: argparse.Namespace) -> Job:
    """Send the job in a thread: Ctrl-C must not come between an accepted job and the id that names it."""
    stop = threading.Event()
    sending: Call[Job] = Call(lambda: endpoint.send(ready, options_of(args), stop=stop))
    try:
        return sending.result()
    except KeyboardInterrupt:
        stop.set()
    try:
        if not sending.ended.wait(MOMENT_S):
            streams.say(SENDING)
        job = sending.result()
    except KeyboardInterrupt:
        raise JobStopped("stopped while the job was being sent: it may have been accepted all the same") from None
    except Unsure:
        raise
    except ClientError as error:
        raise JobStopped("stopped before the job was sent") from error
    raise interrupted([job])


def _finish(job: Job, args: argparse.Namespace) -> int:
    """Wait for the job, and save its outputs."""
    asked = threading.Event()
    try:
        result, saved = _followed(job, args, asked)
    except KeyboardInterrupt:
        if not asked.is_set() and not job.answer.status.is_terminal:
            # Ctrl-C came just before the wait.
            raise interrupted([job]) from None
        # The user was asked already, or the outputs were being fetched.
        raise JobStopped(left_as_is([job]), job_id=job.id) from None
    if args.json:
        found = {"status": "success", "job_id": job.id, "files": [file.as_json() for file in saved]}
        more = {"seeds": result.seeds, "timings": result.timings, "warnings": result.warnings}
        streams.document({**found, **more})
    if not saved and not args.quiet:
        streams.say("the job succeeded without making any files")
    _show([file.path for file in saved if file.output.kind == "images"], args, job.endpoint.environment.all)
    return 0


def _followed(job: Job, args: argparse.Namespace, asked: threading.Event) -> tuple[Result, list[Saved]]:
    """Follow the job to its end and save its outputs; sets ``asked`` before the user is asked what becomes of it."""

    def on_saved(file: Saved) -> None:
        if not args.json:
            streams.line(file.path)

    # In threads, while this one only waits: a Ctrl-C in the midst of library code may get lost there.
    stop = threading.Event()
    with Display.on_stderr(job.endpoint.environment.all, quiet=args.quiet) as display:
        following = Call(lambda: job.wait(args.timeout, on_update=display.update, stop=stop))
        try:
            result = following.result()
        except KeyboardInterrupt:
            stop.set()
            asked.set()
            with display.hidden():
                raise interrupted([job]) from None
        for warning in result.warnings:
            display.line(f"warning: {warning}")
    saving = Call(
        lambda: result.save(args.out, overwrite=args.overwrite, metadata=args.metadata, on_saved=on_saved, stop=stop)
    )
    try:
        return result, saving.result()
    except KeyboardInterrupt:
        stop.set()
        saving.ended.wait(END_S)
        raise


def _show(pictures: list[Path], args: argparse.Namespace, env: Mapping[str, str]) -> None:
    """Show the pictures as --preview and --open ask; one that cannot be shown is saved all the same."""
    if not pictures or not (args.preview or args.open):
        return
    from settee.client import preview

    try:
        for path in pictures if args.preview else ():
            preview.show(path, sys.stderr if args.json else sys.stdout, env, size=(streams.columns(), 24))
        if args.open:
            preview.open_file(pictures[0], env)
    except ClientError as error:
        streams.say(error.message)


# --- Ctrl-C --------------------------------------------------------------------------------------------------


def interrupted(jobs: Sequence[Job]) -> JobStopped:
    """Ask whether these jobs are to be canceled, as they cost money until they end, and cancel them.

    Without a terminal to ask at, they are canceled. Not asked where the target cannot cancel them. Returns the error
    that reports what was done.
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
    """Return the line about jobs that go on without us."""
    ids = ", ".join(job.id for job in jobs)
    if not any(job.endpoint.target.keeps(job.id) for job in jobs):
        return f"job {ids} left: {NOT_KEPT}" if len(jobs) == 1 else f"{len(jobs)} jobs left ({ids}): {NOT_KEPT}"
    if len(jobs) == 1:
        return f"job {ids} left as it is: {ways_back(ids)}"
    return f"{len(jobs)} jobs left running there ({ids}): the same command resumes them"


def _stopped(message: str, jobs: Sequence[Job]) -> JobStopped:
    return JobStopped(message, job_id=jobs[0].id, details={"jobs": [job.id for job in jobs]})


def _asked(question: str) -> bool:
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    sys.stderr.write(question)
    sys.stderr.flush()
    return not sys.stdin.readline().strip().lower().startswith("n")
