"""One job of the command line: sent, followed and saved, or only shown."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from settee.base.job import Kind
from settee.base.terminal import Stream
from settee.client import streams
from settee.client.arguments import options_of, wishes_of
from settee.client.client_errors import ClientError, UsageError
from settee.client.display import Display, table
from settee.client.endpoint import Endpoint, Job
from settee.client.inject.media_files import unfed
from settee.client.prepared import Prepared
from settee.client.saving import Result, Saved, make_folder
from settee.client.under_way import UnderWay
from settee.comfyui.media import kind_of

#: An opener that has not failed by then has started its program, seconds.
_OPENER_S = 2.0


def run(endpoint: Endpoint, args: argparse.Namespace) -> int:
    """Send the command's job, or take up the one that it names, and save its outputs. Returns the exit code.

    Raises ClientError.
    """
    ready = None if args.resume else endpoint.prepare(args.workflow, wishes_of(args))
    if ready is not None:
        _show_changes(endpoint, ready, args)
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
    is_detached = args.detach and ready is not None
    if not is_detached:
        make_folder(args.out)
    # Ctrl-C does not wait for the answer of a target that may be gone.
    known = endpoint.job(args.resume) if ready is None else None
    with Display.on_stderr(endpoint.environment.all, quiet=args.quiet) as display:
        jobs = UnderWay(display)

        def begin() -> Job:
            if known is not None:
                return known
            assert ready is not None
            return endpoint.send(ready, options_of(args), stop=jobs.stop)

        def work() -> tuple[Job, Result | None, list[Saved]]:
            job = jobs.begun(begin)
            if is_detached:
                return job, None, []
            result = jobs.followed(job, args)
            return job, result, jobs.saved(job, result, args.out, args)

        [(job, result, saved)] = jobs.run(work)
    if result is None:
        if args.json:
            streams.document({"status": job.answer.status.value, "job_id": job.id, "seeds": job.seeds})
        else:
            streams.line(job.id)
        return 0
    if args.json:
        found = {"status": "success", "job_id": job.id, "files": [file.as_json() for file in saved]}
        more = {"seeds": result.seeds, "timings": result.timings, "warnings": result.warnings}
        streams.document({**found, **more})
    if not saved and not args.quiet:
        streams.say("the job succeeded without making any files")
    pictures = [file.path for file in saved if file.output.kind == "images"]
    if args.open and pictures:
        try:
            open_picture(pictures[0], endpoint.environment.all)
        except ClientError as error:  # it is saved all the same
            streams.say(error.message)
    return 0


def _show_changes(endpoint: Endpoint, ready: Prepared, args: argparse.Namespace) -> None:
    if args.quiet:
        return
    width = Stream(sys.stderr).columns(otherwise=200)  # a pipe's lines are not cut much
    streams.say(table(ready.workflow, ready.changes, width) or "the workflow is not changed")
    # A ComfyUI has an input folder of its own; a worker has only the files that come with the job.
    for line in (*ready.warnings, *([] if endpoint.is_comfy else unfed(ready.workflow, ready.changes))):
        streams.say(line)


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


def open_picture(path: Path, env: Mapping[str, str]) -> None:
    """Show the picture with the program that the desktop has for it, without waiting for that program's end.

    Raises UsageError without a desktop, or for a kind of file that a desktop might run; ClientError when it refuses.
    """
    if kind_of(path.name)[0] is not Kind.IMAGE or path.suffix.lower() == ".svg":  # a browser runs scripts in SVG
        raise UsageError(f"--open: {path.name} is not a picture: open it yourself, if you trust it")
    opener = {"win32": "Windows", "darwin": "open"}.get(sys.platform, "xdg-open")
    if opener == "xdg-open" and not (env.get("DISPLAY") or env.get("WAYLAND_DISPLAY")):
        # It would start a browser in this very terminal.
        raise UsageError(f"--open: this machine has no desktop to show {path.name} on")
    target, null = str(path.resolve()), subprocess.DEVNULL  # absolute, so that no name looks like an option
    try:
        if opener == "Windows":
            vars(os)["startfile"](target)
            return
        process = subprocess.Popen(  # noqa: S603  # no shell, and the path is absolute
            [opener, target], stdin=null, stdout=null, stderr=null, start_new_session=True
        )
        if code := process.wait(_OPENER_S):
            raise ClientError(f"--open: {opener} has no program for {path.name} (exit code {code})")
    except subprocess.TimeoutExpired:
        # Some openers are the program itself; their exit code has to be collected.
        threading.Thread(target=process.wait, name="opener", daemon=True).start()
    except OSError as error:
        hint = " (Debian, Ubuntu: it is in xdg-utils)" if opener == "xdg-open" else ""
        raise ClientError(f"--open: {opener} does not open {path.name}: {error.strerror}{hint}") from error
