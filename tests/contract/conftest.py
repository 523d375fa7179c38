"""The server under test: the embedded one, or a real ComfyUI when COMFY_URL is set.

For a real one COMFY_INPUT_DIR, COMFY_OUTPUT_DIR and COMFY_TEMP_DIR tell where its files are, if they can be reached.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contract.driver import Comfy, Graph, ksampler_graph, sampler_graph
from tests.support.embedded import EmbeddedServer
from tests.support.models import safetensors


def _directory(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None


def place_models(root: Path) -> None:
    """The checkpoints that the recorded server had, by name, and LoRAs: none has weights in it."""
    files = {
        "checkpoints/corrupt.safetensors": b"this is no model" * 64,
        "checkpoints/tiny-sd15.safetensors": safetensors(fill=1),
        "loras/first.safetensors": safetensors(fill=2),
        "loras/second.safetensors": safetensors(fill=3),
        "vae/own.safetensors": safetensors(fill=4),
    }
    for name, data in files.items():
        path = root / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@pytest.fixture(scope="session")
def _comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfy]:
    url = os.environ.get("COMFY_URL")
    if url:
        directories = [_directory(f"COMFY_{kind}_DIR") for kind in ("INPUT", "OUTPUT", "TEMP")]
        yield Comfy(url.rstrip("/"), *directories, is_real=True)
        return
    server = EmbeddedServer(tmp_path_factory.mktemp("embedded"))
    place_models(server.root)
    with server:
        yield Comfy(server.url, server.input_dir, server.output_dir, server.temp_dir)


@pytest.fixture
def comfy(_comfy: Comfy) -> Iterator[Comfy]:
    """The server, idle."""
    _comfy.wait_idle()
    yield _comfy
    _comfy.close()


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Callable[..., EmbeddedServer]]:
    """Starts embedded servers of the test's own: ``embedded(faults={…}, args=[…])``."""
    if os.environ.get("COMFY_URL"):
        pytest.skip("only the embedded server can be started in other ways, has faults and nodes of its own")
    servers: list[EmbeddedServer] = []

    def start(wait: bool = True, **how: object) -> EmbeddedServer:
        server = EmbeddedServer(tmp_path / f"server{len(servers)}", **how)  # type: ignore[arg-type]
        servers.append(server)
        return server.start(wait)

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def slow_graph(comfy: Comfy) -> Callable[[int], Graph]:
    """A graph whose node "3" takes that many steps and whose node "9" saves."""
    if not comfy.is_real:
        return sampler_graph
    checkpoint = small_checkpoint(comfy)
    return lambda steps: ksampler_graph(steps, checkpoint)


@pytest.fixture
def checkpoint(comfy: Comfy) -> str:
    """The name of a checkpoint that a test may sample with."""
    return small_checkpoint(comfy)


def small_checkpoint(comfy: Comfy) -> str:
    info = comfy.get("/object_info/CheckpointLoaderSimple").json()
    names: list[str] = info["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0]
    found = next((name for name in names if "tiny" in name), None)
    if found is None:
        pytest.skip("the real server has no small checkpoint (a file with tiny in its name) to sample with")
    return found
