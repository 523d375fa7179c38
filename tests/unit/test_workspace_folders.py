"""A workspace's folders: whose they are, and input files in them that are whole or not there."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from settee.base.errors import (
    ConfigError,
    InvalidRequest,
    NoSpace,
    PayloadTooLarge,
    SetteeError,
    StagingError,
    UnsafePath,
)
from settee.staging.workspace import Folders, Workspace

# --- folders ---------------------------------------------------------------------------------------------


def test_open_makes_folders_for_this_user_only_and_empties_them(tmp_path: Path) -> None:
    folders = Folders(tmp_path / "new" / "input", tmp_path / "new" / "output", None)
    (tmp_path / "new" / "output" / "old").mkdir(parents=True)
    (tmp_path / "new" / "output" / "old" / "picture.png").write_bytes(b"of another job")

    assert Workspace(folders).open() == ()

    assert stat.S_IMODE(folders.input.stat().st_mode) == 0o700
    assert list(folders.output.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_matter_of_settings(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    folders = Folders(tmp_path / "file" / "input", tmp_path / "output", None)
    with pytest.raises(ConfigError, match="WORKSPACE_DIR") as caught:
        Workspace(folders).open()
    assert str(tmp_path) not in caught.value.message


def test_wipe_reports_what_is_left_by_folder(workspace: Workspace) -> None:
    for folder in ("input", "output", "temp"):
        (getattr(workspace.folders, folder) / "file").write_bytes(b"12")
    assert workspace.wipe() == ()
    assert [list(folder.iterdir()) for _, folder in workspace.folders.named()] == [[], [], []]
    workspace.folders.temp.rmdir()  # type: ignore[union-attr]
    workspace.folders.temp.write_bytes(b"")  # type: ignore[union-attr]
    assert workspace.wipe() == ("temp",)


# --- writing ---------------------------------------------------------------------------------------------


def test_write(workspace: Workspace) -> None:
    sha256 = workspace.write("sub/er/a.bin", [b"12", memoryview(b"345"), b""], 5)
    path = workspace.folders.input / "sub" / "er" / "a.bin"
    assert sha256 == hashlib.sha256(b"12345").hexdigest()
    assert path.read_bytes() == b"12345"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


class Source(Exception):
    pass


def failing(first: bytes, error: BaseException) -> Iterator[bytes]:
    yield first
    raise error


@pytest.mark.parametrize("error", [Source(), KeyboardInterrupt(), ConnectionResetError(104, "reset")])
def test_a_source_that_fails_leaves_nothing(workspace: Workspace, error: BaseException) -> None:
    with pytest.raises(type(error)):
        workspace.write("sub/a.bin", failing(b"half", error), 100)
    assert [path for path in workspace.folders.input.rglob("*") if path.is_file()] == []


def test_the_partial_file_is_wiped_not_only_removed(workspace: Workspace) -> None:
    held: list[int] = []

    def chunks() -> Iterator[bytes]:
        yield b"secret!!" * 8192
        held.extend(os.pipe())
        fd = os.open(workspace.folders.input / "a.bin", os.O_RDONLY)
        os.splice(fd, held[1], 65536)
        os.close(fd)
        raise Source

    with pytest.raises(Source):
        workspace.write("a.bin", chunks(), 1 << 20)
    os.close(held[1])
    with os.fdopen(held[0], "rb") as pipe:
        assert pipe.read() == bytes(65536)


def test_too_large(workspace: Workspace) -> None:
    with pytest.raises(PayloadTooLarge, match="MAX_FILE_MB"):
        workspace.write("a.bin", [b"x" * 6, b"x" * 5], 10)
    assert list(workspace.folders.input.iterdir()) == []
    workspace.write("a.bin", [b"x" * 10], 10)
    assert (workspace.folders.input / "a.bin").stat().st_size == 10


def test_taken_names(workspace: Workspace) -> None:
    workspace.write("a", [b"first"], 10)
    with pytest.raises(InvalidRequest, match="given twice"):
        workspace.write("a", [b"second"], 10)
    with pytest.raises(UnsafePath, match="not a folder"):
        workspace.write("a/b", [b"second"], 10)
    assert (workspace.folders.input / "a").read_bytes() == b"first"


def test_links_in_the_way_are_not_followed(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (workspace.folders.input / "link").symlink_to(tmp_path / "outside")
    (workspace.folders.input / "file").symlink_to(tmp_path / "outside" / "made")
    for name in ("link/a", "file"):
        with pytest.raises(InvalidRequest):
            workspace.write(name, [b"x"], 10)
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_full_disk_says_what_to_do(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "/secret/path")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(NoSpace, match="RAM disk") as caught:
        workspace.write("a.bin", [b"x"], 10)
    monkeypatch.setattr(os, "write", real)
    assert "/secret" not in str([caught.value.message, caught.value.details])
    assert list(workspace.folders.input.iterdir()) == []


def test_a_file_system_that_refuses_is_ours_too(workspace: Workspace) -> None:
    """RLIMIT_FSIZE makes the kernel itself refuse, in the middle of the file."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(StagingError, match="cannot be written"):
            workspace.write("a.bin", [b"x" * 8192, b"y"], 1 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(workspace.folders.input.iterdir()) == []


def test_several_threads_write_into_one_new_folder(workspace: Workspace) -> None:
    failures: list[SetteeError] = []

    def write(number: int) -> None:
        try:
            workspace.write(f"new/folder/{number}", [b"x"] * 10, 100)
        except SetteeError as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(list((workspace.folders.input / "new" / "folder").iterdir())) == 8


def test_no_descriptor_stays_open(workspace: Workspace) -> None:
    before = len(os.listdir("/proc/self/fd"))
    workspace.write("a/b/c/d", [b"x"], 10)
    with pytest.raises(PayloadTooLarge):
        workspace.write("a/b/c/e", [b"x"], 0)
    with pytest.raises(UnsafePath):
        workspace.write("a/b/c/d/e", [b"x"], 10)
    assert len(os.listdir("/proc/self/fd")) == before


# --- Whose folders they are ------------------------------------------------------------------------------


def test_files_too_deep_to_be_named_are_counted_and_wiped(workspace: Workspace) -> None:
    deepest = os.open(workspace.folders.output, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("a folder's name", dir_fd=deepest)
        below = os.open("a folder's name", os.O_RDONLY, dir_fd=deepest)
        os.close(deepest)
        deepest = below
    os.close(os.open("deep.png", os.O_CREAT | os.O_WRONLY, dir_fd=deepest))
    os.close(deepest)
    assert workspace.made() == ([], 1)
    assert workspace.wipe() == ()


def test_folders_with_files_of_somebody_else_are_not_taken(tmp_path: Path) -> None:
    """WORKSPACE_DIR set to a ComfyUI's folder, say: every job would empty its input and output."""
    (tmp_path / "output").mkdir()
    precious = tmp_path / "output" / "precious.png"
    precious.write_bytes(b"x")
    workspace = Workspace(Folders(tmp_path / "input", tmp_path / "output", None))
    with pytest.raises(ConfigError, match="not settee's"):
        workspace.claim()
    assert precious.read_bytes() == b"x"


def test_what_a_worker_left_is_its_own_the_next_time(tmp_path: Path) -> None:
    workspace = Workspace(Folders(tmp_path / "input", tmp_path / "output", None))
    workspace.claim()
    workspace.open()
    (tmp_path / "input" / "left").write_bytes(b"x")
    workspace.release()
    workspace.claim()
    workspace.open()
    assert not any((tmp_path / "input").iterdir())
    workspace.release()


def test_two_workers_cannot_have_the_same_folders(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; "
        "from settee.staging.workspace import Folders, Workspace; root = Path(sys.argv[1]); "
        "Workspace(Folders(root / 'input', root / 'output', None)).claim(); "
        "print('mine', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdin is not None
    assert other.stdout is not None
    workspace = Workspace(Folders(tmp_path / "input", tmp_path / "output", None))
    with other, other.stdin:
        assert other.stdout.readline() == b"mine\n"
        with pytest.raises(ConfigError, match="another worker"):
            workspace.claim()
        other.kill()
    workspace.claim()  # a worker that was killed holds nothing
    workspace.release()
