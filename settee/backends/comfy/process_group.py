"""How a process is ended, with its group where it leads one, and how it ended."""

from __future__ import annotations

import logging
import os
import signal
import subprocess

log = logging.getLogger(__name__)


def kill_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal ComfyUI and everything it started: it leads a session, so its pid names the group."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass
    except PermissionError:
        # macOS answers so for a group whose members are all zombies.
        log.debug("process group %s is gone", process.pid)


def exit_text(code: int | None) -> str:
    """An exit code as a person reads it."""
    if code is not None and code < 0:
        names = {number.value: number.name for number in signal.Signals}
        return f"signal {names.get(-code, -code)}"
    return f"exit code {code}"


def end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """SIGTERM, and SIGKILL when that was not enough; nothing for a process that has ended."""
    process.terminate()
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(5)
