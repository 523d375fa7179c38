"""An engine on a ComfyUI, for tests: the embedded one under its supervisor, or any at COMFY_URL."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import requests
from PIL import Image

from settee.backends.comfy.process import SupervisedServer
from settee.base.errors import InvalidRequest, SetteeError
from settee.base.job import Cancel, Job, Output, Progress, Result, Status
from settee.base.sealing import Sealer
from settee.base.settings import Settings, load
from settee.engine.engine import Engine
from settee.engine.request import parse
from tests.support.embedded import COMFY_COMMAND
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]

#: Set: the tests run on that ComfyUI instead, and those that need the embedded one's faults or nodes are skipped.
EXTERNAL = os.environ.get("COMFY_URL")

#: The class of the node in slow() that takes the time.
SLOW = "ImageScale" if EXTERNAL else "SetteeSampler"

#: Every wait of the engine, short: the tests provoke what the waits are for.
QUICK = {
    "comfy_unresponsive_s": 2.5,
    "comfy_stall_s": 1.5,
    "comfy_interrupt_s": 3,
    "comfy_history_s": 4,
    "comfy_start_timeout_s": 30,
    "job_timeout_s": 40,
}


def empty(colour: int = 255, size: int = 64, save: bool = True, prefix: str = "made") -> dict[str, Any]:
    """EmptyImage "1", and SaveImage "9"."""
    graph: dict[str, Any] = {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": size, "height": size, "batch_size": 1, "color": colour},
        }
    }
    if save:
        graph["9"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}}
    return graph


def with_node(class_type: str, colour: int = 7, **inputs: Any) -> dict[str, Any]:
    """EmptyImage "1" into a node "2"."""
    return {**empty(colour, save=False), "2": {"class_type": class_type, "inputs": {"images": ["1", 0], **inputs}}}


def told(**said: Any) -> dict[str, Any]:
    return {"2": {"class_type": "Teller", "inputs": {"said": json.dumps(said)}}}


#: The inputs of SaveImage in empty().
SAVED = {"images": ["1", 0], "filename_prefix": "made"}


def saving(**inputs: Any) -> dict[str, Any]:
    graph = empty()
    graph["9"]["inputs"].update(inputs)
    return graph


def refuse(graph: dict[str, Any], **request: Any) -> None:
    """The request is turned away with an error of ours, before any ComfyUI sees it."""
    with pytest.raises(InvalidRequest):
        parse({"workflow": graph, **request}, load(comfy_url=None))


def slow(steps: int = 40, delay_ms: int = 50, seed: int | None = None) -> dict[str, Any]:
    """A graph that takes about ``steps`` × ``delay_ms`` in nodes of class SLOW, and can be interrupted.

    On the embedded server that is one sampler-like node "5" which reports each step; on any other a chain of
    scalings, between which it can be interrupted.
    """
    seed = uuid.uuid4().int % 2**24 if seed is None else seed
    if EXTERNAL:
        return _slow_anywhere(max(2, steps * delay_ms // 400), seed)
    graph = empty()
    graph["5"] = {
        "class_type": SLOW,
        "inputs": {"image": ["1", 0], "seed": seed, "steps": steps, "delay_ms": delay_ms},
    }
    graph["9"]["inputs"]["images"] = ["5", 0]
    return graph


def _slow_anywhere(count: int, colour: int) -> dict[str, Any]:
    graph = empty(colour, size=1600)
    source = "1"
    for index in range(count):
        graph[f"5:{index}"] = {
            "class_type": SLOW,
            "inputs": {
                "image": [source, 0],
                "upscale_method": "lanczos",
                "width": 1600 - index % 2,
                "height": 1600,
                "crop": "disabled",
            },
        }
        source = f"5:{index}"
    graph["8"] = {
        "class_type": "ImageScale",
        "inputs": {"image": [source, 0], "upscale_method": "area", "width": 64, "height": 64, "crop": "disabled"},
    }
    graph["9"]["inputs"]["images"] = ["8", 0]
    return graph


def failing(fault: str, **inputs: Any) -> dict[str, Any]:
    """A node "5" (SetteeFault) that fails in the named way."""
    graph = empty()
    graph["5"] = {"class_type": "SetteeFault", "inputs": {"image": ["1", 0], "fault": fault, **inputs}}
    graph["9"]["inputs"]["images"] = ["5", 0]
    return graph


def png(colour: tuple[int, int, int] = (10, 200, 30), size: tuple[int, int] = (64, 64)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def picture(output: Output) -> Image.Image:
    """The image that an output carries inline."""
    assert output.data is not None
    return Image.open(io.BytesIO(base64.b64decode(output.data)))


def files_below(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*")]


class Run(threading.Thread):
    """A job on its way in a thread."""

    def __init__(self, rig: Rig, graph: dict[str, Any], request: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._rig, self._graph, self._request = rig, graph, request
        self.cancel = Cancel()
        self.progress: list[Progress] = []
        self.result: Result | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self._rig.run(
                self._graph, cancel=self.cancel, on_progress=self.progress.append, **self._request
            )
        except BaseException as error:  # handed to the test by end()
            self.error = error
        finally:
            self.cancel.close()

    def reach(self, status: Status, node_type: str | None = None, timeout_s: float = 30) -> Progress:
        """Wait until the job gets there."""

        def there() -> Progress | None:
            assert self.error is None or isinstance(self.error, SetteeError), self.error
            for step in list(self.progress):
                if step.status is status and (node_type is None or step.node_type == node_type):
                    return step
            return None

        return eventually(there, timeout_s, f"{status} {node_type or ''}")  # type: ignore[no-any-return]

    def end(self, timeout_s: float = 30) -> Result:
        """The job's result; raises what the job raised."""
        self.join(timeout_s)
        assert not self.is_alive(), "the job hangs"
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result


class Rig:
    """Engine, workspace and ComfyUI, to be used in a with statement."""

    def __init__(self, root: Path, *, embedded: bool = False, **settings: Any) -> None:
        """The embedded server of its own with ``embedded``, or when COMFY_URL and ``comfy_url`` name no other."""
        self.root = root
        self._runs: list[Run] = []
        if embedded or "comfy_url" in settings:
            # Nothing of an outer COMFY_URL holds for this one.
            settings = {
                "comfy_url": None,
                **{f"comfy_{name}_dir": None for name in ("input", "output", "temp")},
                **settings,
            }
        chosen: dict[str, Any] = {
            "workspace_dir": root / "workspace",
            "comfy_port": 0,
            "comfy_command": COMFY_COMMAND,
            **QUICK,
            **settings,
        }
        self.settings: Settings = load(**chosen)
        self.engine = Engine(self.settings)

    def __enter__(self) -> Rig:
        self.engine.start()
        try:
            self.engine.backend.wait_ready(30)
        except BaseException:
            self.engine.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_runs()
        self.engine.close()

    # --- jobs -----------------------------------------------------------------------------------------------

    def job(self, graph: dict[str, Any], **request: Any) -> Job:
        if EXTERNAL and '"class_type": "Settee' in json.dumps(graph):
            pytest.skip("needs a node of the embedded server")
        max_result_bytes = request.pop("max_result_bytes", None)
        key = self.settings.encryption_key if request.pop("sealed", False) else None
        return Job(
            id=f"job-{uuid.uuid4().hex[:8]}",
            request=parse({"workflow": graph, **request}, self.settings),
            max_result_bytes=max_result_bytes,
            sealer=key and Sealer(key.get_secret_value()),
        )

    def run(
        self,
        graph: dict[str, Any],
        *,
        cancel: Cancel | None = None,
        on_progress: Callable[[Progress], None] = lambda _: None,
        **request: Any,
    ) -> Result:
        return self.engine.run(self.job(graph, **request), on_progress, cancel)

    def start(self, graph: dict[str, Any], **request: Any) -> Run:
        self.job(graph)  # a skip must come in the test's own thread
        run = Run(self, graph, request)
        run.start()
        self._runs.append(run)
        return run

    def stop_runs(self) -> None:
        """Cancel what a test left running, and wait for it."""
        for run in self._runs:
            run.cancel.set()
            run.join(20)
        self._runs.clear()

    def needs_own_comfyui(self) -> None:
        if self.is_external:
            pytest.skip("would break a ComfyUI that is not the tests' own")

    # --- the ComfyUI below ----------------------------------------------------------------------------------

    @property
    def server(self) -> Any:
        return self.engine.backend._server

    @property
    def url(self) -> str:
        return str(self.server.client.url)

    @property
    def folders(self) -> tuple[Path, ...]:
        folders = self.engine.backend.workspace.folders
        return tuple(folder for folder in (folders.input, folders.output, folders.temp) if folder is not None)

    def fault(self, name: str, value: Any = True) -> None:
        if self.is_external:
            pytest.skip("needs a fault of the embedded server")
        answer = requests.post(f"{self.url}/settee/faults", json={name: value}, timeout=5)
        assert answer.status_code == 200, answer.text

    def clear_faults(self) -> None:
        if not self.is_external:
            active = requests.get(f"{self.url}/settee/faults", timeout=5).json()
            requests.post(f"{self.url}/settee/faults", json=dict.fromkeys(active), timeout=5)

    @property
    def is_external(self) -> bool:
        """Whether this rig's ComfyUI is the one at COMFY_URL."""
        return EXTERNAL is not None and self.settings.comfy_url == EXTERNAL

    def stats(self) -> dict[str, int]:
        self.needs_own_comfyui()
        return dict(requests.get(f"{self.url}/settee/stats", timeout=5).json())

    def queue(self) -> dict[str, Any]:
        return dict(requests.get(f"{self.url}/queue", timeout=5).json())

    def is_idle(self) -> bool:
        queue = self.queue()
        return not queue["queue_running"] and not queue["queue_pending"]

    def running_id(self) -> str:
        """The prompt that ComfyUI runs now."""
        running = eventually(lambda: self.queue()["queue_running"], what="a running prompt")
        return str(running[0][1])

    def send_signal(self, number: signal.Signals) -> int:
        """Signal ComfyUI's process; returns its pid."""
        self.needs_own_comfyui()
        assert isinstance(self.server, SupervisedServer)
        process = self.server._process
        assert process is not None
        os.kill(process.pid, number)
        return process.pid
