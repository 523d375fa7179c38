"""Wiping whole trees: everything goes and nothing else, also while others write, and what cannot be is reported."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from settee.staging.wipe import wipe_tree
from tests.support.wiping import put

# --- everything goes, and nothing else -------------------------------------------------------------------


def test_subfolders_go_and_the_root_stays(root: Path) -> None:
    for name in ("a/b/c/1", "a/2", "3", "a/b/.hidden"):
        put(root / name, b"xy")
    (root / "empty" / "er").mkdir(parents=True)

    assert wipe_tree(root) == ()

    assert root.is_dir()
    assert list(root.iterdir()) == []


def test_links_are_removed_and_never_followed(root: Path, outside: Path) -> None:
    file = put(outside / "kept" / "file", b"not ours")
    (root / "to-file").symlink_to(file)
    (root / "to-folder").symlink_to(file.parent)
    (root / "to-nothing").symlink_to(outside / "nothing")
    (root / "in" / "deep").parent.mkdir()
    (root / "in" / "deep").symlink_to("../../kept")

    assert wipe_tree(root) == ()

    assert list(root.iterdir()) == []
    assert file.read_bytes() == b"not ours"


def test_the_root_itself_may_be_a_link(outside: Path) -> None:
    """start.sh makes ComfyUI's input folder one that leads to the RAM disk."""
    folder = outside / "shm"
    put(folder / "sub" / "file", b"x")
    (outside / "link").symlink_to(folder)

    assert wipe_tree(outside / "link") == ()

    assert (outside / "link").is_symlink()
    assert list(folder.iterdir()) == []


def test_fifos_sockets_and_devices_are_not_opened(root: Path) -> None:
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(root, os.O_RDONLY)
        try:
            server.bind(f"/proc/self/fd/{here}/socket")
        finally:
            os.close(here)
        if os.geteuid() == 0:
            os.mknod(root / "full", stat.S_IFCHR | 0o666, os.makedev(1, 7))  # /dev/full refuses every write
        assert wipe_tree(root) == ()
    assert list(root.iterdir()) == []


def test_names_of_any_bytes(root: Path) -> None:
    here = os.fsencode(root)
    for name in (b"new\nline", b"\xff\xfe", b"-rf", b" ", b"*", "\N{BLACK HEART SUIT}".encode(), b"x" * 255):
        with open(here + b"/" + name, "wb") as file:
            file.write(b"12")
        os.mkdir(here + b"/d" + name[:250])
    assert wipe_tree(root) == ()
    assert list(root.iterdir()) == []


def test_a_tree_deeper_than_descriptors_and_recursion_allow(root: Path) -> None:
    fd = os.open(root, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=fd)
        deeper = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)

    assert wipe_tree(root) == ()

    assert list(root.iterdir()) == []


def test_many_files(root: Path) -> None:
    for number in range(600):
        put(root / str(number % 7) / str(number), b"x")
    assert wipe_tree(root) == ()
    assert list(root.iterdir()) == []


def test_a_missing_root_is_an_empty_one_and_a_file_is_none(outside: Path) -> None:
    assert wipe_tree(outside / "nothing") == ()
    file = put(outside / "file", b"keep")
    assert wipe_tree(file) == (".",)
    assert file.read_bytes() == b"keep"


def test_no_descriptor_stays_open(root: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    put(root / "a" / "b" / "file")
    os.mkfifo(root / "fifo")
    wipe_tree(root)
    assert len(os.listdir("/proc/self/fd")) == before


# --- while others write ----------------------------------------------------------------------------------


def test_files_that_appear_meanwhile(root: Path) -> None:
    """A writer at work during many wipes: none of them raises, and the last one finds the rest."""
    count = 1000

    def write() -> None:
        number = 0
        while number < count:
            try:
                put(root / f"d{number % 5}" / str(number), b"x")
            except OSError:
                continue  # its folder was removed under it
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        wipe_tree(root)
    writer.join()
    assert wipe_tree(root) == ()
    assert list(root.iterdir()) == []


def test_a_writer_that_never_ends_does_not_keep_the_wipe(root: Path) -> None:
    """Whatever is removed comes back at once: the wipe gives up and says so."""
    os.mkfifo(root / "fifo")
    real = os.unlink
    names = iter(range(10**9))

    def unlink(name: str, *, dir_fd: int) -> None:
        real(name, dir_fd=dir_fd)
        os.mkfifo(f"again-{next(names)}", dir_fd=dir_fd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        assert wipe_tree(root) == (".",)


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_is_swapped_for_a_link_leads_nowhere(
    root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Between the moment a name is listed and the moment it is opened, somebody puts a link in its place."""
    kept = put(outside / "kept" / "file", b"not ours")
    put(root / "sub" / "file") if what == "folder" else put(root / "sub")
    real, swapped = os.open, []

    def swap_and_open(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == "sub" and not swapped:
            swapped.append(path)
            os.rename(root / "sub", outside / "moved")
            (root / "sub").symlink_to(kept.parent if what == "folder" else kept)
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", swap_and_open)
    wiped = wipe_tree(root)

    assert swapped
    assert kept.read_bytes() == b"not ours"
    assert list(root.iterdir()) == []
    assert wiped == (() if what == "folder" else ("sub",))


# --- what cannot be wiped --------------------------------------------------------------------------------

UNPRIVILEGED = textwrap.dedent(
    """
    import os, sys
    from pathlib import Path
    from settee.staging.wipe import wipe_tree
    if os.geteuid() == 0:
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
    print(wipe_tree(Path(sys.argv[1])))
    """
)


def wipe_unprivileged(root: Path) -> str:
    """The wipe by a user whom permissions do bind."""
    for folder in (root, *root.parents):
        if folder != Path("/") and folder.stat().st_uid == os.geteuid():
            folder.chmod(folder.stat().st_mode | 0o055)
    source = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, str(root)],
        env={"PYTHONPATH": str(source), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def give_away(*paths: Path) -> None:
    if os.geteuid() == 0:
        for path in paths:
            os.chown(path, 65534, 65534)


def test_read_only_files_and_folders_of_our_own(root: Path) -> None:
    put(root / "file", b"1234").chmod(0o400)
    put(root / "sealed", b"1234").chmod(0o000)
    inner = put(root / "folder" / "file", b"1234")
    put(root / "closed" / "file", b"1234")
    give_away(root, *root.rglob("*"))
    inner.parent.chmod(0o500)
    (root / "closed").chmod(0o000)

    assert wipe_unprivileged(root) == repr(())

    assert list(root.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")
def test_what_is_not_ours_is_reported_and_the_rest_goes_on(root: Path) -> None:
    theirs = put(root / "theirs" / "file", b"1234")
    ours = put(root / "z" / "ours", b"12")
    give_away(root, ours, ours.parent)
    theirs.parent.chmod(0o755)

    assert wipe_unprivileged(root) == repr(("theirs/file", "theirs"))

    assert theirs.read_bytes() == b"1234"
    assert not ours.parent.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")
def test_a_file_that_may_be_removed_but_not_written_is_removed_and_reported(root: Path) -> None:
    theirs = put(root / "theirs", b"1234")
    give_away(root)
    theirs.chmod(0o600)

    assert wipe_unprivileged(root) == repr(("theirs",))

    assert not theirs.exists()
