"""Reading ahead: real files on a real disk, their pages really in the cache afterwards, and never more than fits."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from settee.models import readahead
from settee.models.readahead import MARGIN, MIB, PIECE, REGION, ReadAhead
from tests.support.page_cache import resident
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads ahead on Linux only")

PLENTY = 1 << 50


def in_memory(folder: str) -> bool:
    """Whether it is on a RAM disk."""
    command = ["stat", "--file-system", "--format=%T", folder]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() in ("tmpfs", "ramfs")


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder whose files the kernel caches: on a disk, not in a RAM disk."""
    here = Path(__file__).parent
    for parent in (tempfile.gettempdir(), "/var/tmp", str(here)):
        if os.access(parent, os.W_OK) and not in_memory(parent):
            break
    else:
        message = "no writable folder on a disk: the temporary folder, /var/tmp and the checkout are RAM disks"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    folder = Path(tempfile.mkdtemp(prefix="settee-read-ahead-", dir=parent))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def unprobed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is not asked: a disk's own read-ahead, 16 MiB here and none there, makes no difference to counts."""
    monkeypatch.setattr(readahead, "is_cached", lambda fd, offset, length: False)


class Reads:
    """Reads as usual, and notes what was read."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pieces: list[tuple[int, int]] = []

    def __call__(self, fd: int, buffer: memoryview, offset: int) -> int:
        count = os.preadv(fd, [buffer], offset)
        with self.lock:
            self.pieces.append((offset, count))
        return count

    @property
    def total(self) -> int:
        return sum(count for _, count in self.pieces)


def written(path: Path, size: int) -> Path:
    with open(path, "wb") as file:
        for start in range(0, size, MIB):
            file.write(os.urandom(min(MIB, size - start)))
        os.fsync(file.fileno())
    return path


def dropped(path: Path, offset: int = 0) -> Path:
    """Out of the page cache, from ``offset`` on. The kernel keeps pages that something still holds: ask it again."""

    def drop() -> bool:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, offset, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
        return share(path, offset) == 0

    eventually(drop, what="an uncached file")
    return path


def share(path: Path, offset: int = 0) -> float:
    """How much of the file, from ``offset`` on, is in the page cache, from 0 to 1."""
    fd = os.open(path, os.O_RDONLY)
    try:
        pages = resident(fd, offset, path.stat().st_size - offset)
    finally:
        os.close(fd)
    assert pages is not None
    return 1 - pages.count(0) / len(pages)


def drain(ahead: ReadAhead) -> None:
    """Wait until nothing is left to read."""
    eventually(lambda: not ahead._files)


def read(paths: list[Path], free: int = PLENTY) -> Reads:
    reads = Reads()
    with closing(ReadAhead(free=lambda: free, read=reads)) as ahead:
        for path in paths:
            ahead.add(path)
        drain(ahead)
    return reads


def test_a_file_is_in_the_page_cache_afterwards(disk: Path) -> None:
    path = dropped(written(disk / "model.safetensors", 40 * MIB + 123))
    with closing(ReadAhead(free=lambda: PLENTY)) as ahead:
        ahead.add(path)
        drain(ahead)
    assert share(path) > 0.9


@pytest.mark.usefixtures("unprobed")
def test_every_byte_is_read_once_by_several_readers(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = dropped(written(disk / "model.safetensors", 5 * REGION + 123))
    reads = read([path])
    assert sorted(offset for offset, _ in reads.pieces) == list(range(0, 5 * REGION + 123, PIECE))
    assert reads.total == 5 * REGION + 123
    assert "42 of a model's 42 MB" in caplog.text


def test_what_is_cached_is_not_read_again(disk: Path) -> None:
    path = written(disk / "model.safetensors", 6 * PIECE)
    path.read_bytes()
    assert read([path]).pieces == []
    dropped(path, 4 * PIECE)
    assert {offset for offset, _ in read([path]).pieces} == {4 * PIECE, 5 * PIECE}


@pytest.mark.usefixtures("unprobed")
def test_a_cached_file_is_read_where_the_kernel_does_not_say(disk: Path) -> None:
    path = written(disk / "model.safetensors", 3 * MIB)
    assert read([path]).total == 3 * MIB


def test_links_are_followed_and_one_file_is_read_once(disk: Path) -> None:
    path = dropped(written(disk / "blob", 2 * REGION))
    (disk / "model.safetensors").symlink_to(path)
    (disk / "again.safetensors").symlink_to("model.safetensors")
    reads = read([disk / "model.safetensors", disk / "again.safetensors", path, path])
    assert reads.total <= 2 * REGION
    assert share(path) > 0.9


@pytest.mark.usefixtures("unprobed")
def test_no_more_is_read_than_memory_is_free(disk: Path) -> None:
    large = dropped(written(disk / "large", 5 * REGION))
    next_one = dropped(written(disk / "next", MIB))
    free = MARGIN + 2 * REGION + MIB
    assert read([large], free).total == 2 * REGION
    assert 0 < read([large, next_one], free).total <= 2 * REGION + MIB
    assert read([dropped(large)], free=MARGIN).pieces == []
    assert read([large], free=0).pieces == []


@pytest.mark.usefixtures("unprobed")
def test_a_file_does_not_push_out_the_one_before_it(disk: Path) -> None:
    """The cache counts as free memory, so what was just read has to be kept count of."""
    paths = [dropped(written(disk / name, 2 * REGION)) for name in ("first", "second")]
    now = [1000.0]
    reads = Reads()
    with closing(ReadAhead(free=lambda: MARGIN + 3 * REGION, read=reads, clock=lambda: now[0])) as ahead:
        for path in paths:
            ahead.add(path)
            drain(ahead)
        assert reads.total == 3 * REGION
        now[0] += readahead.HOLD_S + 1
        ahead.add(paths[1])
        drain(ahead)
    assert reads.total == 5 * REGION


def test_what_is_no_file_is_passed_over(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(disk / "pipe")
    (disk / "empty").touch()
    (disk / "dangling").symlink_to(disk / "nowhere")
    good = dropped(written(disk / "good", MIB))
    reads = read([disk / "pipe", disk / "empty", disk, disk / "missing", disk / "dangling", disk / "nul\0", good])
    assert reads.total == MIB
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 3
    assert not any(word in line for line in told for word in (str(disk), "missing", "dangling"))


@pytest.mark.usefixtures("unprobed")
def test_a_volume_that_fails_costs_that_file_only(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad, good = (dropped(written(disk / name, size)) for name, size in (("bad", 5 * REGION), ("good", MIB)))
    inode = bad.stat().st_ino
    reads = Reads()

    def failing(fd: int, buffer: memoryview, offset: int) -> int:
        if os.fstat(fd).st_ino == inode:
            raise OSError(errno.EIO, "Input/output error")
        return reads(fd, buffer, offset)

    with closing(ReadAhead(free=lambda: PLENTY, read=failing)) as ahead:
        ahead.add(bad)
        ahead.add(good)
        drain(ahead)
    assert reads.total == MIB
    assert "read-ahead of a model given up: Input/output error" in caplog.messages


def test_a_file_that_becomes_shorter_ends_there(disk: Path) -> None:
    path = dropped(written(disk / "model", 3 * MIB))

    def short(fd: int, buffer: memoryview, offset: int) -> int:
        return os.preadv(fd, [buffer], offset) if offset < PIECE else 0

    with closing(ReadAhead(free=lambda: PLENTY, read=short)) as ahead:
        ahead.add(path)
        drain(ahead)


@pytest.mark.usefixtures("unprobed")
def test_close_ends_within_a_second_in_the_midst_of_a_read(disk: Path) -> None:
    path = dropped(written(disk / "model", 5 * REGION))
    stuck, freed = threading.Event(), threading.Event()
    reads: list[int] = []

    def hanging(fd: int, buffer: memoryview, offset: int) -> int:
        reads.append(offset)
        stuck.set()
        freed.wait(60)
        return len(buffer)

    ahead = ReadAhead(free=lambda: PLENTY, read=hanging)
    ahead.add(path)
    ahead.add(path)
    assert stuck.wait(10)
    assert ahead._files
    began = time.monotonic()
    ahead.close()
    assert time.monotonic() - began < 30
    freed.set()
    eventually(lambda: not any(thread.is_alive() for thread in ahead._threads), what="the readers' end")
    assert len(reads) <= 4
    ahead.add(path)
    ahead.close()


def test_no_thread_to_be_had_fails_nobody(
    disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    ahead = ReadAhead()
    ahead.add(written(disk / "model", MIB))
    assert not ahead._files
    ahead.close()
    assert "0 of 4 readers" in caplog.text


def test_nothing_starts_before_the_first_file() -> None:
    before = threading.active_count()
    with closing(ReadAhead()) as ahead:
        assert not ahead._files
        assert threading.active_count() == before
