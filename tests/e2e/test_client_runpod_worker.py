"""The client's RunPod target, RunPod's public API, rp_handler.py and the embedded ComfyUI, all the way."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from settee.backends.comfy.process import free_port
from settee.base.sealing import Sealer, generate_key
from settee.client.client_errors import JobFailed, Rejected, UsageError
from settee.client.follow import follow
from settee.client.targets import Answer, Status
from tests.support.client_jobs import run, sent, target_of
from tests.support.embedded import COMFY_COMMAND
from tests.support.public_api import PublicApi
from tests.support.rig import b64, empty, failing, png, slow
from tests.support.worker import REAL, WorkerProcess

SEAL_KEY = generate_key()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PublicApi]:
    """A real worker's, on the embedded ComfyUI."""
    folder: Path = tmp_path_factory.mktemp("worker")
    settings = {
        "COMFY_COMMAND": COMFY_COMMAND,
        "COMFY_PORT": str(free_port()),
        "WORKSPACE_DIR": str(folder / "workspace"),
        "PROGRESS_INTERVAL_S": "0.05",
        "COMFY_INTERRUPT_S": "5",
        "ENCRYPTION_KEY": SEAL_KEY,
    }
    with PublicApi() as api, WorkerProcess(env={**api.worker_env(), **settings}, command=REAL):
        yield api


def test_pictures_go_there_and_come_back(real: PublicApi) -> None:
    workflow = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "in.png"}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "8": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "same"}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "inverted"}},
    }
    with target_of(real) as target:
        result = run(target, {"workflow": workflow, "images": [{"name": "in.png", "image": b64(png((1, 2, 3)))}]})
    pixels = {
        output.node_id: Image.open(io.BytesIO(base64.b64decode(output.data))).convert("RGB").getpixel((5, 5))
        for output in result.outputs
    }
    assert pixels == {"8": (1, 2, 3), "9": (254, 253, 252)}


def test_a_real_failure_names_its_node(real: PublicApi) -> None:
    with target_of(real) as target, pytest.raises(JobFailed, match="SetteeFault") as caught:
        run(target, {"workflow": failing("error", message="it broke")})
    assert caught.value.details["node_id"] == "5"


def test_a_real_job_is_followed_and_canceled(real: PublicApi) -> None:
    with target_of(real) as target:
        answer = target.submit(sent({"workflow": slow(steps=400, delay_ms=50)}))

        def on_update(now: Answer) -> None:
            if now.progress.get("node_type") == "SetteeSampler":
                target.cancel(now.job_id)

        assert follow(target, answer, timeout_s=30, on_update=on_update).status is Status.CANCELLED
        assert run(target, {"workflow": empty()}).outputs


def test_a_sealed_job_and_a_sealed_failure(real: PublicApi) -> None:
    sealer = Sealer(SEAL_KEY)

    def unseal(output: Any) -> dict[str, Any]:
        return dict(sealer.open(output["encrypted_output"]))

    def sealed(job: dict[str, Any]) -> dict[str, Any]:
        return {"encrypted_input": sealer.seal(job), "is_encrypted": True}

    bad = empty()
    bad["1"]["class_type"] = "EmptyImagee"
    with target_of(real, unseal=unseal) as target:
        assert len(run(target, sealed({"workflow": empty()})).outputs) == 1
        with pytest.raises(Rejected, match="did you mean 'EmptyImage'") as caught:
            run(target, sealed({"workflow": bad}))
        assert "EmptyImagee" in str(caught.value.details)

    def closed(output: Any) -> dict[str, Any]:
        raise UsageError("there is no key")

    with target_of(real, unseal=closed) as target:
        with pytest.raises(UsageError, match="there is no key"):
            run(target, sealed({"workflow": empty()}))
        with pytest.raises(Rejected) as caught:
            run(target, sealed({"workflow": bad}))
        assert "EmptyImagee" not in str(vars(caught.value))
