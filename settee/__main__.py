"""``settee COMMAND``, or ``python -m settee COMMAND``: every command of the package."""

from __future__ import annotations

import argparse
import importlib
import sys

from settee import __version__

#: Its module, the extra that installs what it needs, and a line for the list.
COMMANDS = {
    "client": ("settee.client.cli", None, "send a workflow, save what it makes"),
    "worker": ("settee.doors.runpod.worker", "worker", "the RunPod worker; --demo needs no ComfyUI"),
    "agent": ("settee.doors.agent.serve", "agent", "the GPU agent: render jobs over HTTP"),
    "models": ("settee.models.command_line", "worker", "place, list and verify models"),
    "keygen": ("settee.base.sealing", None, "print a key for sealed jobs"),
    "embedded": ("settee.embedded.__main__", "embedded", "a small ComfyUI for nodes without models"),
    "interactive": ("settee.interactive", "worker", "ComfyUI with its editor, and no worker"),
    "health": ("settee.health", "worker", "the container's health check"),
}


def main() -> int:
    """Run the command that the first argument names; the exit code."""
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="settee",
        description="ComfyUI workflows as jobs.",
        epilog="commands (each has a --help of its own):\n"
        + "\n".join(f"  {name:{width}}  {words}" for name, (_, _, words) in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"settee {__version__}")
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="one of the commands below")
    return _run(parser.parse_args(sys.argv[1:2]).command, sys.argv[2:])


def worker() -> int:
    """Run ``settee-worker``."""
    return _run("worker", sys.argv[1:])


def _run(command: str, arguments: list[str]) -> int:
    if arguments[:1] == ["--version"]:
        print(f"settee {__version__}")
        return 0
    module, extra, _ = COMMANDS[command]
    sys.argv = [f"settee {command}", *arguments]
    try:
        return int(importlib.import_module(module).main() or 0)
    except ModuleNotFoundError as error:
        if extra is None or (error.name or "").split(".")[0] == "settee":
            raise
        print(f"settee {command}: the package {error.name} is missing: pip install 'settee[{extra}]'", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
