"""What the command line asked for, done: one job, one that was sent before, or a question to the target."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from settee.client import options
from settee.client.display import Display, table
from settee.client.endpoint import Endpoint, Job, JobOptions, given_texts
from settee.client.errors import ClientError, JobStopped, UsageError
from settee.client.inject.parameters import Parameters
from settee.client.plan import Prepared, Wishes

if TYPE_CHECKING:
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
        if args.health:
            print(json.dumps(endpoint.health(), indent=None if args.json else 2))
            return 0
        if args.cancel:
            return _cancel(endpoint, args)
        if args.repeat or args.batch:
            from settee.client import many

            return many.run(endpoint, args, parse)
        if args.resume:
            return _finish(endpoint.job(args.resume), args)
        return _one(endpoint, endpoint.prepare(args.workflow, wishes_of(args)), args)


def wishes_of(args: argparse.Namespace) -> Wishes:
    """What the options want put into the workflow. Raises UsageError."""
    return Wishes(
        images=given_texts(args.img),
        masks=given_texts(args.mask),
        videos=given_texts(args.video),
        audio=given_texts(args.audio),
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
        shown = table(ready.workflow, ready.changes, columns(), sys.stderr.encoding)
        print(shown or "nothing is changed in the workflow", file=sys.stderr)
    if args.save_workflow:
        _write_workflow(ready, args.save_workflow)
    if args.dry_run:
        return _dry(endpoint, ready, args)
    if not args.detach:
        from settee.client.saving import make_folder

        make_folder(args.out)
    job = endpoint.send(ready, options_of(args))
    if args.detach:
        print(
            json.dumps({"status": job.answer.status.value, "job_id": job.id, "seeds": job.seeds})
            if args.json
            else job.id
        )
        return 0
    return _finish(job, args)


def _dry(endpoint: Endpoint, ready: Prepared, args: argparse.Namespace) -> int:
    """All that can be known without sending: that the files can be read, and fit."""
    endpoint.check_size(ready, options_of(args))
    if args.json:
        print(json.dumps({"status": "dry_run", **_as_json(ready), "workflow": ready.workflow}, ensure_ascii=False))
    return 0


def _as_json(ready: Prepared) -> dict[str, Any]:
    changes = [{"node": c.node_id, "input": c.input, "value": c.value, "why": c.why} for c in ready.changes]
    return {"changes": changes, "seeds": ready.seeds}


def _write_workflow(ready: Prepared, where: str) -> None:
    text = json.dumps(ready.workflow, indent=2, ensure_ascii=False) + "\n"
    if where == "-":
        sys.stdout.write(text)
        return
    try:
        Path(where).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--save-workflow {where}: {error.strerror}") from error


def _finish(job: Job, args: argparse.Namespace) -> int:
    """Wait for the job, and save what it made."""
    from settee.client.following import Interrupted
    from settee.client.saving import save

    def on_saved(file: Saved) -> None:
        if not args.json:
            print(file.path, flush=True)

    with Display(sys.stderr, quiet=args.quiet) as display:
        try:
            result = job.wait(args.timeout, on_update=display.update)
        except (KeyboardInterrupt, Interrupted):
            with display.hidden():
                raise interrupted([job]) from None
        for warning in result.warnings:
            display.line(f"warning: {warning}")
    saved = save(
        result,
        args.out,
        overwrite=args.overwrite,
        metadata=args.metadata,
        on_saved=on_saved,
    )
    if args.json:
        found = {"status": "success", "job_id": job.id, "files": [file_as_json(file) for file in saved]}
        more = {"seeds": result.seeds, "timings": result.timings, "warnings": result.warnings}
        print(json.dumps({**found, **more}, ensure_ascii=False))
    if not saved and not args.quiet:
        print("the job succeeded, and made no files", file=sys.stderr)
    _look([file.path for file in saved if file.output.kind == "images"], args, job.endpoint.environment.all)
    return 0


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
        print(error.message, file=sys.stderr)


def interrupted(jobs: Sequence[Job]) -> JobStopped:
    """Ctrl-C: a job costs money until somebody ends it, and may be wanted all the same. What came of the question.

    With nobody at a terminal to be asked, the jobs are ended.
    """
    ids = ", ".join(job.id for job in jobs)
    what = f"job {ids}" if len(jobs) == 1 else f"{len(jobs)} jobs"
    left = f"{what} left to run there: --resume {jobs[0].id} picks it up, --cancel {jobs[0].id} ends it"
    if len(jobs) > 1:
        left = f"{what} left to run there ({ids}): the same command again picks them up"
    try:
        if not _asked(f"Cancel {what} there? [Y/n] (Ctrl-C again: leave as is) "):
            return JobStopped(left, job_id=jobs[0].id)
        for job in jobs:
            job.cancel()
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return JobStopped(left, job_id=jobs[0].id)
    except ClientError as error:
        return JobStopped(f"{error.message}; {left}", job_id=jobs[0].id)
    return JobStopped(f"{what} asked to end", job_id=jobs[0].id)


def _asked(question: str) -> bool:
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    print(question, end="", file=sys.stderr, flush=True)
    return not sys.stdin.readline().strip().lower().startswith("n")


def _cancel(endpoint: Endpoint, args: argparse.Namespace) -> int:
    endpoint.cancel(args.cancel)
    print(
        json.dumps({"status": "cancel_requested", "job_id": args.cancel})
        if args.json
        else f"{args.cancel}: asked to end"
    )
    return 0


def columns() -> int:
    """Of the terminal that stderr is; a pipe gets lines as wide as they are."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 200
