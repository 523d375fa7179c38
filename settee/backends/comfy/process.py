"""The ComfyUI server that jobs run on: one that the worker starts and supervises, or one that is there already."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

from settee.backends.comfy.comfy_client import Client
from settee.backends.comfy.console import Console
from settee.backends.comfy.launch import ExtraPaths, check_program, command_line
from settee.base.errors import ComfyError, ComfyUnavailable, ConfigError
from settee.base.job import Cancel
from settee.base.settings import Settings, child_environment
from settee.base.text import neutral
from settee.net.retry import Backoff
from settee.staging.workspace import Folders

log = logging.getLogger(__name__)

#: Run by its path, with nothing but the standard library: ComfyUI's folder must not get into its imports.
LEASH = Path(__file__).with_name("leash.py")
#: Starts in a row without an answer after which ComfyUI counts as beyond repair.
MAX_FAILED_STARTS = 4
#: What ComfyUI prints of a custom node that it cannot use: its path, and why.
_FAILED_IMPORT = re.compile(r"(?:Cannot import|Skip) (\S.*) module for custom nodes(?:: | due to )(.*)")
#: Seconds before the first restart; doubles with each failed start.
_BACKOFF = Backoff(1.0, 15.0)
#: ComfyUI does not report that it is ready, so it is asked this often (its start takes seconds).
_READY_POLL_S = 0.05
#: A longer wait is logged, seconds.
_LOG_AFTER_S = 3.0
#: How long ComfyUI may take over a SIGTERM. The platform gives the whole worker a few seconds.
_CLOSE_S = 1.5
#: How long to read on after ComfyUI's end: something it started may hold the pipe open.
_LAST_WORDS_S = 2.0


class Server:
    """A ComfyUI that jobs can be sent to. This one is there already: it can be asked, not restarted."""

    #: True if the worker started it, alone uses it, and may restart it.
    is_ours = False

    def __init__(self, client: Client) -> None:
        self.client = client
        #: Rises with every start: a prompt submitted under another number is gone.
        self.generation = 0
        #: True once it printed that the thread which runs prompts has ended.
        self.executor_died = False
        #: Custom nodes that it printed it could not import, and why.
        self.failed_imports: dict[str, str] = {}

    @property
    def unrecoverable(self) -> bool:
        """True when no restart will bring it back."""
        return False

    def start(self) -> None:
        """Begin to start, and return. Raises ConfigError."""

    def quiet(self) -> AbstractContextManager[None]:
        """Keep what ComfyUI prints out of the worker's log and out of reports: a sealed job is running."""
        return nullcontext()

    def new_job(self) -> None:
        """Give it the time to come back again, which an earlier job may have used up."""
        self.client.refused_since = None

    def is_running(self) -> bool:
        return True

    def wait_ready(self, timeout_s: float, cancel: Cancel | None = None, *, for_job: bool = False) -> None:
        """Wait until it answers; for a job only while something listens there. Raises ComfyUnavailable."""
        client = self.client
        if self._answers(timeout_s, cancel, lambda: not (for_job and client.is_gone)):
            return
        if client.is_gone:
            raise ComfyUnavailable(
                f"nothing listens at COMFY_URL ({client.url}): start ComfyUI there, or correct COMFY_URL"
            )
        raise ComfyUnavailable(f"no ComfyUI answers at COMFY_URL ({client.url}) within {timeout_s:g} s")

    def _answers(
        self, timeout_s: float, cancel: Cancel | None, go_on: Callable[[], bool], *, is_logged: bool = True
    ) -> bool:
        """Ask until it answers; False at the timeout, when canceled, or when ``go_on`` is False."""
        pause = cancel if cancel is not None else threading.Event()
        now = time.monotonic()
        deadline, log_at = now + timeout_s, now + _LOG_AFTER_S
        while go_on():
            if is_logged and time.monotonic() > log_at:
                log.info("still waiting for ComfyUI at %s", self.client.url)
                log_at = time.monotonic() + 10 * _LOG_AFTER_S
            try:
                self.client.system_stats(timeout_s=max(0.1, min(5.0, deadline - time.monotonic())))
                return True
            except ComfyError:
                if time.monotonic() >= deadline or pause.wait(_READY_POLL_S):
                    return False
        return False

    def restart(self, reason: str) -> None:
        """Kill ComfyUI, whatever it is doing, and have it started again."""
        raise ComfyUnavailable(f"ComfyUI at COMFY_URL needs a restart ({reason}), which the worker cannot do")

    def log_tail(self, lines: int = 20) -> list[str]:
        """Return the last lines that it printed for this job, without tracebacks and this host's paths."""
        return []

    def close(self) -> None:
        self.client.close()


class SupervisedServer(Server):
    """A ComfyUI of our own: started on loopback, its log captured, restarted with backoff when it ends."""

    is_ours = True

    def __init__(self, settings: Settings, folders: Folders, *, listen: str = "127.0.0.1") -> None:
        self._settings, self._folders, self._listen = settings, folders, listen
        self._extra_paths = ExtraPaths(settings, folders)
        self._port = settings.comfy_port or free_port()
        super().__init__(Client(f"http://127.0.0.1:{self._port}"))
        self._process: subprocess.Popen[bytes] | None = None
        self._console = Console(self._note)
        self._closing = threading.Event()
        #: Starts in a row that never answered.
        self._failed_starts = 0
        #: The last generation that answered.
        self._answered = 0
        #: True once a start was ended by us: what it would have come to is not known.
        self._was_killed = False
        self._exit_code: int | None = None
        #: Why the last start was not possible.
        self._refused = ""
        self._is_supervised = False
        self._lock = threading.Lock()

    @property
    def unrecoverable(self) -> bool:
        # One that never came up and ends by itself lacks something that no second try brings.
        tries = MAX_FAILED_STARTS if self._answered or self._was_killed else 1
        return self._failed_starts >= tries

    def command(self) -> list[str]:
        """Return the command line. Raises ConfigError when there is no ComfyUI to start."""
        return command_line(
            self._settings, self._folders, listen=self._listen, port=self._port, further=self._extra_paths.arguments()
        )

    def log_tail(self, lines: int = 20) -> list[str]:
        return self._console.tail(lines)

    def _note(self, line: str) -> None:
        """Notice Python's own words for a thread that ended: ComfyUI lives on, and runs nothing any more. And ComfyUI's
        for a custom node that it goes on without (nodes.load_custom_node)."""
        if line.startswith("Exception in thread") and "prompt_worker" in line:
            self.executor_died = True
        elif failed := _FAILED_IMPORT.search(line):
            self.failed_imports[Path(failed[1]).name] = neutral(failed[2])[:200]

    def quiet(self) -> AbstractContextManager[None]:
        return self._console.quiet()

    def new_job(self) -> None:
        """Count what is printed from now on to another job; what a failed start printed belongs to no job."""
        if self._answered:
            self._console.forget()

    # --- life -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        with self._lock:
            if self._is_supervised or self._closing.is_set():
                return
            self._prepare()
            self._is_supervised = True
        threading.Thread(target=self._supervise, name="comfyui-supervisor", daemon=True).start()

    def is_running(self) -> bool:
        process = self._process
        return process is not None and process.poll() is None

    def wait_ready(self, timeout_s: float, cancel: Cancel | None = None, *, for_job: bool = False) -> None:
        """Wait until ComfyUI answers. Raises ComfyUnavailable (with the end of its log) when it will not."""
        # The supervisor waits too, and logs it.
        if self._answers(
            timeout_s, cancel, lambda: not (self.unrecoverable or self._closing.is_set()), is_logged=False
        ):
            # Whoever looks first: it may be killed before the supervisor has seen it.
            self._note_answer()
            return
        if self._closing.is_set():
            raise ComfyUnavailable("the worker is shutting down", retryable=True)
        if self.unrecoverable:
            times = "" if self._failed_starts == 1 else f" {self._failed_starts} times in a row"
            ended = f"ComfyUI does not start: it ended{times} with {exit_text(self._exit_code)} before it answered"
            message = self._refused or ended
        else:
            message = f"ComfyUI did not answer within {timeout_s:g} s of waiting"
        tail = self.log_tail()
        if any("ModuleNotFoundError" in line for line in tail):
            message += "; a package is missing: set COMFY_PYTHON to the Python that has ComfyUI's"
        raise ComfyUnavailable(message, details={"exit_code": self._exit_code, "log": tail})

    def restart(self, reason: str) -> None:
        """Kill ComfyUI, whatever it is doing; the supervising thread starts the next one."""
        process = self._process
        if process is not None and process.poll() is None:
            log.warning("restarting ComfyUI: %s", reason)
            self._kill(process)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                log.error("ComfyUI (pid %s) does not die", process.pid)

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        self._was_killed = True
        signal_group(process, signal.SIGKILL)

    def close(self) -> None:
        """Stop ComfyUI: SIGTERM, then SIGKILL."""
        self._closing.set()
        with self._lock:
            process = self._process
        if process is not None:
            end(process, _CLOSE_S)
        self._extra_paths.remove()
        self.client.close()

    def _supervise(self) -> None:
        """Keep a ComfyUI running until close().

        All starts are this thread's: ComfyUI is tied to the life of the thread that started it (leash.py).
        """
        while True:
            try:
                with self._lock:
                    if self._closing.is_set():
                        return
                    process = self._launch(self._prepare())
            except ConfigError as error:
                self._refused = neutral(error.message)
                self._failed_starts += 1
                log.error("ComfyUI cannot be started: %s", error)
            else:
                reader = threading.Thread(target=self._console.follow, args=(process.stdout,), daemon=True)
                reader.start()
                self._await_answer(process)
                self._exit_code = process.wait()
                # What ComfyUI started itself (a node's ffmpeg, say) must not live on into the next job.
                signal_group(process, signal.SIGKILL)
                if self._closing.is_set():
                    return
                reader.join(_LAST_WORDS_S)  # why it ended is in its last lines
                log.error("ComfyUI ended with %s", exit_text(self._exit_code))
                self._failed_starts += self._answered != self.generation
            if self.unrecoverable:
                return
            self._closing.wait(_BACKOFF.pause_s(self._failed_starts) if self._failed_starts else 0.0)

    def _prepare(self) -> list[str]:
        """Return the command line, once all that it needs is there. Raises ConfigError."""
        if _is_taken(self._port):
            raise ConfigError(
                f"port {self._port} is taken by another program: set COMFY_PORT, or COMFY_URL to use what runs there"
            )
        self._extra_paths.write()
        command = self.command()
        check_program(command[0], self._settings)
        return command

    def _launch(self, command: list[str]) -> subprocess.Popen[bytes]:
        try:
            # A session of its own: a SIGTERM to the worker's group must not reach ComfyUI before the worker has
            # dealt with its job. The worker's own secrets stay out of reach of custom nodes. Unbuffered: a line
            # must come out while the job runs that it is about.
            process = subprocess.Popen(  # noqa: S603 - the operator's own command
                [sys.executable, "-I", "-S", str(LEASH), str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**child_environment(), "PYTHONUNBUFFERED": "1"},
                cwd=self._settings.comfy_dir if self._settings.comfy_dir.is_dir() else None,
            )
        except OSError as error:
            raise ConfigError(f"ComfyUI cannot be started: {command[0]}: {error.strerror}") from error
        self.generation += 1
        self._process, self._refused = process, ""
        self.executor_died = False
        self.failed_imports = {}
        log.info("started ComfyUI (pid %s, port %s)", process.pid, self._port)
        return process

    def _await_answer(self, process: subprocess.Popen[bytes]) -> None:
        """Note that this ComfyUI has come up, or end it when it takes longer than COMFY_START_TIMEOUT_S."""
        limit_s = self._settings.comfy_start_timeout_s
        if self._answers(limit_s, None, lambda: process.poll() is None):
            self._note_answer()
        elif process.poll() is None and not self._closing.is_set():
            log.error("ComfyUI did not answer within COMFY_START_TIMEOUT_S=%g s of its start", limit_s)
            self._kill(process)

    def _note_answer(self) -> None:
        self._answered = self.generation
        self._failed_starts = 0


# --- processes and ports ------------------------------------------------------------------------------------------


def signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal a process and, where it leads a session, everything that it started; nothing for what has ended."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        process.send_signal(number)  # it leads none
    except PermissionError:
        # macOS answers so for a group whose members are all zombies.
        log.debug("process group %s is gone", process.pid)


def end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """SIGTERM, and after ``grace_s`` seconds SIGKILL for what is left."""
    if process.poll() is None:
        signal_group(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    # What it started itself may have ignored the SIGTERM.
    signal_group(process, signal.SIGKILL)
    process.wait(5)


def exit_text(code: int | None) -> str:
    """Return an exit code as a person reads it."""
    if code is not None and code < 0:
        names = {number.value: number.name for number in signal.Signals}
        return f"signal {names.get(-code, -code)}"
    return f"exit code {code}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
