"""Starting the embedded ComfyUI for a test, and switching its faults."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import requests

from settee.backends.comfy.process import free_port

START_SECONDS = 20.0
STOP_SECONDS = 5.0
_ROOT = Path(__file__).parents[2]
_SCRIPT = _ROOT / "tests/support/comfy_pack/embedded.py"
_COMMAND = (sys.executable, str(_SCRIPT))
COMFY_COMMAND = shlex.join(_COMMAND)
"""``python -m settee.embedded`` with the nodes and faults of tests/support/comfy_pack."""


class EmbeddedServer:
    """The embedded ComfyUI as a subprocess over directories below root.

    Use it in a with statement, or call start and stop. faults are switched on from the start; args are more
    ComfyUI arguments. Its output goes to ``root/server.log``.
    """

    def __init__(
        self,
        root: Path,
        faults: Mapping[str, Any] | None = None,
        args: Sequence[str] = (),
        port: int | None = None,
    ) -> None:
        self.root = Path(root)
        self.input_dir = self.root / "input"
        self.output_dir = self.root / "output"
        self.temp_dir = self.root / "temp"
        self.log_path = self.root / "server.log"
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self._session = requests.Session()
        self._command = [*_COMMAND, "--port", str(self.port)]
        self._command += ["--base-directory", str(self.root), *args]
        for name, value in (faults or {}).items():
            self._command += ["--fault", name if value is True else f"{name}={value}"]

    @property
    def shared(self) -> dict[str, Any]:
        """Settings of a worker that uses this server and shares its folders."""
        return {
            "comfy_url": self.url,
            "comfy_input_dir": self.input_dir,
            "comfy_output_dir": self.output_dir,
            "comfy_temp_dir": self.temp_dir,
        }

    def start(self, wait: bool = True) -> EmbeddedServer:
        """Start the process; with wait, return once it answers. Raises RuntimeError when it does not."""
        self.root.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log, env=environment)
        if wait:
            self.wait_until_up()
        return self

    def wait_until_up(self, seconds: float = START_SECONDS) -> None:
        """Wait for the first answer; raises RuntimeError with the log when the process ends or time runs out."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                break
            try:
                requests.get(f"{self.url}/settee/stats", timeout=1)
            except requests.ConnectionError:
                time.sleep(0.01)  # nothing tells that a port is being listened on
            else:
                return
        raise RuntimeError(f"the embedded server did not start:\n{self.log_text()}")

    def stop(self) -> None:
        """End the process; calling it twice is fine."""
        self._session.close()
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(STOP_SECONDS)

    def __enter__(self) -> EmbeddedServer:
        return self if self.process is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def fault(self, name: str, value: Any = True) -> None:
        """Switch a fault of tests/support/comfy_pack/faults.py on, or off with None."""
        answer = self._session.post(f"{self.url}/settee/faults", json={name: value}, timeout=5)
        if answer.status_code != 200:
            raise ValueError(answer.text)

    def clear_faults(self) -> None:
        """Switch every fault off."""
        active = self._session.get(f"{self.url}/settee/faults", timeout=5).json()
        self._session.post(f"{self.url}/settee/faults", json=dict.fromkeys(active), timeout=5)

    def stats(self) -> dict[str, int]:
        """Counts of what the server did since it started."""
        answer: dict[str, int] = self._session.get(f"{self.url}/settee/stats", timeout=5).json()
        return answer

    def log_text(self) -> str:
        """What the server printed so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""


def comfyui_in(folder: Path, *args: str) -> Path:
    """A folder such as COMFY_DIR names: its main.py is the embedded ComfyUI, with these arguments beside its own."""
    folder.mkdir()
    (folder / "main.py").write_text(
        f"import runpy, sys\nsys.path[:0] = [{str(_ROOT)!r}, {str(_SCRIPT.parent)!r}]\nsys.argv += {list(args)!r}\n"
        f"runpy.run_path({str(_SCRIPT)!r}, run_name='__main__')\n"
    )
    return folder
