"""Who uses a file now, and how one that nobody uses is removed, or wiped."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

import pytest

from settee.base.errors import IntegrityError
from settee.base.files import Lock
from settee.models.entry import HubFile, ModelEntry
from settee.models.folder import records as records_module
from settee.models.folder.file_state import FileState
from settee.models.folder.model_folder import ModelFolder
from settee.models.folder.records import Records, overwrite
from tests.support.models import DATA, download, entry, other_process, put, record_file, safetensors

OTHER = HubFile("org/other", "m.safetensors")


_USE = """
import sys
from pathlib import Path
from settee.base.files import Lock
from settee.models.folder.model_folder import ModelFolder
from tests.support.models import entry
with ModelFolder(Path(sys.argv[1])).use([entry(from_job=True)]) as gone:
    print(len(gone), flush=True)
    sys.stdin.readline()
print("done", flush=True)
sys.stdin.readline()
"""


def test_a_file_in_use_by_another_process_stays(models: ModelFolder, source: Path) -> None:
    download(models, entry(from_job=True))
    placed = next(iter(models.records))
    with other_process(_USE, models.models_dir) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert models.records.in_use(placed.path)
        assert not models.records.remove(placed)
        with pytest.raises(IntegrityError, match="in use by a running job") as failure:
            models.link(entry(source=OTHER), source)
        assert failure.value.retryable
        # Two jobs may use one file.
        with models.use([entry()]) as gone:
            assert gone == ()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline()
        assert not models.records.in_use(placed.path)
        assert models.records.remove(placed)
    assert models.state(entry()) is FileState.ABSENT


def test_a_killed_process_uses_nothing(models: ModelFolder) -> None:
    download(models, entry(from_job=True))
    with other_process(_USE, models.models_dir) as process:
        assert models.records.in_use("loras/m.safetensors")
        process.kill()
        process.wait()
        assert not models.records.in_use("loras/m.safetensors")


def test_a_forked_child_does_not_keep_a_file_in_use(models: ModelFolder) -> None:
    download(models, entry(from_job=True))
    ready, end = os.pipe(), os.pipe()
    with models.use([entry()]):
        child = os.fork()
        if child == 0:
            os.write(ready[1], b"1")
            os.read(end[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
    try:
        assert not models.records.in_use("loras/m.safetensors")
    finally:
        os.write(end[1], b"1")
        os.waitpid(child, 0)
        for fd in (*ready, *end):
            os.close(fd)


def test_use_counts_within_the_process_and_touches(models: ModelFolder) -> None:
    download(models, entry(from_job=True))
    os.utime(record_file(models), (1, 1))
    placed = next(iter(models.records))
    assert placed.last_used == 1
    with models.use([entry(), entry()]), models.use([entry()]):
        assert not ModelFolder(models.models_dir).records.remove(placed)
        assert not models.records.remove(placed)
    assert next(iter(models.records)).last_used == pytest.approx(time.time(), abs=60)
    assert models.records.remove(placed)


def test_use_says_what_is_gone(models: ModelFolder) -> None:
    download(models, entry())
    with models.use([entry(), entry("loras/n.safetensors")]) as gone:
        assert [item.name for item in gone] == ["n.safetensors"]


def test_without_locks_this_process_still_counts(models: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(fd: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    download(models, entry(from_job=True))
    placed = next(iter(models.records))
    with models.use([entry()]) as gone:
        assert gone == ()
        assert not models.records.remove(placed)
    assert models.records.remove(placed)


def test_a_record_is_not_replaced_under_a_job(models: ModelFolder) -> None:
    download(models, entry(from_job=True))
    other = ModelFolder(models.models_dir)
    with models.use([entry()]):
        other.keep(entry())
        assert not next(iter(other.records)).from_job
        assert other.records.in_use("loras/m.safetensors")
    assert next(iter(ModelFolder(models.models_dir).records)).from_job


def test_another_processs_later_record_counts_for_more_than_a_remembered_one(models: ModelFolder) -> None:
    download(models, entry(from_job=True))
    other = ModelFolder(models.models_dir)
    with models.use([entry()]):
        other.keep(entry())
    download(models, entry(source=OTHER), safetensors(fill=1))
    assert other.state(entry(source=OTHER)) is FileState.RIGHT


def test_a_lock_of_a_record_that_was_replaced_does_not_count(models: ModelFolder) -> None:
    download(models, entry(from_job=True))
    records, file = Records(str(models.models_dir)), record_file(models)
    fd = os.open(file, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    got: list[Lock] = []

    def wait() -> None:
        with records.lock("loras/m.safetensors", exclusive=False) as lock:
            got.append(lock)
            with records.lock("loras/m.safetensors", exclusive=True) as again:
                got.append(again)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    file.with_suffix(".new").write_bytes(file.read_bytes())
    file.with_suffix(".new").replace(file)
    os.close(fd)
    waiting.join()
    assert got == [Lock.HELD, Lock.BUSY]


def test_eviction_and_use_race_without_a_file_in_use_that_is_gone(models: ModelFolder) -> None:
    """One thread uses it, one removes it, one puts it back: whoever is told it is there finds it there."""
    asked = entry(from_job=True)
    download(models, asked)
    other, stop, wrong = ModelFolder(models.models_dir), threading.Event(), []

    def remove() -> None:
        while not stop.is_set():
            for placed in other.records:
                other.records.remove(placed)

    removing = threading.Thread(target=remove, daemon=True)
    removing.start()
    used = 0
    deadline = time.monotonic() + 30
    while used < 50 and time.monotonic() < deadline:
        if models.state(asked) is not FileState.RIGHT:
            with models.claim(asked):
                put(models, asked)
                if not _record(models, asked):
                    continue
        with models.use([asked]) as gone:
            if not gone:
                used += 1
                if not models.path_of(asked).exists():
                    wrong.append(used)
    stop.set()
    removing.join()
    assert used == 50
    assert not wrong


def _record(models: ModelFolder, asked: ModelEntry) -> bool:
    try:
        models.record(asked, size=len(DATA), sha256=None, xxh3=None)
    except IntegrityError:
        return False
    return True


# --- removing ----------------------------------------------------------------------------------------------


def test_removing_a_link_leaves_what_it_leads_to(models: ModelFolder, source: Path) -> None:
    models.link(entry(from_job=True), source)
    assert models.records.remove(next(iter(models.records)))
    assert source.read_bytes() == DATA
    assert not os.path.lexists(models.path_of(entry()))
    assert list(models.records) == []


@pytest.mark.parametrize("data", [safetensors(fill=1), DATA[:-1]])
def test_what_somebody_put_there_since_is_not_removed(models: ModelFolder, data: bytes) -> None:
    path = download(models, entry(from_job=True))
    placed = next(iter(models.records))
    path.write_bytes(data)
    os.utime(path, ns=(0, 10**9))
    assert models.records.remove(placed)
    assert path.read_bytes() == data
    assert list(models.records) == []


def test_wiping_what_a_sealed_job_brought(models: ModelFolder, tmp_path: Path) -> None:
    asked = entry(from_job=True)
    path = download(models, asked)
    part = path.with_name("m.safetensors.part")
    part.write_bytes(DATA)
    os.link(path, tmp_path / "witness")
    os.link(part, tmp_path / "witness.part")
    with models.use([asked]):
        assert not models.records.discard("loras/m.safetensors", wipe=True)
    assert models.records.discard("loras/m.safetensors", wipe=True)
    assert os.listdir(path.parent) == []
    # Overwritten where it lay: another name of the same file has no byte of it.
    assert not (tmp_path / "witness").read_bytes().strip(b"\0")
    assert not (tmp_path / "witness.part").read_bytes().strip(b"\0")
    assert models.records.discard("loras/m.safetensors", wipe=True)


def test_wiping_leaves_models_files(models: ModelFolder) -> None:
    path = download(models, entry())
    assert models.records.discard("loras/m.safetensors", wipe=True)
    assert path.read_bytes() == DATA
    assert models.state(entry()) is FileState.RIGHT


def test_nobody_waits_while_bytes_are_overwritten(models: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes seconds for a model: another worker places, uses and removes its own meanwhile."""
    asked, theirs = entry(from_job=True), entry("loras/n.safetensors", from_job=True)
    download(models, asked)
    other, is_removed = ModelFolder(models.models_dir), []

    def slowly(path: str) -> None:
        monkeypatch.undo()  # the part and its journal are overwritten too
        assert models.state(asked) is FileState.ABSENT
        download(other, theirs)
        with other.use([theirs]) as gone:
            assert gone == ()
        is_removed.append(other.records.remove(next(iter(other.records))))
        overwrite(path)

    monkeypatch.setattr(records_module, "overwrite", slowly)
    assert models.records.discard("loras/m.safetensors", wipe=True)
    assert is_removed == [True]
    assert os.listdir(models.path_of(asked).parent) == []
