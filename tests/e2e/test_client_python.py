"""The client's Python API, and the examples of docs/client.md as they stand."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from settee.backends.comfy.process import free_port
from settee.client import (
    Answer,
    AsyncEndpoint,
    Endpoint,
    JobFailed,
    JobOptions,
    JobStopped,
    Rejected,
    Status,
    UsageError,
)
from settee.client.arguments import Environment
from tests.support.client_command import INVERT, PICTURE, runpod_with_worker
from tests.support.editor_files import OBJECT_INFO, pair
from tests.support.embedded import COMFY_COMMAND
from tests.support.public_api import PublicApi
from tests.support.rig import empty, failing, slow
from tests.support.worker import REAL, ROOT, WorkerProcess

EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs/client.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PublicApi]:
    with runpod_with_worker(tmp_path_factory.mktemp("worker")) as api:
        yield api


@pytest.fixture
def endpoint(api: PublicApi) -> Iterator[Endpoint]:
    with Endpoint("endpoint1", environment=environment(api)) as endpoint:
        yield endpoint


def environment(api: PublicApi) -> Environment:
    return Environment(endpoint_base_url=api.url.rpartition("/")[0], api_key=api.key)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    env = {
        "COMFY_COMMAND": COMFY_COMMAND,
        "COMFY_PORT": str(free_port()),
        "WORKSPACE_DIR": str(tmp_path_factory.mktemp("worker")),
    }
    arguments = ("--rp_serve_api", "--rp_api_port", str(port))
    with WorkerProcess(*arguments, env=env, command=REAL) as worker:
        worker.wait_log("Uvicorn running")
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_of_the_documentation(local: str, tmp_path: Path, number: int) -> None:
    (tmp_path / "workflows").symlink_to(ROOT / "workflows")
    # As they stand, but for the port, which somebody else may have here.
    code = EXAMPLES[number].replace("http://127.0.0.1:8000", local)
    assert local in code
    command = [sys.executable, "-W", "error", "-c", code]
    found = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["inverted_00001_.png"]


def test_a_file_of_the_editors_goes_with_the_job_and_into_its_pictures(api: PublicApi, tmp_path: Path) -> None:
    editor = pair("plain")["editor"]
    registry = tmp_path / "object_info.json"
    registry.write_text(json.dumps(OBJECT_INFO))
    with Endpoint("endpoint1", environment=environment(api), registry=registry) as endpoint:
        [saved] = endpoint.run(editor, wait_s=30).save(tmp_path)
    with Image.open(saved.path) as picture:
        assert json.loads(picture.info["workflow"]) == editor
        assert "EmptyImage" in picture.info["prompt"]


def test_run_and_save(endpoint: Endpoint, tmp_path: Path) -> None:
    seen: list[Answer] = []
    result = endpoint.run(INVERT, images=[PICTURE], on_update=seen.append, set={"3.filename_prefix": "a=b"})
    [saved] = result.save(tmp_path, metadata=True)
    assert saved.path.read_bytes().startswith(b"\x89PNG")
    assert seen[-1].status is Status.COMPLETED
    assert json.loads((tmp_path / f"{saved.path.name}.json").read_text())["job_id"] == result.job_id
    assert result.workflow["3"]["inputs"]["filename_prefix"] == "a=b"
    assert result.timings["total"] > 0


def test_submit_status_cancel(endpoint: Endpoint) -> None:
    job = endpoint.submit(slow(steps=600), seed=7)
    assert job.seeds == {"5.seed": 7}
    assert endpoint.status(job.id).status in (Status.IN_QUEUE, Status.IN_PROGRESS)
    job.cancel()
    with pytest.raises(JobStopped, match="canceled"):
        endpoint.job(job.id).wait(20)
    assert job.status().status is Status.CANCELLED
    assert endpoint.health()["workers"]["ready"] == 1


def test_errors_are_typed(endpoint: Endpoint) -> None:
    with pytest.raises(JobFailed) as failed:
        endpoint.run(failing("error", message="it broke"))
    assert failed.value.details["node_id"] == "5"
    with pytest.raises(Rejected) as rejected:
        endpoint.run({"1": {"class_type": "Nonsense", "inputs": {}}})
    assert rejected.value.code == "workflow_rejected" or rejected.value.code == "invalid_request"
    with pytest.raises(JobStopped, match="goes on there") as stopped:
        endpoint.run(slow(steps=200), wait_s=0.3)
    assert stopped.value.job_id
    endpoint.cancel(stopped.value.job_id)
    with pytest.raises(JobStopped):
        endpoint.run(slow(steps=600), options=JobOptions(timeout_s=1))
    with pytest.raises(UsageError, match="as a list"):
        endpoint.run(INVERT, images=str(PICTURE))
    with pytest.raises(UsageError, match="did you mean"):
        endpoint.run(empty(), set={"1.colour": 1})
    with pytest.raises(TypeError, match="promt"):
        endpoint.run(empty(), promt="a fox")


def test_a_job_given_up_before_it_is_under_way_is_not_sent(api: PublicApi, endpoint: Endpoint) -> None:
    before, stop = len(api.jobs()), threading.Event()
    stop.set()
    with pytest.raises(JobStopped, match="no job was sent"):
        endpoint.send(endpoint.prepare(empty()), stop=stop)
    assert len(api.jobs()) == before


# --- asyncio --------------------------------------------------------------------------------------------


def test_more_jobs_at_once_than_asyncio_has_threads(api: PublicApi) -> None:
    """And while all of them are waited for, one can be canceled."""

    async def main() -> None:
        async with AsyncEndpoint("endpoint1", environment=environment(api)) as endpoint:
            first = await endpoint.submit(slow(steps=2000))
            waits = [asyncio.create_task(endpoint.run(empty(number))) for number in range(40)]
            ends = asyncio.create_task(first.wait(60))
            while len(api.jobs()) < before + 41:
                await asyncio.sleep(0.02)
            await asyncio.wait_for(first.cancel(), 10)
            with pytest.raises(JobStopped):
                await ends
            results = await asyncio.gather(*waits)
            assert len({result.job_id for result in results}) == 40

    before = len(api.jobs())
    asyncio.run(main())


def test_a_wait_that_is_given_up_is_over_at_once(api: PublicApi) -> None:
    seen: list[Answer] = []

    async def main() -> str:
        async with AsyncEndpoint("endpoint1", environment=environment(api)) as endpoint:
            job = await endpoint.submit(slow(steps=600))
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(job.wait(on_update=seen.append), 0.5)
            status = await endpoint.status(job.id)
            assert not status.status.is_terminal
            await job.cancel()
            with pytest.raises(JobFailed):
                await endpoint.run(failing("error"))
            return job.id

    job_id = asyncio.run(main())
    assert {answer.job_id for answer in seen} == {job_id}


def test_errors_name_keywords_and_methods_not_options(endpoint: Endpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^images \S+: ") as wrong:
        endpoint.submit(INVERT, images=["no-such-file.png"])
    assert "--" not in str(wrong.value)
    with pytest.raises(UsageError, match=r"images: 2 given(.|\n)*images 1=FILE$"):
        endpoint.submit(INVERT, images=[PICTURE, PICTURE])
    assert str(UsageError("--set 6.text=…, with --max-upload-size")) == "set 6.text=…, with --max-upload-size"
    with pytest.raises(UsageError, match=r"leave the key \(key_file\) out"):
        Endpoint("http://127.0.0.1:1", comfy=True, key_file=tmp_path).health()
