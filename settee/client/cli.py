"""``settee-client``: send a workflow, wait, save what it made. Exit codes: :mod:`settee.client.client_errors`."""

from __future__ import annotations

import argparse
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from settee.base.text import printable
from settee.client import cli_options, streams
from settee.client.client_errors import ClientError, JobStopped, NetworkError, UsageError, command_line


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    is_command = argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    prog = Path(sys.argv[0]).name if sys.argv and sys.argv[0].endswith(".py") else cli_options.PROG
    streams.prepare()
    try:
        with command_line():
            outcome = _run(argv, prog)
            if is_command:
                # Everything is done; a Ctrl-C now would only spoil the report.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            code = failed(outcome, prog, as_json="--json" in argv) if isinstance(outcome, ClientError) else outcome
            if problem := streams.lost():
                streams.say(f"{prog}: {problem}")
                return code or UsageError.exit_code
            return code
    finally:
        if is_command:
            streams.close()


def _run(argv: list[str], prog: str) -> int | ClientError:
    """Return the exit code, or why there is none yet."""
    try:
        if argv[:1] == ["keygen"]:
            from settee.base.sealing import keygen

            streams.line(keygen(argv[1:], f"{prog} keygen"))
            return 0
        args = cli_options.parser(prog).parse_args(argv)
        _check(args)
        return _dispatch(args, prog)
    except ClientError as error:
        return error
    except cli_options.Misuse as error:
        return UsageError(str(error))
    except KeyboardInterrupt:
        return JobStopped("stopped: no job was sent")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "settee":
            raise
        return UsageError(f"the package {error.name} is missing: pip install settee (or run in its .venv)")
    except Exception as error:  # the edge of the command: with --json there is a document in any case
        traceback.print_exc()
        return ClientError(f"an internal error of the client: {type(error).__name__}")


def _dispatch(args: argparse.Namespace, prog: str) -> int:
    """Do what the options ask for. Returns the exit code; raises ClientError."""
    from settee.client.endpoint import Endpoint

    with Endpoint(
        args.comfy or args.url or args.endpoint,
        comfy=bool(args.comfy),
        sync=args.sync,
        key_file=args.key_file,
        registry=args.registry,
    ) as endpoint:
        try:
            if args.health:
                streams.document(endpoint.health(), indent=None if args.json else 2)
                return 0
            if args.cancel:
                endpoint.cancel(args.cancel)
                found = {"status": "cancel_requested", "job_id": args.cancel}
                streams.document(found) if args.json else streams.line(f"{args.cancel}: asked to end")
                return 0
            if args.repeat or args.batch:
                from settee.client import run_many

                return run_many.run(endpoint, args)
            from settee.client import run_one

            return run_one.run(endpoint, args)
        except NetworkError as error:
            # An error about a job that was sent is not about the address.
            if endpoint.is_named or error.job_id is not None or type(error) is not NetworkError:
                raise
            words = (
                "the default address, as neither --endpoint, --url nor --comfy is given; to try: settee-worker --demo"
            )
            raise NetworkError(f"{error.message} ({words})", code=error.code, details=error.details) from error


def failed(error: ClientError, prog: str = cli_options.PROG, *, as_json: bool = False) -> int:
    """Report an error: the line and its code on stderr, and with --json the document on stdout."""
    if as_json:
        found = {"status": "error", "error": error.message, "code": error.code, "job_id": error.job_id}
        streams.document({**found, "details": error.details})
    streams.say(f"{prog}: {error.message}" + (f" [{error.code}]" if error.code else ""))
    problems = error.details.get("problems")
    # Those that a worker listed, when there are more than its line states.
    for problem in problems[:20] if isinstance(problems, list) and len(problems) > 1 else ():
        if isinstance(problem, dict):
            streams.say("  " + printable(f"{problem.get('path', '')}: {problem.get('problem', '')}"[:500]))
    return error.exit_code


def _check(args: argparse.Namespace) -> None:
    apart = [name for name in ("resume", "cancel", "health") if getattr(args, name)]
    if apart and args.workflow:
        why = "it asks about the target, not for a job" if args.health else "the job exists already"
        raise UsageError(f"--{apart[0]} takes no workflow: {why}")
    if not apart and not args.workflow:
        # An option that takes several files may have taken it (``--img a.png workflow.json``): no loader takes JSON.
        files = [texts for texts in (args.img, args.mask, args.video, args.audio) if texts]
        found = [texts for texts in files for text in texts if text.lower().endswith(".json")]
        if len(found) == 1 and found[0][-1].lower().endswith(".json") and "=" not in found[0][-1]:
            args.workflow = found[0].pop()
        elif not args.batch:
            hint = f" ({files[0][-1]} was taken for an input file: put the workflow first)" if files else ""
            raise UsageError(f"name a workflow: a file, - for stdin, a name from workflows/, or a picture{hint}")
    many = "--repeat" if args.repeat else "--batch" if args.batch else None
    for name in ("detach", "save_workflow", "open"):
        if many and getattr(args, name):
            raise UsageError(f"--{name.replace('_', '-')} is for one job, and {many} makes many")
    if args.workflow == "-" and many:
        raise UsageError(f"- (stdin) is read once, and {many} needs the workflow for every job: name a file")
    if args.seed is not None and args.repeat and args.repeat > 1:
        raise UsageError("--repeat with one --seed would make the same result every time: leave --seed out")
    if args.save_workflow == "-" and args.json:
        raise UsageError(
            "--save-workflow - and --json both write to standard output: --dry-run --json includes the workflow"
        )
    if args.sync and args.detach:
        raise UsageError("--sync waits for the result: leave it out with --detach")
