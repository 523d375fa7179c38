"""``settee-client``: send a workflow, wait, save what it made. Exit codes are those of :mod:`settee.client.errors`."""

from __future__ import annotations

import argparse
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from settee.base.text import printable
from settee.client import options, streams
from settee.client.errors import ClientError, JobStopped, UsageError, command_line, spelled

PROG = "settee-client"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    is_command = argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    prog = Path(sys.argv[0]).name if sys.argv and sys.argv[0].endswith(".py") else PROG
    streams.prepare()
    with command_line():
        return _main(argv, prog, is_command=is_command)


def _main(argv: list[str], prog: str, *, is_command: bool) -> int:
    outcome = _run(argv, prog)
    if is_command:
        # All is over; a Ctrl-C now would only spoil how it is told.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    code = failed(outcome, prog, as_json="--json" in argv) if isinstance(outcome, ClientError) else outcome
    if problem := streams.lost():
        streams.say(f"{prog}: {problem}")
        return code or UsageError.exit_code
    return code


def _run(argv: list[str], prog: str) -> int | ClientError:
    """The exit code, or why there is none yet."""
    try:
        if argv[:1] == ["keygen"]:
            return _keygen(argv[1:], prog)
        args = _workflow_found(_parser(prog).parse_args(argv))
        _check(args)
        from settee.client import running

        return running.run(args, parse=_reparse(prog))
    except ClientError as error:
        return error
    except KeyboardInterrupt:
        return JobStopped("stopped: no job was sent")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "settee":
            raise
        return UsageError(f"the package {error.name} is missing: pip install settee (or run in its .venv)")
    except Exception as error:  # the door's edge: whoever reads the document gets one
        traceback.print_exc()
        return ClientError(f"a fault of the client's own: {type(error).__name__}")


def failed(error: ClientError, prog: str = PROG, *, as_json: bool = False) -> int:
    """Say what went wrong: the line and its code on stderr, and with --json the document on stdout."""
    if as_json:
        found = {"status": "error", "error": error.message, "code": error.code, "job_id": error.job_id}
        streams.document({**found, "details": error.details})
    code = f" [{error.code}]" if error.code else ""
    streams.say(f"{prog}: {error.message}{code}")
    for problem in _problems(error):
        streams.say(f"  {problem}")
    return error.exit_code


def _problems(error: ClientError) -> list[str]:
    """What a worker listed beside its line, when there is more than the line says."""
    problems = error.details.get("problems")
    if not isinstance(problems, list) or len(problems) < 2:
        return []
    lines = [f"{p.get('path', '')}: {p.get('problem', '')}" for p in problems[:20] if isinstance(p, dict)]
    return [spelled(printable(line[:500])) for line in lines]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if found := re.match(r"argument ([\w/-]+): expected (one|at least one) argument$", message):
            message += f"; a value that begins with - needs an equals sign: {found[1].split('/')[-1]}=-VALUE"
        raise UsageError(f"{message} (--help lists all options)")


def _parser(prog: str) -> argparse.ArgumentParser:
    return options.parser(_Parser, prog)


def _reparse(prog: str) -> options.Parse:
    def parse(texts: list[str], base: argparse.Namespace) -> argparse.Namespace:
        return _parser(prog).parse_args(texts, base)

    return parse


def _workflow_found(args: argparse.Namespace) -> argparse.Namespace:
    """``--img a.png workflow.json``: an option that takes several files takes the workflow too, but no loader takes
    JSON. Only where there is no doubt."""
    if args.workflow or args.resume or args.cancel or args.health:
        return args
    given = [texts for texts in (args.img, args.mask, args.video, args.audio) if texts]
    found = [(texts, text) for texts in given for text in texts if text.lower().endswith(".json")]
    if len(found) == 1 and found[0][0][-1] == found[0][1] and "=" not in found[0][1]:
        args.workflow = found[0][0].pop()
    return args


def _check(args: argparse.Namespace) -> None:
    """What no option can tell on its own. Raises UsageError."""
    apart = [name for name in ("resume", "cancel", "health") if getattr(args, name)]
    if apart and args.workflow:
        why = "it asks the target, not for a job" if args.health else "the job is there already"
        raise UsageError(f"--{apart[0]} takes no workflow: {why}")
    if not apart and not args.workflow and not args.batch:
        last = next((texts[-1] for texts in (args.img, args.mask, args.video, args.audio) if texts), None)
        hint = f" ({last} was taken for an input file: put the workflow first)" if last else ""
        raise UsageError(f"name a workflow: a file, - for stdin, a name from workflows/, or a picture{hint}")
    many = "--repeat" if args.repeat else "--batch" if args.batch else None
    for name in ("detach", "save_workflow", "preview", "open"):
        if many and getattr(args, name):
            raise UsageError(f"--{name.replace('_', '-')} is for one job, and {many} makes many")
    if args.workflow == "-" and many:
        raise UsageError(f"- (stdin) is read once, and {many} needs the workflow for every job: name a file")
    if args.seed is not None and args.repeat and args.repeat > 1:
        raise UsageError("--repeat with one --seed would make the same result every time: leave --seed out")
    if args.save_workflow == "-" and args.json:
        raise UsageError("--save-workflow - and --json both want standard output: --dry-run --json has the workflow")
    if args.sync and args.detach:
        raise UsageError("--sync waits for the result: leave it out with --detach")


def _keygen(argv: list[str], prog: str) -> int:
    parser = _Parser(
        prog=f"{prog} keygen", description="Make a key for sealed jobs: give it to the worker as ENCRYPTION_KEY."
    )
    parser.add_argument("file", nargs="?", type=Path, help="where to; only its owner may read it (default: stdout)")
    file = parser.parse_args(argv).file
    from settee.client import sealing

    if file is None:
        streams.line(sealing.new_key())
    else:
        sealing.write_key(file)
        streams.line(file)
    return 0
