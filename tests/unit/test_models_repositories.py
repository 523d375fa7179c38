"""Entries that mean a whole repository, asked by the real huggingface_hub of a Hub of our own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from settee.base.errors import ConfigError, IntegrityError, ModelMissing, SetteeError
from settee.base.job import Cancel
from settee.models import spec
from settee.models.folder.upkeep import Verdict, verify
from settee.models.model_store import ModelStore
from settee.models.orders import Order
from settee.models.placing import expanded
from settee.models.required import named_models, supplying
from tests.support.delivering import make_settings
from tests.support.hub import HubServer
from tests.support.models import safetensors

WEIGHTS = safetensors(300_000, 7)
FILES = {
    "model_index.json": b'{"_class_name": "Pipe"}',
    "README.md": b"# Pipe\n",
    "LICENSE": b"Anybody may.\n",
    "unet/model.safetensors": WEIGHTS,
    "unet/model.fp16.safetensors": safetensors(100, 3),
    "unet/config.json": b"{}",
    ".gitattributes": b"*.safetensors filter=lfs\n",
    "empty.txt": b"",
}
SHOWN = {name: content for name, content in FILES.items() if content and not name.startswith(".")}

Make = Callable[..., ModelStore]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        for name, content in FILES.items():
            server.add("acme/pipe", name, content, lfs=name.endswith(".safetensors"))
        yield server


@pytest.fixture
def make(hub: HubServer, tmp_path: Path) -> Iterator[Make]:
    stores: list[ModelStore] = []

    def build(models: str = "acme/pipe:*:diffusers", **more: Any) -> ModelStore:
        store = ModelStore(
            make_settings(
                models=models,
                models_dir=tmp_path / "models",
                hf_endpoint=hub.endpoint,
                host_cache_dir=tmp_path / "cache",
                models_extra_dirs=(),
                **more,
            )
        )
        store.load()
        stores.append(store)
        return store

    yield build
    for store in stores:
        store.close()


def placed(store: ModelStore, folder: str = "diffusers/pipe") -> dict[str, bytes]:
    root = store.settings.models_folder / folder
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def outcome(store: ModelStore) -> str:
    [found] = store.place(store.entries).values()
    if isinstance(found, SetteeError):
        raise found
    return found


def test_every_file_of_a_revision_is_placed_verified_and_listed(make: Make) -> None:
    store = make()
    assert outcome(store) == "6 files: 6 downloaded from Hugging Face"
    assert placed(store) == SHOWN
    records = {record.path: record for record in store.tools.folder.records}
    assert set(records) == {f"diffusers/pipe/{name}" for name in SHOWN}
    assert {finding.verdict for finding in verify(store.tools.folder)} == {Verdict.OK}


def test_a_warm_start_asks_no_server(make: Make, hub: HubServer) -> None:
    outcome(make())
    hub.forget()
    assert outcome(make()) == "in place"
    assert hub.asked() == []


def test_all_files_are_of_one_commit_though_the_branch_moves_on(make: Make, hub: HubServer) -> None:
    hub.faults.cuts = {150_000}
    hub.add("acme/pipe", "later.json", b'{"a": 1}', revision="next")
    outcome(make())
    hub.add("acme/pipe", "model_index.json", b'{"_class_name": "Other"}')
    store = make()
    assert outcome(store) == "in place"
    assert placed(store) == SHOWN
    other = make("acme/pipe@next:*:diffusers:later")
    assert outcome(other) == "1 files: 1 downloaded from Hugging Face"


def test_patterns_choose_files_and_a_local_name_the_folder(make: Make) -> None:
    store = make("acme/pipe:*.json|*.fp16.safetensors:diffusers:small")
    outcome(store)
    names = {"model_index.json", "unet/config.json", "unet/model.fp16.safetensors"}
    assert placed(store, "diffusers/small") == {name: FILES[name] for name in names}


def test_what_a_kill_left_is_resumed(make: Make, hub: HubServer) -> None:
    hub.add("acme/pipe", "unet/model.safetensors", safetensors(30_000_000), lfs=True)
    hub.faults.stall_at = 20_000_000
    first = make()
    first.start()
    deadline = time.monotonic() + 20
    while hub.served < 8_000_000 and time.monotonic() < deadline:
        time.sleep(0.02)  # the hub has no event for bytes served
    first.close()
    hub.faults.stall_at = None
    assert placed(first).get("unet/model.safetensors") is None
    before = hub.served
    outcome(make())
    assert hub.served - before < 30_000_000


def test_the_host_caches_snapshot_is_linked_also_when_the_hub_is_silent(
    make: Make, hub: HubServer, tmp_path: Path
) -> None:
    commit, repo = hub.commit("acme/pipe"), tmp_path / "cache" / "models--acme--pipe"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    for name, content in FILES.items():
        path = repo / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (repo / "snapshots" / commit / "empty.txt").unlink()
    store = make()
    assert outcome(store) == "6 files: 6 linked from the host cache"
    assert hub.served == 0
    assert placed(store) == SHOWN


def test_a_hub_that_does_not_answer_leaves_the_host_cache(make: Make, hub: HubServer, tmp_path: Path) -> None:
    commit, repo = "a" * 40, tmp_path / "cache" / "models--acme--pipe"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots" / commit).mkdir(parents=True)
    (repo / "snapshots" / commit / "model.safetensors").write_bytes(WEIGHTS)
    store = make()
    hub.__exit__()
    assert outcome(store) == "1 files: 1 linked from the host cache"


@pytest.mark.parametrize(
    ("models", "kind", "words"),
    [
        ("acme/pipe:*.gguf:diffusers", ModelMissing, "no such files"),
        ("acme/nothing:*:diffusers", ModelMissing, "no such public repository"),
        ("acme/pipe@gone:*:diffusers", ModelMissing, "no revision"),
    ],
)
def test_what_is_not_there_is_named(make: Make, models: str, kind: type[SetteeError], words: str) -> None:
    with pytest.raises(kind, match=words):
        outcome(make(models))


def test_a_file_that_stays_damaged_fails_the_repository(make: Make, hub: HubServer) -> None:
    hub.faults.corrupt_at, hub.faults.corrupt_times = 1000, 9
    with pytest.raises(IntegrityError, match=r"unet/model\.safetensors"):
        outcome(make())


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (f"acme/pipe:*:diffusers#sha256={'0' * 64}", "of one file"),
        ("acme/pipe:*:diffusers:a.safetensors", "named like a file"),
        ("acme/pipe:*:diffusers,acme/other:*:diffusers:pipe", "where MODELS entry 1 goes too"),
    ],
)
def test_an_entry_that_cannot_be_is_refused(models: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        spec.configured(make_settings(models=models))


# --- jobs ----------------------------------------------------------------------------------------------------


def naming(value: str) -> dict[str, Any]:
    return {"1": {"class_type": "DiffusersLoader", "inputs": {"model_path": value}}}


@pytest.mark.parametrize("value", ["pipe", "Pipe", "pipe/unet/model.safetensors", "pipe\\unet\\model.safetensors"])
def test_a_job_that_names_the_folder_waits_for_all_of_a_lazy_one(make: Make, value: str) -> None:
    store = make("acme/pipe:*:diffusers#lazy")
    with Order.begin(store, naming(value)) as order:
        assert not order.wait(Cancel(), time.monotonic() + 20, lambda _: None)
        assert placed(store) == SHOWN
        assert store.tools.folder.records.in_use("diffusers/pipe/unet/model.safetensors")
    assert not store.tools.folder.records.in_use("diffusers/pipe/unet/model.safetensors")


def test_a_job_that_names_another_does_not(make: Make, hub: HubServer) -> None:
    store = make("acme/pipe:*:diffusers#lazy")
    with Order.begin(store, naming("piper")) as order:
        order.wait(Cancel(), time.monotonic() + 20, lambda _: None)
    assert hub.asked() == []


def test_a_file_below_the_folder_counts_as_supplied(make: Make) -> None:
    [entry] = make("acme/pipe:*:diffusion_models").entries
    graph = {"1": {"class_type": "UNETLoader", "inputs": {"unet_name": "pipe/unet/model.safetensors"}}}
    assert supplying(named_models(graph)[0], [entry]) == [entry]


def test_a_job_brings_one_and_it_goes_like_any_model_of_a_job(make: Make) -> None:
    store = make("")
    entries, problems = spec.of_job(["acme/pipe:*.json:diffusers"])
    assert problems == []
    with Order.begin(store, {}, entries) as order:
        order.wait(Cancel(), time.monotonic() + 20, lambda _: None)
    records = list(store.tools.folder.records)
    assert [(record.path, record.from_job) for record in records] == [
        ("diffusers/pipe/model_index.json", True),
        ("diffusers/pipe/unet/config.json", True),
    ]


def test_what_a_sealed_job_brought_is_wiped_and_its_list_was_never_kept(make: Make) -> None:
    store = make("")
    entries, _ = spec.of_job(["acme/pipe:*.json:diffusers"])
    with Order.begin(store, {}, entries, is_sealed=True) as order:
        order.wait(Cancel(), time.monotonic() + 20, lambda _: None)
    left = [path.name for path in store.settings.models_folder.rglob("*") if path.is_file()]
    assert [name for name in left if name != ".lock"] == []


def test_the_list_names_every_file_for_who_prunes(make: Make) -> None:
    store = make()
    assert expanded(store.entries, store.tools.folder) == list(store.entries)
    outcome(store)
    found = {str(entry.path): entry for entry in expanded(store.entries, store.tools.folder)}
    assert set(found) == {f"diffusers/pipe/{name}" for name in SHOWN}
