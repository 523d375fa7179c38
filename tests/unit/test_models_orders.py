"""What a job brings, against what the worker has; and the store's promises to jobs, against a Hub of the tests' own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from settee.base.errors import IntegrityError, InvalidRequest, NoSpace, StagingError
from settee.base.job import Cancel
from settee.base.settings import load
from settee.engine.request import Bucket
from settee.models import spec
from settee.models.entry import ModelEntry
from settee.models.model_store import ModelStore
from settee.models.orders import Order
from tests.support.file_server import FileServer
from tests.support.http_double import Ask, Reply
from tests.support.hub import HubServer
from tests.support.models import safetensors, sha256
from tests.support.waiting import eventually

A, B = safetensors(3000, 1), safetensors(3000, 2)
MEGABYTES = 2


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        server.add("o/r", "a.safetensors", A)
        server.add("o/r", "b.safetensors", B)
        for number in range(3):
            server.add("o/r", f"m{number}.safetensors", safetensors(MEGABYTES * 10**6, number))
        yield server


@pytest.fixture
def make(hub: HubServer, tmp_path: Path) -> Iterator[Callable[..., ModelStore]]:
    stores = []

    def build(models: str = "", **settings: Any) -> ModelStore:
        given = {
            "comfy_dir": tmp_path,
            "hf_endpoint": hub.endpoint,
            "host_cache_dir": tmp_path / "cache",
            "models_extra_dirs": str(tmp_path / "volume"),
        }
        store = ModelStore(load(models=models, **{**given, **settings}))
        store.load()
        stores.append(store)
        return store

    yield build
    for store in stores:
        store.close()


def own(*entries: str) -> tuple[ModelEntry, ...]:
    found, problems = spec.of_job(entries)
    assert not problems
    return found


def names(*values: str, at: str = "lora_name") -> dict[str, Any]:
    return {str(number): {"class_type": "Loader", "inputs": {at: value}} for number, value in enumerate(values)}


def run(
    store: ModelStore,
    workflow: dict[str, Any],
    brought: Sequence[ModelEntry] = (),
    bucket: Bucket | None = None,
    *,
    drops: bool = True,
) -> bool:
    """A job's way through the store: whether ComfyUI must drop what it keeps; it ``drops`` it then."""
    with Cancel() as cancel, Order.begin(store, workflow, brought, bucket) as order:
        has_changed = order.wait(cancel, time.monotonic() + 20, lambda message: None)
        if drops:
            order.forgotten()
        return has_changed


def placed(tmp_path: Path) -> dict[str, bytes]:
    models = tmp_path / "models"
    return {str(path.relative_to(models)): path.read_bytes() for path in models.glob("*/**/*.safetensors")}


def on_volume(tmp_path: Path, rel: str, content: bytes) -> None:
    path = tmp_path / "volume" / rel
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_the_hash_that_a_job_gives_holds_for_the_workers_own_file_too(make: Any, tmp_path: Path) -> None:
    for models in ("o/r:a.safetensors:loras", "o/r:b.safetensors:vae#lazy"):
        store = make(models)
        text = models.removesuffix("#lazy")
        if "lazy" not in models:
            run(store, names("a.safetensors"))
        with pytest.raises(IntegrityError, match="0" * 64):
            run(store, {}, own(f"{text}#sha256={'0' * 64}"))
    assert not run(store, {}, own(f"o/r:b.safetensors:vae#sha256={sha256(B)}"))
    assert placed(tmp_path) == {"loras/a.safetensors": A, "vae/b.safetensors": B}


def test_the_same_key_at_a_jobs_own_endpoint_is_another_file(make: Any) -> None:
    bucket = Bucket(accessId="k", accessSecret="s", bucketName="models", endpointUrl="https://s3.example")
    keys = {f"bucket_{name}": "k" for name in ("access_key_id", "secret_access_key")}
    store = make("s3://models/a.safetensors:loras#lazy", bucket_endpoint_url="http://127.0.0.1:9", **keys)
    with pytest.raises(InvalidRequest, match="another model on this worker"):
        run(store, {}, own("s3://models/a.safetensors:loras"), bucket)


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [("diffusion_models", "unet"), ("unet", "diffusion_models"), ("text_encoders", "clip"), ("loras", "loras")],
)
def test_a_job_takes_no_models_name_in_another_folder_of_its_kind(make: Any, theirs: str, mine: str) -> None:
    store = make(f"o/r:a.safetensors:{theirs}#lazy")
    with pytest.raises(InvalidRequest, match="another model on this worker"):
        run(store, {}, own(f"o/r:b.safetensors:{mine}:a.safetensors"))
    assert not run(store, {}, own(f"o/r:a.safetensors:{mine}"))


def test_a_job_takes_no_name_of_an_operators_file_in_another_folder_of_its_kind(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "models/diffusion_models/a.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(A)
    with pytest.raises(InvalidRequest, match=r"goes by the name of diffusion_models/a\.safetensors"):
        run(make(), {}, own("o/r:b.safetensors:unet:a.safetensors"))
    assert placed(tmp_path) == {"diffusion_models/a.safetensors": A}


def test_of_two_jobs_models_of_one_name_the_later_is_used(make: Any, tmp_path: Path) -> None:
    store, workflow = make(), names("x.safetensors", at="unet_name")
    assert not run(store, workflow, own("o/r:a.safetensors:unet:x.safetensors"))
    # ComfyUI looks in `unet` first, and keeps what it loaded under the name.
    assert run(store, workflow, own("o/r:b.safetensors:diffusion_models:x.safetensors"))
    assert placed(tmp_path) == {"diffusion_models/x.safetensors": B}
    assert run(store, workflow, own("o/r:a.safetensors:unet:x.safetensors"))
    assert placed(tmp_path) == {"unet/x.safetensors": A}


@pytest.mark.parametrize("place", ["unet/x.safetensors", "diffusion_models/x.safetensors"])
def test_a_jobs_model_hides_none_of_the_volumes(make: Any, tmp_path: Path, place: str) -> None:
    on_volume(tmp_path, place, A)
    store = make()
    with pytest.raises(InvalidRequest, match="on this worker's volume"):
        run(store, {}, own("o/r:b.safetensors:unet:x.safetensors"))
    with pytest.raises(InvalidRequest, match="another model on the worker's volume"):
        run(store, {}, own(f"o/r:b.safetensors:unet:x.safetensors#sha256={sha256(B)}"))
    assert placed(tmp_path) == {}
    run(store, {}, own(f"o/r:a.safetensors:unet:x.safetensors#sha256={sha256(A)}"))
    assert (tmp_path / "models/unet/x.safetensors").is_symlink()
    with pytest.raises(InvalidRequest, match="on this worker's volume"):
        run(store, {}, own("o/r:b.safetensors:unet:x.safetensors"))


def test_what_an_earlier_worker_left_may_have_been_loaded_by_name_before_it_is_replaced(make: Any) -> None:
    workflow = names("x.safetensors")
    run(make(), workflow, own("o/r:a.safetensors:loras:x.safetensors"))
    store = make()
    assert not run(store, workflow)  # without bringing it: ComfyUI loads what lies there
    assert run(store, workflow, own("o/r:b.safetensors:loras:x.safetensors"))
    assert not run(store, workflow, own("o/r:b.safetensors:loras:x.safetensors"))


def test_until_comfyui_has_dropped_what_it_keeps_every_job_must_have_it_do_so(make: Any) -> None:
    store, workflow = make(), names("x.safetensors")
    run(store, workflow, own("o/r:a.safetensors:loras:x.safetensors"))
    assert run(store, workflow, own("o/r:b.safetensors:loras:x.safetensors"), drops=False)  # it did not answer
    assert run(store, workflow, own("o/r:b.safetensors:loras:x.safetensors"))
    assert not run(store, workflow, own("o/r:b.safetensors:loras:x.safetensors"))


def test_an_operators_file_that_is_taken_over_is_no_other_file_than_before(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "models/loras/a.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(A)
    assert not run(make(f"o/r:a.safetensors:loras#sha256={sha256(A)}&lazy"), names("a.safetensors"))


def test_a_job_makes_no_room_at_the_cost_of_its_own_models(make: Any, tmp_path: Path) -> None:
    store = make(models_disk_budget_gb=2.5 * MEGABYTES / 1000)
    run(store, {}, own("o/r:m0.safetensors:loras"))
    run(store, {}, own("o/r:m1.safetensors:loras"))
    # The one that it has is the least recently used of all.
    run(store, {}, own("o/r:m0.safetensors:loras", "o/r:m2.safetensors:loras"))
    assert placed(tmp_path).keys() == {"loras/m0.safetensors", "loras/m2.safetensors"}
    # Afterwards it may go like any other.
    run(store, {}, own("o/r:m1.safetensors:loras"))
    assert placed(tmp_path).keys() == {"loras/m1.safetensors", "loras/m2.safetensors"}


def test_a_name_that_no_disk_takes_is_no_trouble_of_the_stores(make: Any, tmp_path: Path) -> None:
    (tmp_path / "models/loras").mkdir(parents=True)
    store = make("o/r:a.safetensors:loras#lazy")
    run(store, names("a.safetensors", "x" * 300 + ".safetensors", "/" + "x" * 300 + ".bin"))
    assert placed(tmp_path) == {"loras/a.safetensors": A}


def test_a_worker_out_of_threads_says_so(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make("o/r:a.safetensors:loras#lazy")

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        order = Order.begin(store, names("a.safetensors"))
    with Cancel() as cancel, order, pytest.raises(StagingError, match="threads"):
        order.wait(cancel, time.monotonic() + 5, lambda message: None)
    run(store, names("a.safetensors"))  # it is tried again, and nothing is left of the first time


def test_of_a_jobs_model_no_name_is_logged(make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    commit, cached = "c" * 40, tmp_path / "cache/models--o--r"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text(commit)
    (cached / "snapshots" / commit).mkdir(parents=True)
    (cached / "snapshots" / commit / "m1.safetensors").symlink_to("nowhere")
    caplog.set_level("INFO", logger="settee")
    run(make(), {}, own("o/r:m1.safetensors:loras:secret.safetensors"))
    assert "a model of the job's: downloaded" in caplog.text
    assert "secret" not in caplog.text
    assert "m1" not in caplog.text


def test_a_server_that_names_no_size_fills_no_disk(make: Any, tmp_path: Path) -> None:
    def endless(ask: Ask, reply: Reply) -> None:
        reply.headers = {}
        reply.chunked, reply.rate = ask.method == "GET", 40e6

    with FileServer(bytes(40_000_000), rule=endless).running() as server:
        store = make(models_disk_budget_gb=0.005, runpod_allow_private_download_urls=True)
        with pytest.raises(NoSpace, match="MODELS_DISK_BUDGET_GB"):
            run(store, {}, own(f"{server.url}:loras"))
        assert sum(ask.sent for ask in server.asked) < 30_000_000
    assert not list((tmp_path / "models").glob("loras/*"))


def test_what_a_killed_workers_sealed_job_left_is_wiped_at_the_next_start(
    make: Callable[..., ModelStore], tmp_path: Path
) -> None:
    killed = make()
    order = Order.begin(killed, {}, own("o/r:a.safetensors:loras:secret.safetensors"), is_sealed=True)
    with Cancel() as cancel:
        order.wait(cancel, time.monotonic() + 20, lambda _: None)
    path = tmp_path / "models" / "loras" / "secret.safetensors"
    assert path.read_bytes() == A
    make().start()  # another worker, while the first one's job runs: it stays
    plain = make()
    with Order.begin(plain, {}, own("o/r:b.safetensors:loras:plain.safetensors")) as other, Cancel() as cancel:
        other.wait(cancel, time.monotonic() + 20, lambda _: None)
    assert path.exists()
    order._used.close()  # as the kernel does for a process that is killed
    make().start()
    eventually(lambda: not path.exists())
    assert (tmp_path / "models" / "loras" / "plain.safetensors").exists()


def test_a_jobs_model_in_a_folder_that_is_a_link_to_the_volume_is_not_the_operators(make: Any, tmp_path: Path) -> None:
    (tmp_path / "volume/loras").mkdir(parents=True)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/loras").symlink_to(tmp_path / "volume/loras")
    store = make()
    for name in "aab":
        run(store, {}, own(f"o/r:{name}.safetensors:loras:x.safetensors"))
        assert (tmp_path / "volume/loras/x.safetensors").read_bytes() == {"a": A, "b": B}[name]
