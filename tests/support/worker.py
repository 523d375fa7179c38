"""A worker process under test: started, watched, and ended together with everything it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
STUB = ("-m", "tests.support.stub_worker")
REAL = ("rp_handler.py",)


class WorkerProcess:
    """``python <command> <arguments>`` in the repository, with this environment and nothing of RunPod's but it."""

    def __init__(
        self,
        *arguments: str,
        env: dict[str, str],
        command: tuple[str, ...] = STUB,
        program: tuple[str, ...] = (sys.executable, "-u"),
    ) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("RUNPOD_", "COMFY_"))}
        self._log = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            [*program, *command, *arguments],
            cwd=ROOT,
            env={**clean, **env},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        # Asked first, twice so that no job gets its grace: its ComfyUI is a session of its own and would live on.
        for _ in range(2):
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(4)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # a group of its own: the SDK's ping process is in it
        self.process.wait(10)
        self._log.close()

    @property
    def log(self) -> str:
        """What it has printed so far."""
        # Not seek and read: the offset is the child's too, and it would go on writing from there.
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    def signal(self, number: int) -> None:
        """Send it a signal: to itself, not to its group, as a container's host does."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 40.0) -> int:
        """Its exit code. Raises TimeoutError."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the worker did not end in {timeout_s:g} s:\n{self.log}") from None

    def wait_log(self, text: str, timeout_s: float = 40.0) -> None:
        """Wait until it prints ``text``. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while text not in self.log:
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise TimeoutError(f"no {text!r} in:\n{self.log}")
            time.sleep(0.02)
