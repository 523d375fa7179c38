"""Whose a file is, what may replace it, and who uses it now."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from settee.errors import IntegrityError, InvalidRequest, StagingError
from settee.models.entry import HubFile, ModelEntry
from settee.models.locks import Lock
from settee.models.placed import Shelf, State
from settee.models.records import Records
from settee.models.turns import Stopped
from tests.support.models import entry, other_process, safetensors, sha256
from tests.unit.test_models_placed import DATA, download, put, record_file

OTHER = HubFile("org/other", "m.safetensors")


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "models")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "volume" / "m.safetensors"
    path.parent.mkdir()
    path.write_bytes(DATA)
    return path


# --- links -------------------------------------------------------------------------------------------------


def test_a_link_is_right_at_once(shelf: Shelf, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)
    shelf.link(entry(), Path("m.safetensors"))
    path = shelf.path_of(entry())
    assert os.readlink(path) == str(source)
    assert shelf.state(entry()) is State.RIGHT
    assert Shelf(shelf.models_dir).state(entry()) is State.RIGHT
    assert sorted(os.listdir(path.parent)) == ["m.safetensors"]


def test_a_link_whose_source_goes_or_changes(shelf: Shelf, source: Path) -> None:
    shelf.link(entry(), source)
    source.unlink()
    assert shelf.state(entry()) is State.WRONG
    assert "link to nothing" in str(shelf.adopt(entry()))
    source.write_bytes(safetensors(65))
    assert shelf.state(entry()) is State.WRONG
    shelf.link(entry(), source)
    assert shelf.state(entry()) is State.RIGHT


def test_the_operators_own_link_is_adopted(shelf: Shelf, source: Path) -> None:
    path = shelf.path_of(entry())
    path.parent.mkdir(parents=True)
    path.symlink_to(source)
    assert shelf.state(entry()) is State.UNKNOWN
    assert shelf.adopt(entry(), sha256=sha256(DATA)) is None
    assert shelf.state(entry(sha256=sha256(DATA))) is State.RIGHT
    path.unlink()
    path.symlink_to(source.parent / "." / "m.safetensors")
    os.utime(source, ns=(0, 0))
    assert shelf.state(entry()) is State.UNKNOWN


def test_the_hubs_cache_says_the_sha256_in_the_name(shelf: Shelf, tmp_path: Path) -> None:
    digest = sha256(DATA)
    blob = tmp_path / "cache" / "blobs" / digest
    blob.parent.mkdir(parents=True)
    blob.write_bytes(DATA)
    snapshot = tmp_path / "cache" / "snapshots" / "abc" / "m.safetensors"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(Path("../../blobs") / digest)
    read: list[int] = []
    shelf.link(entry(sha256=digest), snapshot, on_bytes=read.append)
    assert shelf.state(entry(sha256=digest)) is State.RIGHT
    assert read == []
    with pytest.raises(IntegrityError, match=f"{digest} instead of {'0' * 64}"):
        shelf.link(entry("loras/n.safetensors", sha256="0" * 64), snapshot)


def test_a_volumes_file_is_read_once_when_its_sha256_is_given(shelf: Shelf, source: Path) -> None:
    read: list[int] = []
    shelf.link(entry(sha256=sha256(DATA)), source, on_bytes=read.append)
    assert sum(read) == len(DATA)
    assert shelf.state(entry(sha256=sha256(DATA))) is State.RIGHT
    with pytest.raises(IntegrityError, match="instead of"):
        shelf.link(entry("loras/n.safetensors", sha256="0" * 64), source)
    assert not os.path.lexists(shelf.path_of(entry("loras/n.safetensors")))


def test_no_link_to_what_is_no_model(shelf: Shelf, source: Path) -> None:
    with pytest.raises(StagingError, match="its source is gone"):
        shelf.link(entry(), source.with_name("absent"))
    with pytest.raises(IntegrityError, match="not a regular file"):
        shelf.link(entry(), source.parent)
    with pytest.raises(IntegrityError, match="instead of 5"):
        shelf.link(entry(size=5), source)
    source.write_bytes(DATA[:-1])
    with pytest.raises(IntegrityError, match="cut short"):
        shelf.link(entry(), source)


def test_no_link_leads_to_itself(shelf: Shelf, source: Path, tmp_path: Path) -> None:
    path = put(shelf, entry())
    (tmp_path / "again").symlink_to(shelf.models_dir)
    for way in (path, tmp_path / "again" / "loras" / "m.safetensors"):
        shelf.link(entry(), way)
        assert not path.is_symlink()
        assert shelf.state(entry()) is State.RIGHT
    other = entry("loras/n.safetensors")
    shelf.link(other, source)
    shelf.link(other, tmp_path / "again" / "loras" / "n.safetensors")
    assert os.readlink(shelf.path_of(other)) == str(source)
    assert shelf.state(other) is State.RIGHT


def test_there_is_always_a_file_while_a_link_is_replaced(shelf: Shelf, source: Path) -> None:
    other = source.with_name("other.safetensors")
    other.write_bytes(DATA)
    shelf.link(entry(), source)
    path, missing, stop = shelf.path_of(entry()), [], threading.Event()

    def look() -> None:
        while not stop.is_set():
            if not path.exists():
                missing.append(1)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    for _ in range(100):
        shelf.link(entry(), other)
        shelf.link(entry(), source)
    stop.set()
    looking.join()
    assert not missing


# --- whose file it is ------------------------------------------------------------------------------------------


def test_a_job_replaces_neither_models_nor_the_operators_file(shelf: Shelf, source: Path) -> None:
    download(shelf, entry())
    theirs = entry("loras/own.safetensors")
    put(shelf, theirs)
    for path in ("loras/m.safetensors", "loras/own.safetensors"):
        asked = entry(path, source=OTHER, from_job=True, position="models.0")
        with pytest.raises(InvalidRequest, match=r"models\.0: .* give the entry another LocalName"):
            shelf.link(asked, source)
        with pytest.raises(InvalidRequest), shelf.claim(asked):
            pytest.fail("not to be downloaded")
        assert shelf.path_of(asked).read_bytes() == DATA
    assert "no sha256 is known" in str(shelf.adopt(entry("loras/own.safetensors", from_job=True)))


def test_a_job_may_use_them_when_they_are_what_it_asks_for(shelf: Shelf) -> None:
    download(shelf, entry(), sha256=sha256(DATA))
    put(shelf, entry("loras/own.safetensors"))
    assert shelf.state(entry(from_job=True)) is State.RIGHT
    assert shelf.state(entry(from_job=True, source=OTHER, sha256=sha256(DATA))) is State.RIGHT
    assert shelf.adopt(entry("loras/own.safetensors", from_job=True), sha256=sha256(DATA)) is None
    # And they stay what they were: nothing that a job may evict.
    assert [placed.from_job for placed in shelf.records()] == [False, False]


def test_a_jobs_file_is_replaced_by_the_next_jobs_and_by_models(shelf: Shelf, source: Path) -> None:
    download(shelf, entry(from_job=True))
    shelf.link(entry(source=OTHER, from_job=True), source)
    assert shelf.state(entry(source=OTHER)) is State.RIGHT
    download(shelf, entry(), safetensors(fill=3))
    assert shelf.state(entry()) is State.RIGHT
    assert not next(shelf.records()).from_job


def test_models_keeps_what_a_job_brought(shelf: Shelf) -> None:
    download(shelf, entry(from_job=True))
    shelf.keep(entry(from_job=True))
    assert next(shelf.records()).from_job
    shelf.keep(entry())
    assert not next(shelf.records()).from_job
    assert shelf.state(entry()) is State.RIGHT


def test_a_link_of_models_that_leads_nowhere_may_be_filled_by_a_job(shelf: Shelf, source: Path) -> None:
    shelf.link(entry(), source)
    source.unlink()
    with pytest.raises(InvalidRequest), shelf.claim(entry(source=OTHER, from_job=True)):
        pytest.fail("another file in MODELS' place")
    with shelf.claim(entry(from_job=True)):
        put(shelf, entry())
        shelf.record(entry(from_job=True), size=len(DATA), sha256=None, xxh3=None)
    assert [(placed.from_job, placed.link) for placed in shelf.records()] == [(False, None)]


def test_a_broken_file_of_the_operators_is_replaced_and_said(
    shelf: Shelf, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(shelf, entry(), DATA[:-9])
    with caplog.at_level(logging.WARNING):
        shelf.link(entry(), source)
    assert "9 bytes are missing" in caplog.text
    assert shelf.state(entry()) is State.RIGHT
    assert os.listdir(shelf.path_of(entry()).parent) == ["m.safetensors"]


def test_a_whole_model_of_the_operators_is_set_aside(
    shelf: Shelf, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = shelf.path_of(entry())
    for fill in (1, 2):
        if path.is_symlink():
            path.unlink()
        put(shelf, entry(), safetensors(fill=fill))
        with caplog.at_level(logging.WARNING):
            shelf.link(entry(), source)
    assert path.with_name("m.safetensors.set-aside").read_bytes() == safetensors(fill=1)
    assert path.with_name("m.safetensors.set-aside-1").read_bytes() == safetensors(fill=2)
    assert "kept as m.safetensors.set-aside" in caplog.text


# --- one at a time -----------------------------------------------------------------------------------------

_PLACE = """
import sys
from pathlib import Path
from settee.models.placed import Shelf
from tests.support.models import entry
from tests.unit.test_models_placed import DATA, put
shelf = Shelf(Path(sys.argv[1]))
with shelf.claim(entry()):
    print("begun", flush=True)
    if sys.stdin.readline() == "fail\\n":
        sys.exit("as asked")
    put(shelf, entry())
    shelf.record(entry(), size=len(DATA), sha256=None, xxh3=None)
"""


@pytest.mark.parametrize("end", ["place", "fail", "kill"])
def test_one_process_places_a_file_and_another_waits_for_it(shelf: Shelf, end: str) -> None:
    needed: list[bool] = []

    def wait() -> None:
        with shelf.claim(entry()) as is_needed:
            needed.append(is_needed)
            if is_needed:
                put(shelf, entry())
                shelf.record(entry(), size=len(DATA), sha256=None, xxh3=None)

    with other_process(_PLACE, shelf.models_dir) as process:
        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        if end == "kill":
            process.kill()
        else:
            assert process.stdin is not None
            process.stdin.write(f"{end}\n")
            process.stdin.flush()
        waiting.join(20)
    assert needed == [end != "place"]
    assert shelf.state(entry()) is State.RIGHT


def test_waiting_for_another_process_can_be_given_up(shelf: Shelf, source: Path) -> None:
    stop = threading.Event()
    with other_process(_PLACE, shelf.models_dir):
        with pytest.raises(StagingError, match="another process") as failure, shelf.claim(entry(), wait_s=0.01):
            pytest.fail("not while the other one is at it")
        assert failure.value.retryable
        stop.set()
        with pytest.raises(Stopped), shelf.claim(entry(), stop=stop):
            pytest.fail("not while the other one is at it")
        with pytest.raises(Stopped):
            shelf.link(entry(), source, stop=stop)


# --- in use ------------------------------------------------------------------------------------------------

_USE = """
import sys
from pathlib import Path
from settee.models.locks import Lock
from settee.models.placed import Shelf
from tests.support.models import entry
with Shelf(Path(sys.argv[1])).use([entry(from_job=True)]) as gone:
    print(len(gone), flush=True)
    sys.stdin.readline()
print("done", flush=True)
sys.stdin.readline()
"""


def test_a_file_in_use_by_another_process_stays(shelf: Shelf, source: Path) -> None:
    download(shelf, entry(from_job=True))
    placed = next(shelf.records())
    with other_process(_USE, shelf.models_dir) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert shelf.in_use(placed.path)
        assert shelf.remove(placed) is None
        with pytest.raises(IntegrityError, match="in use by a running job") as failure:
            shelf.link(entry(source=OTHER), source)
        assert failure.value.retryable
        # Two jobs may use one file.
        with shelf.use([entry()]) as gone:
            assert gone == ()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline()
        assert not shelf.in_use(placed.path)
        assert shelf.remove(placed) == len(DATA)
    assert shelf.state(entry()) is State.ABSENT


def test_a_killed_process_uses_nothing(shelf: Shelf) -> None:
    download(shelf, entry(from_job=True))
    with other_process(_USE, shelf.models_dir) as process:
        assert shelf.in_use("loras/m.safetensors")
        process.kill()
        process.wait()
        assert not shelf.in_use("loras/m.safetensors")


def test_a_forked_child_does_not_keep_a_file_in_use(shelf: Shelf) -> None:
    download(shelf, entry(from_job=True))
    ready, end = os.pipe(), os.pipe()
    with shelf.use([entry()]):
        child = os.fork()
        if child == 0:
            os.write(ready[1], b"1")
            os.read(end[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
    try:
        assert not shelf.in_use("loras/m.safetensors")
    finally:
        os.write(end[1], b"1")
        os.waitpid(child, 0)
        for fd in (*ready, *end):
            os.close(fd)


def test_use_counts_within_the_process_and_touches(shelf: Shelf) -> None:
    download(shelf, entry(from_job=True))
    os.utime(record_file(shelf), (1, 1))
    placed = next(shelf.records())
    assert placed.last_used == 1
    with shelf.use([entry(), entry()]), shelf.use([entry()]):
        assert Shelf(shelf.models_dir).remove(placed) is None
        assert shelf.remove(placed) is None
    assert next(shelf.records()).last_used == pytest.approx(time.time(), abs=60)
    assert shelf.remove(placed) == len(DATA)


def test_use_says_what_is_gone(shelf: Shelf) -> None:
    download(shelf, entry())
    with shelf.use([entry(), entry("loras/n.safetensors")]) as gone:
        assert [item.name for item in gone] == ["n.safetensors"]


def test_without_locks_this_process_still_counts(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(fd: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    download(shelf, entry(from_job=True))
    placed = next(shelf.records())
    with shelf.use([entry()]) as gone:
        assert gone == ()
        assert shelf.remove(placed) is None
    assert shelf.remove(placed) == len(DATA)


def test_a_record_is_not_replaced_under_a_job(shelf: Shelf) -> None:
    download(shelf, entry(from_job=True))
    other = Shelf(shelf.models_dir)
    with shelf.use([entry()]):
        other.keep(entry())
        assert not next(other.records()).from_job
        assert other.in_use("loras/m.safetensors")
    assert next(Shelf(shelf.models_dir).records()).from_job


def test_another_processs_later_record_counts_for_more_than_a_remembered_one(shelf: Shelf) -> None:
    download(shelf, entry(from_job=True))
    other = Shelf(shelf.models_dir)
    with shelf.use([entry()]):
        other.keep(entry())
    download(shelf, entry(source=OTHER), safetensors(fill=1))
    assert other.state(entry(source=OTHER)) is State.RIGHT


def test_a_lock_of_a_record_that_was_replaced_does_not_count(shelf: Shelf) -> None:
    download(shelf, entry(from_job=True))
    records, file = Records(str(shelf.models_dir)), record_file(shelf)
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


def test_eviction_and_use_race_without_a_file_in_use_that_is_gone(shelf: Shelf) -> None:
    """One thread uses it, one removes it, one puts it back: whoever is told it is there finds it there."""
    asked = entry(from_job=True)
    download(shelf, asked)
    other, stop, wrong = Shelf(shelf.models_dir), threading.Event(), []

    def remove() -> None:
        while not stop.is_set():
            for placed in other.records():
                other.remove(placed)

    removing = threading.Thread(target=remove, daemon=True)
    removing.start()
    used = 0
    deadline = time.monotonic() + 30
    while used < 50 and time.monotonic() < deadline:
        if shelf.state(asked) is not State.RIGHT:
            with shelf.claim(asked):
                put(shelf, asked)
                if not _record(shelf, asked):
                    continue
        with shelf.use([asked]) as gone:
            if not gone:
                used += 1
                if not shelf.path_of(asked).exists():
                    wrong.append(used)
    stop.set()
    removing.join()
    assert used == 50
    assert not wrong


def _record(shelf: Shelf, asked: ModelEntry) -> bool:
    try:
        shelf.record(asked, size=len(DATA), sha256=None, xxh3=None)
    except IntegrityError:
        return False
    return True


# --- removing ----------------------------------------------------------------------------------------------


def test_removing_a_link_leaves_what_it_leads_to(shelf: Shelf, source: Path) -> None:
    shelf.link(entry(from_job=True), source)
    assert shelf.remove(next(shelf.records())) == 0
    assert source.read_bytes() == DATA
    assert not os.path.lexists(shelf.path_of(entry()))
    assert list(shelf.records()) == []


@pytest.mark.parametrize("data", [safetensors(fill=1), DATA[:-1]])
def test_what_somebody_put_there_since_is_not_removed(shelf: Shelf, data: bytes) -> None:
    path = download(shelf, entry(from_job=True))
    placed = next(shelf.records())
    path.write_bytes(data)
    os.utime(path, ns=(0, 10**9))
    assert shelf.remove(placed) == 0
    assert path.read_bytes() == data
    assert list(shelf.records()) == []


def test_wiping_what_a_sealed_job_brought(shelf: Shelf, tmp_path: Path) -> None:
    asked = entry(from_job=True)
    path = download(shelf, asked)
    part = path.with_name("m.safetensors.part")
    part.write_bytes(DATA)
    os.link(path, tmp_path / "witness")
    os.link(part, tmp_path / "witness.part")
    with shelf.use([asked]):
        assert not shelf.wipe(asked)
    assert shelf.wipe(asked)
    assert os.listdir(path.parent) == []
    # Overwritten where it lay: another name of the same file has no byte of it.
    assert not (tmp_path / "witness").read_bytes().strip(b"\0")
    assert not (tmp_path / "witness.part").read_bytes().strip(b"\0")
    assert shelf.wipe(asked)


def test_wiping_leaves_models_files(shelf: Shelf) -> None:
    path = download(shelf, entry())
    assert shelf.wipe(entry(from_job=True))
    assert path.read_bytes() == DATA
    assert shelf.state(entry()) is State.RIGHT


def test_content_tells_whether_a_name_holds_another_file(shelf: Shelf) -> None:
    assert shelf.content_of(entry()) is None
    contents: list[Any] = []
    for fill in (1, 2, 1):
        download(shelf, entry(), safetensors(fill=fill))
        contents.append(shelf.content_of(entry()))
    assert contents[0] == contents[2] != contents[1]
    put(shelf, entry("loras/n.safetensors"))
    assert shelf.content_of(entry("loras/n.safetensors")) is not None
