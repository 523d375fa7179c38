"""A job and its models: waited for, whole, its own; against a Hub of the tests' own and the embedded ComfyUI."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from PIL import Image

from settee.base.errors import (
    ConfigError,
    DownloadFailed,
    IntegrityError,
    InvalidRequest,
    JobCanceled,
    JobTimeout,
    ModelMissing,
)
from settee.base.job import Result, Status
from tests.support.embedded import COMFY_COMMAND
from tests.support.hub import HubServer
from tests.support.rig import ROOT, Rig, empty
from tests.support.waiting import eventually

REPO = "acme/models"
#: Throttled to a few hundred ms a file.
SIZE = 1_000_000


def tensors(seed: int, size: int = SIZE) -> bytes:
    """A safetensors file of one tensor."""
    body = hashlib.sha256(seed.to_bytes(4, "big")).digest() * (size // 32)
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(body)], "data_offsets": [0, len(body)]}}).encode()
    return len(header).to_bytes(8, "little") + header + body


def tint(name: str, colour: int = 0) -> dict[str, Any]:
    """A picture coloured by the checkpoint's digest."""
    graph = empty(colour)
    graph["5"] = {"class_type": "SetteeCheckpointTint", "inputs": {"image": ["1", 0], "ckpt_name": name}}
    graph["9"]["inputs"]["images"] = ["5", 0]
    return graph


def colour_of(result: Result) -> tuple[int, ...]:
    (output,) = result.outputs
    assert output.data is not None
    with Image.open(io.BytesIO(base64.b64decode(output.data))) as picture:
        pixel = picture.convert("RGB").getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel


def colour_for(content: bytes) -> tuple[int, ...]:
    """What `tint` makes of a black picture with this checkpoint."""
    blended = Image.blend(
        Image.new("RGB", (1, 1)), Image.new("RGB", (1, 1), tuple(hashlib.sha256(content).digest()[:3])), 0.5
    )
    pixel = blended.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        for number in range(8):
            server.add(REPO, f"m{number}.safetensors", tensors(number))
        yield server


@pytest.fixture
def make(hub: HubServer, tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def build(models: str = "", **settings: Any) -> Rig:
        comfy = tmp_path / "comfy"
        comfy.mkdir(exist_ok=True)
        rig = Rig(
            tmp_path / "rig",
            embedded=True,
            comfy_dir=comfy,
            # ComfyUI runs in its own folder, whence a checkout is not found.
            comfy_command=f"/usr/bin/env PYTHONPATH={ROOT} {COMFY_COMMAND}",
            models=models,
            hf_endpoint=hub.endpoint,
            host_cache_dir=tmp_path / "cache",
            models_extra_dirs=(str(tmp_path / "volume"),),
            **settings,
        )
        rig.__enter__()
        rigs.append(rig)
        return rig

    yield build
    for rig in rigs:
        rig.__exit__(None, None, None)


def lazy(*numbers: int) -> str:
    return ",".join(f"{REPO}:m{number}.safetensors:checkpoints#lazy" for number in numbers)


def folder(rig: Rig) -> Path:
    return rig.settings.comfy_dir / "models"


def files(rig: Rig) -> list[str]:
    """What lies in the models folder, records aside."""
    below = folder(rig)
    found = (path.relative_to(below) for path in below.rglob("*") if not path.is_dir())
    return sorted(str(path) for path in found if path.parts[0] != ".settee")


def test_a_lazy_model_is_fetched_when_a_job_names_it_and_once(make: Callable[..., Rig], hub: HubServer) -> None:
    rig = make(lazy(0, 1))
    assert hub.requests == []
    result = rig.run(tint("m0.safetensors"))
    assert colour_of(result) == colour_for(tensors(0))
    assert result.timings["models"] > 0
    assert files(rig) == ["checkpoints/m0.safetensors"]
    hub.forget()
    rig.run(tint("m0.safetensors", 7))
    assert hub.requests == []


def test_what_is_not_lazy_is_placed_while_comfyui_starts(make: Callable[..., Rig], hub: HubServer) -> None:
    rig = make(f"{REPO}:m0.safetensors:checkpoints,{REPO}:m1.safetensors:checkpoints/sub:other.safetensors")
    eventually(lambda: files(rig) == ["checkpoints/m0.safetensors", "checkpoints/sub/other.safetensors"])
    assert colour_of(rig.run(tint("sub/other.safetensors"))) == colour_for(tensors(1))


def test_a_job_waits_for_its_own_model_only(make: Callable[..., Rig], hub: HubServer) -> None:
    hub.faults.rate = 2 * SIZE  # all eight: four seconds
    rig = make(",".join(f"{REPO}:m{number}.safetensors:checkpoints" for number in range(8)))
    begun = time.monotonic()
    result = rig.run(tint("m5.safetensors"))
    took = time.monotonic() - begun
    assert colour_of(result) == colour_for(tensors(5))
    whole = [name for name in files(rig) if ".part" not in name]
    assert len(whole) < 8, f"the others came first, in {took:.1f} s"
    hub.faults.rate = None
    eventually(
        lambda: (
            [name for name in files(rig) if "part" not in name] == [f"checkpoints/m{n}.safetensors" for n in range(8)]
        )
    )


def test_a_name_with_a_backslash_is_the_model_that_comfyui_lists_with_a_slash(make: Callable[..., Rig]) -> None:
    """Workflows made on Windows have them. The first job names it before ComfyUI has it, the second after."""
    rig = make(f"{REPO}:m1.safetensors:checkpoints/XL#lazy")
    for _ in range(2):
        result = rig.run(tint("XL\\m1.safetensors"))
        assert colour_of(result) == colour_for(tensors(1))
        assert "was taken as 'XL/m1.safetensors'" in result.warnings[0]


def test_a_model_that_only_a_loose_node_names_is_not_waited_for(make: Callable[..., Rig], hub: HubServer) -> None:
    """As in templates with two loaders of which one is linked."""
    rig = make(f"{lazy(1)},{REPO}:not_there.safetensors:checkpoints#lazy")
    graph = tint("m1.safetensors")
    graph["6"] = {**graph["5"], "inputs": {**graph["5"]["inputs"], "ckpt_name": "not_there.safetensors"}}
    assert colour_of(rig.run(graph)) == colour_for(tensors(1))
    graph["9"]["inputs"]["images"] = ["6", 0]
    with pytest.raises(ModelMissing):
        rig.run(graph)


def test_progress_tells_of_the_model_that_is_waited_for(make: Callable[..., Rig], hub: HubServer) -> None:
    hub.faults.rate = 2 * SIZE
    rig = make(lazy(0))
    seen: list[str] = []
    rig.run(tint("m0.safetensors"), on_progress=lambda step: seen.append(step.message or ""))
    assert any(text.startswith("model checkpoints/m0.safetensors ") and text.endswith("%") for text in seen), seen


def test_a_model_that_nobody_has_is_said_with_near_matches_and_what_to_add(make: Callable[..., Rig]) -> None:
    rig = make(lazy(0, 1))
    with pytest.raises(ModelMissing, match=r"add ORG/REPO:m11.safetensors:checkpoints") as caught:
        rig.run(tint("m11.safetensors"))
    (problem,) = caught.value.details["problems"]
    assert problem["near"]
    assert set(problem["near"]) <= {"m0.safetensors", "m1.safetensors"}


def test_a_download_that_fails_fails_the_job_and_says_why(make: Callable[..., Rig], hub: HubServer) -> None:
    rig = make(f"{REPO}:m77.safetensors:checkpoints#lazy")
    with pytest.raises(ModelMissing, match=r"m77\.safetensors") as caught:
        rig.run(tint("m77.safetensors"))
    assert "m7.safetensors" in caught.value.details["near"], "the repository's files are near matches"
    hub.add(REPO, "m77.safetensors", tensors(9))
    assert colour_of(rig.run(tint("m77.safetensors"))) == colour_for(tensors(9))


def test_a_model_with_another_hash_never_runs(make: Callable[..., Rig], hub: HubServer) -> None:
    hub.add("acme/plain", "x.safetensors", tensors(1), lfs=False)
    right, wrong = hashlib.sha256(tensors(1)).hexdigest(), "0" * 64
    rig = make(f"acme/plain:x.safetensors:checkpoints#sha256={wrong}&lazy")
    with pytest.raises(IntegrityError) as caught:
        rig.run(tint("x.safetensors"))
    assert wrong in caught.value.message
    assert right in caught.value.message
    assert files(rig) == []


def test_a_cancel_while_a_model_comes_ends_at_once_and_the_next_try_resumes(
    make: Callable[..., Rig], hub: HubServer
) -> None:
    hub.faults.rate = SIZE / 10
    rig = make(lazy(0))
    run = rig.start(tint("m0.safetensors"))
    run.reach(Status.MATERIALIZING)
    eventually(lambda: any("part" in name for name in files(rig)))
    run.cancel.set()
    begun = time.monotonic()
    with pytest.raises(JobCanceled):
        run.end()
    assert time.monotonic() - begun < 8, "10 s of it were left"
    hub.faults.rate = None
    assert colour_of(rig.run(tint("m0.safetensors"))) == colour_for(tensors(0))
    assert files(rig) == ["checkpoints/m0.safetensors"]


def test_a_jobs_time_limit_holds_while_a_model_comes(make: Callable[..., Rig], hub: HubServer) -> None:
    hub.faults.rate = SIZE / 10
    rig = make(lazy(0))
    with pytest.raises(JobTimeout, match=r"time limit of 0\.7 s"):
        rig.run(tint("m0.safetensors"), timeout_s=0.7)


def test_closing_while_models_come_is_quick(make: Callable[..., Rig], hub: HubServer) -> None:
    hub.faults.rate = SIZE / 10
    rig = make(",".join(f"{REPO}:m{number}.safetensors:checkpoints" for number in range(8)))
    eventually(lambda: any("part" in name for name in files(rig)))
    begun = time.monotonic()
    rig.engine.close()
    assert time.monotonic() - begun < 5
    left = [thread.name for thread in threading.enumerate() if thread.name == "model"]
    assert left == []


# --- a job's own ------------------------------------------------------------------------------------------


def test_a_job_brings_its_own_model(make: Callable[..., Rig]) -> None:
    rig = make()
    own = [{"source": f"{REPO}:m3.safetensors", "target": "checkpoints", "name": "mine.safetensors"}]
    assert colour_of(rig.run(tint("mine.safetensors"), models=own)) == colour_for(tensors(3))
    assert files(rig) == ["checkpoints/mine.safetensors"]


@pytest.mark.parametrize("late", [False, True])
def test_another_file_under_a_name_that_comfyui_knows_is_really_used(make: Callable[..., Rig], late: bool) -> None:
    """ComfyUI's cache goes by names: the second job would get the first one's picture.

    It did with the real one, whose /free may take effect only after the next prompt.
    """
    rig = make()
    if late:
        rig.fault("flags_late")
    for number in (3, 4, 3):
        own = [f"{REPO}:m{number}.safetensors:checkpoints:mine.safetensors"]
        assert colour_of(rig.run(tint("mine.safetensors"), models=own)) == colour_for(tensors(number))


def test_a_jobs_model_takes_no_place_of_the_workers(make: Callable[..., Rig], hub: HubServer) -> None:
    rig = make(lazy(0))
    (folder(rig) / "checkpoints").mkdir(parents=True)
    (folder(rig) / "checkpoints" / "own.safetensors").write_bytes(tensors(7))
    for name in ("m0.safetensors", "own.safetensors"):
        with pytest.raises(InvalidRequest, match="LocalName"):
            rig.run(tint(name), models=[f"{REPO}:m1.safetensors:checkpoints:{name}"])
    assert (folder(rig) / "checkpoints" / "own.safetensors").read_bytes() == tensors(7)
    assert colour_of(rig.run(tint("m0.safetensors"), models=[f"{REPO}:m0.safetensors:checkpoints"])) == colour_for(
        tensors(0)
    )


def test_what_a_sealed_job_brought_is_gone_afterwards(make: Callable[..., Rig], hub: HubServer) -> None:
    rig = make(lazy(0), encryption_key=Fernet.generate_key().decode())
    own = [f"{REPO}:m3.safetensors:checkpoints:secret.safetensors"]
    rig.run(tint("secret.safetensors"), models=own, sealed=True)
    assert files(rig) == []
    rig.run(tint("m0.safetensors"), models=[f"{REPO}:m0.safetensors:checkpoints"], sealed=True)
    assert files(rig) == ["checkpoints/m0.safetensors"]
    hub.faults.rate = SIZE / 10
    run = rig.start(tint("secret.safetensors"), models=own, sealed=True)
    eventually(lambda: any("part" in name for name in files(rig)))
    run.cancel.set()
    with pytest.raises(JobCanceled):
        run.end()
    assert files(rig) == ["checkpoints/m0.safetensors"]


def test_a_jobs_url_reaches_no_private_address(make: Callable[..., Rig], hub: HubServer) -> None:
    rig = make()
    with pytest.raises((InvalidRequest, DownloadFailed), match="public"):
        rig.run(
            tint("x.safetensors"),
            models=[f"{hub.endpoint}/{REPO}/resolve/main/m0.safetensors:checkpoints:x.safetensors"],
        )
    assert hub.requests == []


def test_a_worker_may_take_no_models_from_jobs(make: Callable[..., Rig]) -> None:
    rig = make(allow_job_models=False)
    with pytest.raises(InvalidRequest, match="ALLOW_JOB_MODELS"):
        rig.run(empty(), models=[f"{REPO}:m0.safetensors:checkpoints"])


# --- where from, and settings ---------------------------------------------------------------------------------


def test_a_model_on_the_volume_is_linked_and_shown_to_comfyui_without_an_entry(
    make: Callable[..., Rig], hub: HubServer, tmp_path: Path
) -> None:
    volume = tmp_path / "volume" / "checkpoints"
    volume.mkdir(parents=True)
    (volume / "m0.safetensors").write_bytes(tensors(0))
    (volume / "plain.safetensors").write_bytes(tensors(6))
    rig = make(lazy(0))
    assert colour_of(rig.run(tint("plain.safetensors"))) == colour_for(tensors(6))
    assert colour_of(rig.run(tint("m0.safetensors"))) == colour_for(tensors(0))
    assert (folder(rig) / "checkpoints" / "m0.safetensors").readlink() == volume / "m0.safetensors"
    assert hub.requests == []


def test_bad_entries_end_the_worker_at_its_start(tmp_path: Path) -> None:
    rig = Rig(tmp_path, embedded=True, models="what")
    with pytest.raises(ConfigError, match="MODELS entry 1"):
        rig.engine.start()
    rig.engine.close()


def test_models_for_a_comfyui_elsewhere_need_their_folder(tmp_path: Path) -> None:
    rig = Rig(tmp_path, comfy_url="http://127.0.0.1:9", models=lazy(0))
    with pytest.raises(ConfigError, match="MODELS_DIR"):
        rig.engine.start()
    rig.engine.close()
