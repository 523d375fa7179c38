"""What the command line asked for, done: one job, one that was sent before, or a question to the target."""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from settee.base.text import for_terminal
from settee.base.threads import Call
from settee.client import options, streams
from settee.client.display import Display, table
from settee.client.endpoint import Endpoint, Job, JobOptions
from settee.client.errors import ClientError, JobStopped, NetworkError, UsageError
from settee.client.given import files_from_texts
from settee.client.inject.media import unfed
from settee.client.inject.parameters import Parameters
from settee.client.plan import Prepared, Wishes
from settee.client.stopping import END_S, MOMENT_S, SENDING, interrupted, left_as_is
from settee.client.targets.http import Unsure

if TYPE_CHECKING:
    from settee.client.results import Result
    from settee.client.saving import Saved


def run(args: argparse.Namespace, parse: options.Parse) -> int:
    """The exit code. Raises ClientError."""
    with Endpoint(
        args.comfy or args.url or args.endpoint,
        comfy=bool(args.comfy),
        sync=args.sync,
        key_file=args.key_file,
        registry=args.registry,
    ) as endpoint:
        try:
            return _done(endpoint, args, parse)
        except NetworkError as error:
            # Of what became of a job that was sent, its place is not in doubt.
            if endpoint.is_named or error.job_id is not None or type(error) is not NetworkError:
                raise
            words = (
                "that is where jobs go unless --endpoint, --url or --comfy says where; to try it: settee-worker --demo"
            )
            raise NetworkError(f"{error.message} ({words})", code=error.code, details=error.details) from error


def _done(endpoint: Endpoint, args: argparse.Namespace, parse: options.Parse) -> int:
    if args.health:
        streams.document(endpoint.health(), indent=None if args.json else 2)
        return 0
    if args.cancel:
        return _cancel(endpoint, args)
    if args.repeat or args.batch:
        from settee.client import many

        return many.run(endpoint, args, parse)
    if args.resume:
        _make_folder(args)
        return _finish(endpoint.job(args.resume), args)
    return _one(endpoint, endpoint.prepare(args.workflow, wishes_of(args)), args)


def wishes_of(args: argparse.Namespace) -> Wishes:
    """What the options want put into the workflow. Raises UsageError."""
    return Wishes(
        images=files_from_texts(args.img),
        masks=files_from_texts(args.mask),
        videos=files_from_texts(args.video),
        audio=files_from_texts(args.audio),
        prompt=args.prompt,
        negative=args.negative,
        seed=args.seed,
        keep_seed=args.keep_seed,
        parameters=Parameters(
            **{
                name: getattr(args, name)
                for name in ("steps", "cfg", "width", "height", "denoise", "sampler", "scheduler", "ckpt")
            },
            lora=tuple(args.lora),
        ),
        sets=tuple(args.set),
    )


def options_of(args: argparse.Namespace) -> JobOptions:
    """How the options want the job to run."""
    return JobOptions(
        delivery=args.delivery,
        timeout_s=args.job_timeout,
        models=tuple(args.model),
        allow_partial=args.allow_partial,
        max_side=args.max_side,
        jpeg=args.jpeg,
    )


def _one(endpoint: Endpoint, ready: Prepared, args: argparse.Namespace) -> int:
    if not args.quiet:
        shown = table(ready.workflow, ready.changes, columns(), _encoding())
        streams.say(shown or "nothing is changed in the workflow")
        # A ComfyUI has an input folder of its own; a worker has what comes with the job.
        missing = [] if endpoint.is_comfy else unfed(ready.workflow, ready.changes)
        for line in (*ready.warnings, *missing):
            streams.say(for_terminal(line, _encoding()))
    if args.save_workflow:
        _write_workflow(ready, args.save_workflow)
    if args.dry_run:
        return _dry(endpoint, ready, args)
    if not args.detach:
        _make_folder(args)
    job = _sent(endpoint, ready, args)
    if args.detach:
        if args.json:
            streams.document({"status": job.answer.status.value, "job_id": job.id, "seeds": job.seeds})
        else:
            streams.line(job.id)
        return 0
    return _finish(job, args)


def _make_folder(args: argparse.Namespace) -> None:
    from settee.client.saving import make_folder

    make_folder(args.out)


def _sent(endpoint: Endpoint, ready: Prepared, args: argparse.Namespace) -> Job:
    """Send it, in a thread: Ctrl-C must not come between a job that was taken and the id that says so."""
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
        raise JobStopped("stopped while the job was being sent: it may have been taken all the same") from None
    except Unsure:
        raise
    except ClientError as error:
        raise JobStopped("stopped before the job was sent") from error
    raise interrupted([job])


def _dry(endpoint: Endpoint, ready: Prepared, args: argparse.Namespace) -> int:
    """All that can be known without sending: that the files can be read, and fit."""
    endpoint.check_size(ready, options_of(args))
    if args.json:
        streams.document({"status": "dry_run", **_as_json(ready), "workflow": ready.workflow})
    return 0


def _as_json(ready: Prepared) -> dict[str, Any]:
    changes = [{"node": c.node_id, "input": c.input, "value": c.value, "why": c.why} for c in ready.changes]
    return {"changes": changes, "seeds": ready.seeds}


def _write_workflow(ready: Prepared, where: str) -> None:
    if where == "-":
        streams.document(ready.workflow, indent=2)
        return
    try:
        # Half a surrogate pair, which UTF-8 cannot take, comes out as its JSON escape.
        text = json.dumps(ready.workflow, indent=2, ensure_ascii=False) + "\n"
        Path(where).write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(f"--save-workflow {where}: {error.strerror}") from error


def _finish(job: Job, args: argparse.Namespace) -> int:
    """Wait for the job, and save what it made."""
    asked = threading.Event()
    try:
        result, saved = _followed(job, args, asked)
    except KeyboardInterrupt:
        if not asked.is_set() and not job.answer.status.is_terminal:
            # Just before it was waited for.
            raise interrupted([job]) from None
        # Of somebody who had been asked already, or while its files were on their way.
        raise JobStopped(left_as_is([job]), job_id=job.id) from None
    if args.json:
        found = {"status": "success", "job_id": job.id, "files": [file_as_json(file) for file in saved]}
        more = {"seeds": result.seeds, "timings": result.timings, "warnings": result.warnings}
        streams.document({**found, **more})
    if not saved and not args.quiet:
        streams.say("the job succeeded, and made no files")
    _look([file.path for file in saved if file.output.kind == "images"], args, job.endpoint.environment.all)
    return 0


def _followed(job: Job, args: argparse.Namespace, asked: threading.Event) -> tuple[Result, list[Saved]]:
    """``asked`` is set once somebody is asked what is to become of the job."""
    from settee.client.saving import save

    def on_saved(file: Saved) -> None:
        if not args.json:
            streams.line(file.path)

    # In threads, with nothing but a wait in this one: Ctrl-C in the midst of others' code may get lost there.
    stop = threading.Event()
    with display_of(job.endpoint, quiet=args.quiet) as display:
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
        lambda: save(result, args.out, overwrite=args.overwrite, metadata=args.metadata, on_saved=on_saved, stop=stop)
    )
    try:
        return result, saving.result()
    except KeyboardInterrupt:
        stop.set()
        saving.ended.wait(END_S)
        raise


def display_of(endpoint: Endpoint, *, quiet: bool, total: int = 1, done: int = 0) -> Display:
    """On standard error; rows that are redrawn only where a terminal says that it can."""
    term = endpoint.environment.all.get("TERM", "dumb" if os.name == "posix" else "")
    return Display(sys.stderr, is_terminal=sys.stderr.isatty() and term != "dumb", quiet=quiet, total=total, done=done)


def file_as_json(file: Saved) -> dict[str, Any]:
    """What --json says of a file."""
    output = file.output
    found = {"path": str(file.path), "kind": output.kind, "node_id": output.node_id, "media_type": output.media_type}
    return {**found, "size": file.size, "sha256": file.sha256}


def _look(pictures: list[Path], args: argparse.Namespace, env: Mapping[str, str]) -> None:
    """Show what was made, to who asked for it; a picture that cannot be shown is saved all the same."""
    if not pictures or not (args.preview or args.open):
        return
    from settee.client import preview

    try:
        for path in pictures if args.preview else ():
            preview.show(path, sys.stderr if args.json else sys.stdout, env, size=(columns(), 24))
        if args.open:
            preview.open_file(pictures[0], env)
    except ClientError as error:
        streams.say(error.message)


def _cancel(endpoint: Endpoint, args: argparse.Namespace) -> int:
    endpoint.cancel(args.cancel)
    if args.json:
        streams.document({"status": "cancel_requested", "job_id": args.cancel})
    else:
        streams.line(f"{args.cancel}: asked to end")
    return 0


def columns() -> int:
    """Of the terminal that stderr is; a pipe gets lines as wide as they are."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 200


def _encoding() -> str:
    """Of stderr; what somebody has put in its place may have none."""
    return sys.stderr.encoding or "utf-8"
