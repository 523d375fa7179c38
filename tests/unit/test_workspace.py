"""Names that are safe, outputs that are where history says, and input files that are whole or not there."""

from __future__ import annotations

import errno
import ntpath
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from settee.errors import (
    ConfigError,
    InvalidRequest,
    NoSpace,
    OutputMissing,
    PayloadTooLarge,
    SetteeError,
    StagingError,
    UnsafePath,
)
from settee.settings import Settings
from settee.workspace import Folders, Workspace, safe_relative


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    folders = Folders(tmp_path / "ws" / "input", tmp_path / "ws" / "output", tmp_path / "ws" / "temp")
    workspace = Workspace(folders, Settings())
    workspace.open()
    return workspace


# --- names -----------------------------------------------------------------------------------------------

GOOD = [
    "a.png",
    "sub/folder/a.png",
    "no suffix",
    ".hidden",
    "a..b/c...d",
    "ünï/日本語.png",
    "👩‍🚀.png",
    "12:30.png",
    "[input] a.png",
    "a [input].png",
    "CONSOLE.png",
    "COM.png",
    "x" * 255,
    "/".join(["é" * 127] * 3),
    "-rf",
    "a~",
    "%2e%2e%2fa.png",
]

BAD = {
    "": "empty",
    "/etc/passwd": "absolute",
    "//host/share": "absolute",
    "..": "'..'",
    "../a.png": "'..'",
    "a/../../b": "'..'",
    "a/..": "'..'",
    "./a.png": "'.'",
    "a/./b": "'.'",
    "a//b": "empty folder",
    "a/": "empty folder",
    "a\\b.png": "backslash",
    "..\\..\\a": "backslash",
    "C:/a.png": "drive",
    "c:a.png": "drive",
    "~/a.png": "~",
    "~root": "~",
    "a\0.png": "control",
    "a\nb": "control",
    "a\x1b[31m": "control",
    "a\x7f": "control",
    "a\x85b": "control",
    "a\u2028b": "control",
    "\ud800.png": "surrogate",
    "CON": "device",
    "con.png": "device",
    "sub/NUL.tar.gz": "device",
    "Aux .png": "device",
    "lpt1": "device",
    "COM¹": "device",
    "CONIN$": "device",
    "nul/a.png": "device",
    "a.": "dot or a space",
    "a ": "dot or a space",
    "a./b": "dot or a space",
    "...": "dot or a space",
    "a.png [input]": "brackets",
    "a.png [output]": "brackets",
    "a.png[temp]": "brackets",
    "x" * 256: "255 bytes",
    "é" * 128: "255 bytes",
    "a/" + "x" * 256 + "/b": "255 bytes",
}


@pytest.mark.parametrize("name", GOOD)
def test_good_names(name: str) -> None:
    assert str(safe_relative(name)) == name


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_bad_names_are_named_with_the_rule_they_break(name: str) -> None:
    with pytest.raises(UnsafePath) as caught:
        safe_relative(name)
    message = caught.value.message
    assert BAD[name] in message
    assert message.isprintable()
    assert len(message) < 250
    if len(name) < 40:
        assert repr(name) in message


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    st.one_of(
        st.text(max_size=60),
        st.text(alphabet="./\\~ ab:[]\0CONUL$\n", max_size=12),
        st.lists(st.sampled_from(["..", ".", "", "a", "~", "C:", "nul", " ", "[temp]", "a."]), max_size=6).map(
            "/".join
        ),
    )
)
@example("a/../../b")
@example("x [temp]")
def test_nothing_accepted_leaves_its_folder(name: str) -> None:
    try:
        relative = safe_relative(name)
    except UnsafePath:
        return
    root = "/some/root"
    assert os.path.normpath(os.path.join(root, name)) == os.path.join(root, name)
    assert os.path.join(root, name).startswith(root + "/")
    assert str(relative) == name
    assert not name.endswith(("[input]", "[output]", "[temp]"))
    # The same on Windows: nothing there reads it as a drive or another folder.
    windows = ntpath.normpath(ntpath.join("D:\\root", name))
    assert windows == "D:\\root\\" + name.replace("/", "\\")
    assert isinstance(relative, PurePosixPath)


# --- folders ---------------------------------------------------------------------------------------------


def test_open_makes_folders_for_this_user_only_and_empties_them(tmp_path: Path) -> None:
    folders = Folders(tmp_path / "new" / "input", tmp_path / "new" / "output", None)
    (tmp_path / "new" / "output" / "old").mkdir(parents=True)
    (tmp_path / "new" / "output" / "old" / "picture.png").write_bytes(b"of another job")

    wiped = Workspace(folders, Settings()).open()

    assert (wiped.files, wiped.bytes, wiped.left) == (1, 14, ())
    assert stat.S_IMODE(folders.input.stat().st_mode) == 0o700
    assert list(folders.output.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_matter_of_settings(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    folders = Folders(tmp_path / "file" / "input", tmp_path / "output", None)
    with pytest.raises(ConfigError, match="WORKSPACE_DIR") as caught:
        Workspace(folders, Settings()).open()
    assert str(tmp_path) not in caught.value.message


def test_wipe_reports_what_is_left_by_folder(workspace: Workspace) -> None:
    for folder in ("input", "output", "temp"):
        (getattr(workspace.folders, folder) / "file").write_bytes(b"12")
    assert workspace.wipe().files == 3
    workspace.folders.temp.rmdir()  # type: ignore[union-attr]
    workspace.folders.temp.write_bytes(b"")  # type: ignore[union-attr]
    assert workspace.wipe().left == ("temp",)


# --- outputs ---------------------------------------------------------------------------------------------


def test_outputs_are_found(workspace: Workspace) -> None:
    file = workspace.folders.output / "job" / "a.png"
    file.parent.mkdir()
    file.write_bytes(b"x")
    assert workspace.path_of("output", "job", "a.png") == file.resolve()
    assert workspace.path_of("output", "", "job/a.png") == file.resolve()
    (workspace.folders.output / "again.png").symlink_to("job/a.png")
    assert workspace.path_of("output", "", "again.png") == file.resolve()


def test_the_output_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "shm").mkdir()
    (tmp_path / "shm" / "a.png").write_bytes(b"x")
    (tmp_path / "output").symlink_to(tmp_path / "shm")
    workspace = Workspace(Folders(tmp_path / "input", tmp_path / "output", None), Settings())
    assert workspace.path_of("output", "", "a.png").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("folder_type", "subfolder", "filename"),
    [
        ("output", "", "../secret"),
        ("output", "..", "secret"),
        ("output", "../../ws-evil", "secret"),
        ("output", "../output-evil", "secret"),
        ("output", "/etc", "passwd"),
        ("output", "", "/etc/passwd"),
        ("output", "", ""),
        ("output", "", "."),
        ("output", "link-out", "secret"),
        ("output", "", "link-file"),
        ("output", "", "a\0b"),
        ("output", "", "\ud800"),
        ("output", "", "loop/x/../../../secret"),
        ("models", "", "a.png"),
        ("../input", "", "a.png"),
        ("", "", "a.png"),
        ("output", None, "a.png"),
        ("output", "", 7),
    ],
)
def test_history_cannot_name_a_file_outside(
    workspace: Workspace, tmp_path: Path, folder_type: str, subfolder: str, filename: str
) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "ws" / "secret").write_bytes(b"secret")
    evil = tmp_path / "ws" / "output-evil"
    evil.mkdir()
    (evil / "secret").write_bytes(b"secret")
    (workspace.folders.output / "link-out").symlink_to(tmp_path)
    (workspace.folders.output / "link-file").symlink_to(tmp_path / "secret")
    with pytest.raises((UnsafePath, OutputMissing)) as caught:
        workspace.path_of(folder_type, subfolder, filename)
    assert str(tmp_path) not in caught.value.message
    assert isinstance(caught.value, UnsafePath)


def test_what_is_no_file_is_missing(workspace: Workspace) -> None:
    os.mkfifo(workspace.folders.output / "fifo")
    (workspace.folders.output / "folder").mkdir()
    (workspace.folders.output / "dangling").symlink_to("nothing")
    for name in ("nothing.png", "fifo", "folder", "dangling", "nothing/at/all"):
        with pytest.raises(OutputMissing, match="is not there"):
            workspace.path_of("output", "", name)


def test_temp_is_refused_where_it_is_not_shared(tmp_path: Path) -> None:
    workspace = Workspace(Folders(tmp_path / "i", tmp_path / "o", None), Settings())
    with pytest.raises(UnsafePath, match="does not share"):
        workspace.path_of("temp", "", "a.png")


# --- writing ---------------------------------------------------------------------------------------------


def test_write(workspace: Workspace) -> None:
    path = workspace.write("sub/er/a.bin", [b"12", memoryview(b"345"), b""], 5)
    assert path == workspace.folders.input / "sub" / "er" / "a.bin"
    assert path.read_bytes() == b"12345"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", list(BAD)[:20], ids=ascii)
def test_write_refuses_bad_names(workspace: Workspace, tmp_path: Path, name: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UnsafePath):
        workspace.write(name, [b"x"], 10)
    assert sorted(tmp_path.rglob("*")) == before


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
    assert workspace.write("a.bin", [b"x" * 10], 10).stat().st_size == 10


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
    assert "/secret" not in str(caught.value.as_dict())
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


def test_folders_with_files_of_somebody_else_are_not_taken(tmp_path: Path) -> None:
    """WORKSPACE_DIR set to a ComfyUI's folder, say: every job would empty its input and output."""
    (tmp_path / "output").mkdir()
    precious = tmp_path / "output" / "precious.png"
    precious.write_bytes(b"x")
    workspace = Workspace(Folders(tmp_path / "input", tmp_path / "output", None), Settings())
    with pytest.raises(ConfigError, match="not settee's"):
        workspace.claim()
    assert precious.read_bytes() == b"x"


def test_what_a_worker_left_is_its_own_the_next_time(tmp_path: Path) -> None:
    workspace = Workspace(Folders(tmp_path / "input", tmp_path / "output", None), Settings())
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
        "import sys; from pathlib import Path; from settee.settings import Settings; "
        "from settee.workspace import Folders, Workspace; root = Path(sys.argv[1]); "
        "Workspace(Folders(root / 'input', root / 'output', None), Settings()).claim(); "
        "print('mine', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdin is not None
    assert other.stdout is not None
    workspace = Workspace(Folders(tmp_path / "input", tmp_path / "output", None), Settings())
    with other, other.stdin:
        assert other.stdout.readline() == b"mine\n"
        with pytest.raises(ConfigError, match="another worker"):
            workspace.claim()
        other.kill()
    workspace.claim()  # a worker that was killed holds nothing
    workspace.release()
