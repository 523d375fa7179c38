"""The worker process: `handler` for RunPod's SDK, and `main`, which starts it.

What the SDK does is left to it: its arguments (`--test_input`, `--rp_serve_api`, `--rp_log_level`, …), fitness
checks, pings, the local API. We bring the handler, the engine, our job loop, and an orderly end.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from settee import __version__
from settee.base import logs
from settee.base.errors import ConfigError, SetteeError
from settee.base.job import Cancel
from settee.base.settings import Settings, load
from settee.doors.runpod import render, sdk
from settee.doors.runpod.door import SHUTDOWN, Answer, Door, warmup

log = logging.getLogger(__name__)

#: After a SystemExit that did not arrive another is raised, seconds.
AGAIN_S = 3.0


class Signals:
    """SIGTERM and SIGINT around those who also handle them: the SDK's loop and the local API's server, which install
    their own handlers over ours when they start.

    Calls ``on_stop`` for a signal, then the handler that was there before. Without one it leaves with SystemExit,
    unless ``on_stop`` returns True: the process will end by itself.
    """

    def __init__(self, on_stop: Callable[[], bool]) -> None:
        self._on_stop, self._pid = on_stop, os.getpid()
        self._inner: dict[int, Any] = {}
        #: A signal is only remembered, for the host's loop to find when it starts: it forks before, and an exception
        #: that meets Python's fork hooks is printed and lost.
        self.is_held = False

    def wrap(self, *, alone: bool = False) -> None:
        """Put our handler around the one that is there now, or in its place, unless it is ours. Main thread only."""
        for number in (signal.SIGTERM, signal.SIGINT):
            current = signal.getsignal(number)
            if current != self._handle:
                self._inner[number] = None if alone else current
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # The SDK's ping process is forked from this one and inherits the handler; it has nothing to tidy up.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        will_end = self._on_stop()
        if self.is_held:
            return
        inner = self._inner.get(number)
        if callable(inner):
            inner(number, frame)
        elif not will_end:
            self._leave(number, frame)

    def _leave(self, number: int, frame: FrameType | None) -> None:
        # An exception that meets C code's call into Python is printed and lost, during imports for one.
        signal.signal(signal.SIGALRM, self._leave)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        raise SystemExit(0)

    def end(self) -> None:
        """The process is ending: SystemExit has arrived."""
        signal.setitimer(signal.ITIMER_REAL, 0)


class Worker:
    """One process's engine, door and signals."""

    def __init__(self, settings: Settings) -> None:
        from settee.engine.engine import Engine

        self.settings = settings
        self.door = Door(Engine(settings), settings)
        self._signals: Signals | None = None
        self._starting = Cancel()
        self._loop: asyncio.AbstractEventLoop | None = None
        #: ComfyUI did not start.
        self._failed = False

    async def handle(self, job: dict[str, Any]) -> Answer:
        """The SDK's handler."""
        self._loop = asyncio.get_running_loop()
        if self._signals is not None and self.door.post_progress is None:
            # Not RunPod's job loop but the local API, whose server has taken the signals over by now.
            self._signals.wrap()
        answer = await self.door.run(job)
        if job.get("id") == "local_test" and answer.get("details"):
            # The SDK shows the error's line, and nothing else of a --test_input that failed.
            print(json.dumps({"details": answer["details"]}, indent=2), file=sys.stderr, flush=True)
        return answer

    # --- ComfyUI's start ----------------------------------------------------------------------------------------

    async def comfyui(self) -> None:
        """RunPod's fitness check: ComfyUI answers, and has run the warm-up workflow. Named for its report.

        With EARLY_JOBS its start is watched instead, and the worker ends when it fails.
        """
        assert self._signals is not None
        self._signals.wrap()  # the SDK's start() has taken SIGINT
        try:
            if self.door.waits_ready:
                await asyncio.wrap_future(self.door.submit_ready(self._starting))
            elif self.door.engine.backend.unrecoverable:
                self._await_comfyui()
            else:
                self._watch_start()
        except SetteeError as error:
            if self._starting.is_set():
                raise SystemExit(0) from error
            self._report(error)
            raise
        self._signals.is_held = True

    def _await_comfyui(self) -> None:
        self.door.engine.backend.wait_ready(self.settings.comfy_start_timeout_s, self._starting)

    def _watch_start(self) -> None:
        """Wait for ComfyUI next to the first jobs; without it this worker takes no more, and exits with 1."""

        def watch() -> None:
            try:
                self._await_comfyui()
            except SetteeError as error:
                if not self._starting.is_set():
                    self._report(error)
                    self._failed = True
                    self.door.retire()

        threading.Thread(target=watch, name="comfyui-ready", daemon=True).start()

    def _report(self, error: SetteeError) -> None:
        log.error("not fit for jobs: %s", error.message)
        for line in error.details.get("log", ()):
            log.error("ComfyUI printed: %s", line)

    # --- from start to end --------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Start ComfyUI and the SDK; returns, or raises SystemExit, when the worker is to end. Raises ConfigError."""
        if self.settings.encryption_key is not None:
            render.sealer(self.settings)  # a bad key is found now, not by the first caller
        if self.settings.warmup_workflow is not None:
            warmup(self.settings)  # so is a file that is missing
        self._signals = Signals(self._stop)
        self._signals.wrap(alone=True)
        try:
            self.door.start()  # ComfyUI takes seconds to start: it need not wait for the SDK's import
            self._serve()
        except SystemExit as end:
            if self._failed and not end.code:  # the local API's server was ended as if told to
                raise SystemExit(1) from end
            raise
        finally:
            self._signals.end()
            self._starting.set(SHUTDOWN)
            self.door.close()
            if self.door.is_stuck:
                # Python would wait for its thread at its own end; the platform must see an end.
                logging.shutdown()
                os._exit(1)

    def _serve(self) -> None:
        runpod = sdk.load()
        if self.settings.serve_api_locally:
            sys.argv[1:1] = ["--rp_serve_api", "--rp_api_host=0.0.0.0"]
        _check_arguments()
        from runpod.serverless.modules import rp_fitness, rp_scale

        from settee.doors.runpod.loop import FastLoop, StockLoop

        # The SDK's debugger reports through the SDK's own way of running a job.
        fast = self.settings.fast_loop and "--rp_debugger" not in sys.argv
        if fast and not sdk.is_known():
            log.warning("runpod %s is not a version our job loop knows: using the SDK's own", runpod.__version__)
            fast = False
        rp_scale.JobScaler = partial(FastLoop if fast else StockLoop, door=self.door)
        self._check_fitness(rp_fitness)
        if "--rp_serve_api" in sys.argv:
            # Its fitness is not checked; its server ends as if told to.
            self.door.retire = partial(os.kill, os.getpid(), signal.SIGTERM)
            self._watch_start()
        runpod.serverless.start({"handler": self.handle})
        if self._failed or self.door.engine.backend.unrecoverable:
            raise SystemExit(1)

    def _check_fitness(self, rp_fitness: Any) -> None:
        """Have ComfyUI checked before the first job, and not left behind when any check fails."""

        def comfyui_last() -> None:
            # Registered from within a check, ours comes after those that the SDK adds by itself: its GPU test
            # allocates memory, and must not find the warm-up's models there. ComfyUI starts meanwhile.
            rp_fitness.register_fitness_check(self.comfyui)

        rp_fitness.register_fitness_check(comfyui_last)
        terminate = getattr(rp_fitness, "_terminate_unhealthy", None)
        if terminate is not None:
            # The SDK ends an unfit process with os._exit: ComfyUI, a session of its own, would outlive it.
            def close_and_terminate(code: int = 1) -> None:
                try:
                    self.door.close()
                finally:
                    terminate(code)

            rp_fitness._terminate_unhealthy = close_and_terminate

    def _stop(self) -> bool:
        """A signal arrived: end the start-up, or the running job. True when there is one: its end is the end."""
        self._starting.set(SHUTDOWN)
        self.door.stop_asked = True
        if self._loop is not None and self._loop.is_running():
            self._loop.call_soon_threadsafe(self.door.shut_down)
        return self.door.is_busy


# --- the command line -------------------------------------------------------------------------------------------


def _own_arguments() -> argparse.Namespace:
    """Take our own options out of the command line; the SDK reads the rest. Prints --help with those of the SDK."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--version", action="version", version=f"settee {__version__}")
    own.add_argument("--demo", action="store_true", help="serve the local API with an embedded ComfyUI: no GPU needed")
    if {"-h", "--help"}.intersection(sys.argv[1:]):
        argparse.ArgumentParser(
            usage="%(prog)s [OPTIONS]",
            description="The RunPod worker. Its settings are environment variables (docs/settings.md); COMFY_DIR names "
            "the ComfyUI that it starts, COMFY_URL one that runs.",
            parents=[own, sdk.load().serverless.parser],
            conflict_handler="resolve",
        ).parse_args(["--help"])
    arguments, sys.argv[1:] = own.parse_known_args()
    return arguments


def _sdk_arguments() -> Any:
    """Return the SDK's options, and arguments that are not among them."""
    return sdk.load().serverless.parser.parse_known_args()


def _check_arguments() -> None:
    """Raise ConfigError where the SDK would pass over something, or end with a traceback or without a word."""
    arguments, unknown = _sdk_arguments()
    runpods = map(os.environ.get, ("RUNPOD_WEBHOOK_GET_JOB", "RUNPOD_REALTIME_PORT"))  # by which it finds jobs
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]!r}: --help lists all")
    if arguments.test_input:
        try:
            is_object = isinstance(json.loads(arguments.test_input), dict)
        except (ValueError, RecursionError):
            is_object = False
        if not is_object:
            raise ConfigError("""--test_input must be a JSON object: '{"input": {"workflow": {…}}}'""")
    elif not (arguments.rp_serve_api or any(runpods) or os.path.exists("test_input.json")):
        raise ConfigError(
            "outside RunPod no jobs come by themselves: --rp_serve_api takes them over HTTP (in the image "
            "MODE=serve-api), --test_input '{…}' runs one, and --demo needs no ComfyUI"
        )


def _demo(folder: Path) -> dict[str, Any]:
    """Return the settings of ``--demo``: the embedded ComfyUI, and folders of its own. Raises ConfigError where the
    local API could not listen: the SDK would say so once ComfyUI has started."""
    if "--test_input" not in sys.argv:
        sys.argv.append("--rp_serve_api")
        host, port = _sdk_arguments()[0].rp_api_host, _sdk_arguments()[0].rp_api_port
        try:
            socket.create_server((host, port)).close()
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else error
            raise ConfigError(f"cannot listen on {host}:{port} ({reason}): give another --rp_api_port") from error
    return {
        "comfy_url": None,
        "comfy_command": f'"{sys.executable}" -m settee.embedded',
        "comfy_dir": Path(__file__).parents[3],  # it runs there, and so finds the package
        "comfy_port": 0,
        "models_dir": folder / "models",
        "workspace_dir": folder / "workspace",
    }


# --- entry points -----------------------------------------------------------------------------------------------

_worker: Worker | None = None


async def handler(job: dict[str, Any]) -> Answer:
    """RunPod's handler, for a script that starts the SDK itself; ComfyUI starts with the first job then."""
    global _worker
    if _worker is None:
        _worker = Worker(load())
        atexit.register(_worker.door.close)
    return await _worker.handle(job)


def main() -> None:
    """Run a worker until it is told to stop. Exits with a line that says what to set when a setting is wrong."""
    is_demo = _own_arguments().demo
    try:
        with tempfile.TemporaryDirectory(prefix="settee-demo-") if is_demo else nullcontext() as folder:
            settings = load(**({} if folder is None else _demo(Path(folder))))
            logs.setup(settings)
            if is_demo:
                port = _sdk_arguments()[0].rp_api_port
                url = f" --url http://127.0.0.1:{port}" if port != 8000 else ""
                log.info("try: settee-client workflows/invert.json --img workflows/example.png%s", url)
            Worker(settings).serve()
    except ConfigError as error:
        sys.exit("\n".join(f"settee: {line}" for line in error.lines()))
