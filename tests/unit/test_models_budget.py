"""Room for downloads: the budget of what jobs bring, and the disk itself."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from settee.base.errors import NoSpace
from settee.base.settings import Settings
from settee.models.entry import ModelEntry
from settee.models.folder.budget import MARGIN_BYTES, Budget
from settee.models.folder.file_state import FileState
from settee.models.folder.model_folder import ModelFolder
from tests.support.models import download, entry, other_process, record_file

MB = 10**6


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, models: ModelFolder) -> Iterator[Any]:
    """A disk of a size of our own: what files take below the models folder is really measured."""
    disk = SimpleNamespace(bytes=100 * MB)

    def statvfs(path: str) -> Any:
        files = (os.path.join(folder, name) for folder, _, names in os.walk(models.root) for name in names)
        taken = sum(os.lstat(file).st_blocks * 512 for file in files)
        return SimpleNamespace(f_bavail=disk.bytes - taken, f_frsize=1)

    monkeypatch.setattr(os, "statvfs", statvfs)
    return disk


def budget(models: ModelFolder, megabytes: float | None = None, margin_bytes: int = 0) -> Budget:
    gigabytes = None if megabytes is None else megabytes / 1000
    return Budget(models, Settings(models_disk_budget_gb=gigabytes), margin_bytes=margin_bytes)


def model(name: str, **changes: Any) -> ModelEntry:
    return entry(f"loras/{name}.bin", **{"from_job": True, **changes})


def place(models: ModelFolder, name: str, megabytes: float, *, age: int = 0, **changes: Any) -> ModelEntry:
    asked = model(name, **changes)
    download(models, asked, os.urandom(int(megabytes * MB)))
    os.utime(record_file(models, f"loras/{name}.bin"), (10**9 - age, 10**9 - age))
    return asked


def left(models: ModelFolder) -> set[str]:
    return {placed.path[6:-4] for placed in models.records if models.path_of(model(placed.path[6:-4])).exists()}


def test_the_least_recently_used_go_first_and_no_more_than_need_be(models: ModelFolder, disk: Any) -> None:
    for name, age in (("new", 1), ("old", 3), ("older", 4), ("middle", 2)):
        place(models, name, 2, age=age)
    with budget(models, 9).reserve(model("next"), 3 * MB):
        assert left(models) == {"new", "middle", "old"}
    with models.use([model("old")]):
        pass
    with budget(models, 9).reserve(model("next"), 4 * MB):
        assert left(models) == {"new", "old"}


def test_nothing_is_removed_while_all_fits(models: ModelFolder, disk: Any) -> None:
    place(models, "a", 2)
    with budget(models, 5).reserve(model("next"), 3 * MB), budget(models).reserve(model("more"), 50 * MB):
        assert left(models) == {"a"}


def test_models_files_count_nothing_and_stay(models: ModelFolder, disk: Any) -> None:
    place(models, "fixed", 9, age=9, from_job=False)
    place(models, "brought", 2)
    with budget(models, 4).reserve(model("next"), 3 * MB):
        assert left(models) == {"fixed"}
    # The budget is for what jobs bring.
    with budget(models, 1).reserve(model("mine", from_job=False), 50 * MB):
        pass
    disk.bytes = 10 * MB
    with pytest.raises(NoSpace), budget(models).reserve(model("next"), 3 * MB):
        pytest.fail("there is no room")
    assert left(models) == {"fixed"}


def test_links_and_what_they_lead_to_stay(models: ModelFolder, disk: Any, tmp_path: Path) -> None:
    source = tmp_path / "cached.bin"
    source.write_bytes(bytes(5 * MB))
    models.link(model("linked"), source)
    with budget(models, 4).reserve(model("next"), 4 * MB):
        assert left(models) == {"linked"}
    assert source.stat().st_size == 5 * MB


def test_what_is_in_use_stays_here_and_in_another_process(models: ModelFolder, disk: Any) -> None:
    for name in ("mine", "theirs", "idle"):
        place(models, name, 2)
    code = """
import sys
from pathlib import Path
from settee.models.folder.model_folder import ModelFolder
from tests.support.models import entry
with ModelFolder(Path(sys.argv[1])).use([entry("loras/theirs.bin")]):
    print("ready", flush=True)
    sys.stdin.readline()
"""
    with models.use([model("mine")]), other_process(code, models.models_dir):
        with budget(models, 6).reserve(model("next"), 2 * MB):
            assert left(models) == {"mine", "theirs"}
        with pytest.raises(NoSpace, match="MODELS_DISK_BUDGET_GB"), budget(models, 6).reserve(model("next"), 3 * MB):
            pytest.fail("there is no room")


def test_nothing_is_removed_in_vain(models: ModelFolder, disk: Any) -> None:
    place(models, "a", 2)
    with pytest.raises(NoSpace) as failure, budget(models, 5).reserve(model("huge"), 6 * MB):
        pytest.fail("there is no room")
    assert failure.value.message.startswith("loras/huge.bin needs 6 MB, and MODELS_DISK_BUDGET_GB is 5 MB")
    assert failure.value.details == {"model": "loras/huge.bin", "needed_bytes": 6 * MB, "budget_bytes": 5 * MB}
    disk.bytes = 5 * MB
    with pytest.raises(NoSpace, match="larger disk") as failure, budget(models).reserve(model("b"), 6 * MB):
        pytest.fail("there is no room")
    assert str(models.models_dir) not in failure.value.message
    assert failure.value.details["free_bytes"] < 5 * MB
    assert left(models) == {"a"}


def test_a_full_disk_evicts_without_a_budget_too(models: ModelFolder, disk: Any) -> None:
    place(models, "a", 4, age=1)
    place(models, "b", 4)
    disk.bytes = 10 * MB
    with budget(models, margin_bytes=MB).reserve(model("mine", from_job=False), 4 * MB):
        assert left(models) == {"b"}


def test_parallel_downloads_know_of_one_another(models: ModelFolder, disk: Any) -> None:
    room = budget(models, 10)
    with room.reserve(model("a"), 6 * MB):
        with pytest.raises(NoSpace), room.reserve(model("b"), 5 * MB):
            pytest.fail("there is no room")
        with room.reserve(model("b"), 4 * MB):
            pass
    with room.reserve(model("b"), 10 * MB):
        pass


def test_what_a_download_already_has_is_not_asked_for_twice(models: ModelFolder, disk: Any) -> None:
    disk.bytes = 11 * MB
    room, asked = budget(models), model("a")
    with room.reserve(asked, 8 * MB), models.claim(asked):
        part = models.path_of(asked).with_name("a.bin.part")
        with pytest.raises(NoSpace), room.reserve(model("b"), 4 * MB):
            pytest.fail("there is no room")
        part.write_bytes(os.urandom(8 * MB))
        with room.reserve(model("b"), 2 * MB):
            pass
        part.replace(models.path_of(asked))
        with room.reserve(model("b"), 2 * MB):
            pass
        models.record(asked, size=8 * MB, sha256=None, xxh3=None)
    assert left(models) == {"a"}


def test_a_resumed_download_needs_the_rest_only(models: ModelFolder, disk: Any) -> None:
    disk.bytes = 10 * MB
    models.make_way(model("a"))
    models.path_of(model("a")).with_name("a.bin.part").write_bytes(os.urandom(6 * MB))
    with budget(models).reserve(model("a"), 9 * MB):
        pass


def test_the_file_that_is_replaced_is_no_candidate(models: ModelFolder, disk: Any) -> None:
    asked = place(models, "a", 4)
    with budget(models, 6).reserve(asked, 5 * MB):
        assert left(models) == {"a"}


def test_threads_share_one_budget(models: ModelFolder, disk: Any) -> None:
    room, ended, begin = budget(models, 10), threading.Event(), threading.Barrier(8)
    told: queue.Queue[bool] = queue.Queue()

    def run(number: int) -> None:
        begin.wait()
        try:
            with room.reserve(model(f"m{number}"), 4 * MB):
                told.put(True)
                ended.wait(10)
        except NoSpace:
            told.put(False)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(8)]
    for thread in threads:
        thread.start()
    assert sorted(told.get(timeout=10) for _ in threads) == [False] * 6 + [True] * 2
    ended.set()
    for thread in threads:
        thread.join(10)


def test_no_folder_yet_and_no_answer_from_the_disk(models: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with budget(models).reserve(model("a"), 1):
        assert not models.models_dir.exists()
    with pytest.raises(NoSpace), Budget(models, Settings()).reserve(model("a"), 1 << 60):
        pytest.fail("no disk is that large")

    def fail(path: str) -> Any:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "statvfs", fail)
    with Budget(models, Settings(), margin_bytes=MARGIN_BYTES).reserve(model("a"), 1 << 60):
        pass


def test_an_evicted_model_is_absent(models: ModelFolder, disk: Any) -> None:
    asked = place(models, "a", 4)
    with budget(models, 5).reserve(model("b"), 5 * MB):
        assert models.state(asked) is FileState.ABSENT
        assert not record_file(models, "loras/a.bin").exists()
