"""`python leash.py PID COMMAND…`: become COMMAND, and die when the process PID does.

A worker that is killed outright (RunPod's SIGKILL, the kernel's OOM killer) can stop nothing any more, and ComfyUI,
in a session of its own, would go on rendering and keep its port. Linux can tie the two together
(prctl(2), PR_SET_PDEATHSIG). That is done here, between fork and exec, because Python code after a fork of a process
with threads (preexec_fn) may deadlock.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit("the worker is gone already")
    try:
        os.execvp(command[0], command)  # noqa: S606 - the operator's own command
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
