"""Wiping, proven on the old pages themselves.

A file that was cut to nothing reads as empty whatever became of its pages. So the tests keep hold of the pages: what
``splice`` puts into a pipe are references to the file's pages, not copies, and the pipe shows what is on them when it
is read later. ``open(name, "wb")`` fails these tests: it leaves the old bytes on the old pages.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from settee.staging.wipe import wipe_file, wipe_tree
from tests.support.wiping import PAGES, SECRET, WORD, put


class HeldPages:
    """Pages of a file from ``offset`` on, held in a pipe while the file is wiped."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._read, self._write = os.pipe()
        fd = os.open(path, os.O_RDONLY)
        try:
            self.size = os.splice(fd, self._write, PAGES, offset_src=offset)
        finally:
            os.close(fd)

    def now(self) -> bytes:
        """What is on the pages; closes the pipe."""
        os.close(self._write)
        with os.fdopen(self._read, "rb") as pipe:
            return pipe.read()


# --- the old bytes are gone ----------------------------------------------------------------------------


def test_the_old_pages_hold_zeroes(root: Path) -> None:
    pages = HeldPages(put(root / "secret.png"))

    assert wipe_tree(root) == ()

    assert list(root.iterdir()) == []
    assert pages.now() == bytes(PAGES)


def test_the_pages_that_the_usual_way_leaves_would_be_noticed(root: Path) -> None:
    """The proof itself: truncating first, as open("wb") does, leaves every old byte where it was."""
    file = put(root / "secret.png")
    pages = HeldPages(file)
    with file.open("wb") as new:
        new.write(bytes(len(SECRET)))
        new.flush()
        os.fsync(new.fileno())
    file.unlink()
    assert pages.now() == SECRET[:PAGES]


def test_descriptors_and_hard_links_from_before_show_no_old_byte(root: Path, outside: Path) -> None:
    file = put(root / "deep" / "er" / "secret.png")
    os.link(file, outside / "kept")
    pages = HeldPages(outside / "kept")
    fd = os.open(file, os.O_RDONLY)
    try:
        assert wipe_tree(root) == ()
        assert os.pread(fd, len(SECRET), 0).strip(b"\0") == b""
    finally:
        os.close(fd)
    assert (outside / "kept").read_bytes().strip(b"\0") == b""
    assert pages.now() == bytes(PAGES)


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 1024 * 1024, 2 * 1024 * 1024 + 5])
def test_every_byte_of_any_size_is_overwritten(root: Path, size: int) -> None:
    file = put(root / "file", b"x" * size)
    ends = [HeldPages(file), HeldPages(file, max(0, size - 4096) // 4096 * 4096)]

    assert wipe_tree(root) == ()

    assert [end.now() for end in ends] == [bytes(end.size) for end in ends]
    assert ends[0].size


def test_a_sparse_file_costs_no_memory_and_loses_its_data(root: Path) -> None:
    """Filling the holes of this one would take more than the machine has."""
    file = root / "sparse"
    with file.open("wb") as new:
        new.truncate(1 << 40)
        for position in (0, 1 << 30, 1 << 39):
            new.seek(position)
            new.write(WORD * 512)
    pages = [HeldPages(file, position) for position in (0, 1 << 30, 1 << 39)]

    assert wipe_tree(root) == ()

    assert [held.now().count(WORD) for held in pages] == [0, 0, 0]


def test_bytes_written_through_a_mapping_go_too(root: Path) -> None:
    import mmap

    file = put(root / "mapped", bytes(PAGES))
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), PAGES) as mapping:
        mapping[:8] = WORD
        pages = HeldPages(file)
        wipe_tree(root)
    assert pages.now() == bytes(PAGES)


# --- one file --------------------------------------------------------------------------------------------


def test_one_file_is_named_below_its_folder(root: Path) -> None:
    pages = HeldPages(put(root / "one"))
    put(root / "other", b"stays")
    fd = os.open(root, os.O_RDONLY)
    try:
        wipe_file("one", dir_fd=fd)
        with pytest.raises(FileNotFoundError):
            wipe_file("one", dir_fd=fd)
        with pytest.raises(OSError, match=r"directory|permitted"):
            wipe_file("..", dir_fd=fd)
    finally:
        os.close(fd)
    assert pages.now() == bytes(PAGES)
    assert os.listdir(root) == ["other"]
