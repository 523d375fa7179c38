"""The client's command as its users run it: a process of its own, piped or in a terminal."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from settee.backends.comfy.process import free_port
from tests.support.embedded import COMFY_COMMAND
from tests.support.public_api import PublicApi
from tests.support.screen import Screen
from tests.support.worker import REAL, ROOT, WorkerProcess

WORKFLOWS = ROOT / "workflows"
PICTURE = WORKFLOWS / "example.png"
INVERT = WORKFLOWS / "invert.json"

_OWN = ("RUNPOD_", "COMFY_", "BUCKET_", "ENCRYPTION_KEY", "S3_", "AWS_")
_HALF_A_CODE = re.compile(r"\x1b(\[[?\d]*)?$")


@contextlib.contextmanager
def runpod_with_worker(folder: Path, **settings: str) -> Iterator[PublicApi]:
    """RunPod's public API, with rp_handler.py on the embedded ComfyUI behind it."""
    env = {
        "COMFY_COMMAND": COMFY_COMMAND,
        "COMFY_PORT": str(free_port()),
        "WORKSPACE_DIR": str(folder / "workspace"),
        "PROGRESS_INTERVAL_S": "0.05",
        "COMFY_INTERRUPT_S": "5",
        **settings,
    }
    with PublicApi() as api, WorkerProcess(env={**api.worker_env(), **env}, command=REAL):
        yield api


def endpoint_env(api: PublicApi) -> dict[str, str]:
    """The variables by which the command's own endpoint is this one."""
    base, _, endpoint = api.url.rpartition("/")
    return {"RUNPOD_ENDPOINT_BASE_URL": base, "RUNPOD_ENDPOINT_ID": endpoint, "RUNPOD_API_KEY": api.key}


@dataclass
class Ended:
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """What --json printed: one document, and nothing else."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found

    @property
    def saved(self) -> list[Path]:
        return [Path(line) for line in self.out.splitlines()]


class Command:
    """``client.py`` in a folder, with this environment and nothing of RunPod's but it."""

    def __init__(self, folder: Path, env: dict[str, str] | None = None, arguments: tuple[str, ...] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.arguments = folder, arguments
        clean = {name: value for name, value in os.environ.items() if not name.startswith(_OWN)}
        self.env = {**clean, "TERM": "xterm", **(env or {})}

    def start(self, *arguments: object, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
        """Its output is piped unless told otherwise; it is the leader of a group of its own, as a shell's jobs are."""
        command = [sys.executable, str(ROOT / "client.py"), *map(str, arguments), *self.arguments]
        given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(
            command, cwd=self.folder, env={**self.env, **(env or {})}, text=True, encoding="utf-8",
            start_new_session=True, **given,
        )  # fmt: skip

    def run(self, *arguments: object, timeout_s: float = 40, input: str | None = None, **options: Any) -> Ended:
        if input is not None:
            options["stdin"] = subprocess.PIPE
        return ended(self.start(*arguments, **options), timeout_s, input)

    def terminal(self, *arguments: object, columns: int = 80, env: dict[str, str] | None = None) -> Terminal:
        return Terminal(self, arguments, columns, env)


def ended(process: subprocess.Popen[str], timeout_s: float = 40, input: str | None = None) -> Ended:
    try:
        out, err = process.communicate(input, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"it did not end: {process.communicate()}") from None
    return Ended(process.returncode, out or "", err or "")


class Terminal:
    """The command in a terminal: everything it writes is on :attr:`screen`, and :meth:`type` is the keyboard."""

    def __init__(
        self, command: Command, arguments: tuple[object, ...], columns: int, env: dict[str, str] | None
    ) -> None:
        import fcntl
        import struct
        import termios

        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.screen, self.written, self._pending = Screen(columns), "", ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.process = command.start(
            *arguments, env=env, stdin=theirs, stdout=theirs, stderr=theirs,
            # Ctrl-C reaches the foreground group of the terminal that a session leader owns.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(theirs)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait(10)
        os.close(self._ours)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C, as the terminal's driver makes a signal of it."""
        self.type("\x03")

    def read_until(self, condition: Callable[[str], bool] | str, timeout_s: float = 40) -> None:
        """Read what it writes until a row says so. Raises AssertionError."""
        deadline = time.monotonic() + timeout_s
        wanted = condition
        is_there = (lambda text: wanted in text) if isinstance(wanted, str) else wanted
        while not is_there("\n".join(self.screen.text)):
            more = self._read(deadline - time.monotonic())
            assert more, f"{condition!r} is not on the screen: {self.screen.text}"

    def end(self, timeout_s: float = 40) -> int:
        """Its exit code, with all that it wrote on the screen."""
        deadline = time.monotonic() + timeout_s
        while self._read(deadline - time.monotonic()):
            pass
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def _read(self, seconds: float) -> bool:
        """Whether there was something before the end."""
        if not select.select([self._ours], [], [], max(0.0, seconds))[0]:
            return False
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # Linux's way to say that nobody has the other end
            return False
        text = self._decoder.decode(data)
        self.written += text
        # A control code may come in two reads.
        self._pending += text
        whole = _HALF_A_CODE.sub("", self._pending)
        self._pending = self._pending[len(whole) :]
        self.screen.feed(whole)
        return bool(data)


def interrupt(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
