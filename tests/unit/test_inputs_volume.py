"""Input files on the network volume: copied from the folder that the operator allows, and from nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from settee.base.errors import JobCanceled, PayloadTooLarge, StagingError, UnsafePath
from settee.base.job import Cancel
from tests.support.staging import PNG, Stage


@pytest.fixture
def volume(put: Stage, tmp_path: Path) -> Path:
    folder = tmp_path / "volume"
    (folder / "faces").mkdir(parents=True)
    (folder / "faces" / "a b.png").write_bytes(PNG)
    (folder / "faces" / "half.png").write_bytes(PNG[:60])
    (folder / "clip.bin").write_bytes(b"x" * 5000)
    (folder / "faces" / "here").symlink_to("../clip.bin")
    (folder / "link").symlink_to(folder / "faces")
    (tmp_path / "secret.png").write_bytes(PNG)
    put.settings["input_volume_dir"] = folder
    return folder


def kept(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_file_is_copied_and_wiping_leaves_the_volumes_alone(put: Stage, volume: Path) -> None:
    before = kept(volume)
    staged = put({"c.bin": "volume://clip.bin", "d.bin": " VOLUME://faces/here "}, {"a.png": "volume://faces/a b.png"})
    assert [staged[name].path.read_bytes() for name in ("c.bin", "d.bin", "a.png")] == [b"x" * 5000, b"x" * 5000, PNG]
    assert put({"e.png": "volume://link/a b.png"})["e.png"].path.read_bytes() == PNG
    put.workspace.wipe()
    assert put({"f.png": "volume:/faces/a b.png"})["f.png"].path.read_bytes() == PNG
    assert kept(volume) == before


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("../secret.png", "'..'"),
        ("faces/../../secret.png", "'..'"),
        ("/etc/hostname", "absolute"),
        ("", "is empty"),
        ("faces\\a b.png", "backslash"),
        ("a\0b", "control character"),
        ("out.png", "leaves the folder"),
        ("up/secret.png", "leaves the folder"),
        ("faces", "is not a file"),
        ("all", "is not a file"),
        ("pipe", "is not a file"),
        ("null", "leaves the folder"),
    ],
)
def test_what_is_not_a_file_of_the_folder_is_refused(put: Stage, volume: Path, path: str, words: str) -> None:
    (volume / "out.png").symlink_to("../secret.png")
    (volume / "up").symlink_to("..")
    (volume / "all").symlink_to(".")
    (volume / "null").symlink_to("/dev/null")
    os.mkfifo(volume / "pipe")
    error = put.refused({"bad.png": f"volume://{path}"}, kind=UnsafePath)
    assert words in error.message
    assert str(volume) not in str(error.details)


def test_a_folder_beside_it_with_the_same_beginning_is_outside(put: Stage, volume: Path) -> None:
    other = volume.with_name("volume2")
    other.mkdir()
    (other / "a.png").write_bytes(PNG)
    (volume / "other").symlink_to(other)
    put.refused({"bad.png": "volume://other/a.png"}, kind=UnsafePath)


@pytest.mark.parametrize("asked", ["faces/ab.png", "face/a b.png", "facse/deep/a_b.png", "faces/a b.png/c"])
def test_a_file_that_is_not_there_is_told_with_near_matches(put: Stage, volume: Path, asked: str) -> None:
    (volume / "a_b.png").write_bytes(PNG)
    error = put.refused({"bad.png": f"volume://{asked}"})
    [problem] = error.details["problems"]
    assert problem["near"][0] in ("volume://faces/a b.png", "volume://a_b.png")
    assert "did you mean 'volume://" in error.message


def test_a_loop_of_links_is_not_there(put: Stage, volume: Path) -> None:
    (volume / "one").symlink_to("two")
    (volume / "two").symlink_to("one")
    assert "has no file" in put.refused({"bad.png": "volume://one"}).message


def test_a_volume_that_is_not_mounted_is_the_workers_fault(put: Stage, tmp_path: Path) -> None:
    put.settings["input_volume_dir"] = tmp_path / "nowhere"
    error = put.refused({"bad.png": "volume://a.png"}, kind=StagingError)
    assert str(tmp_path) not in error.message
    assert "the folder of INPUT_VOLUME_DIR does not exist" in error.message


def test_pictures_must_be_whole_and_limits_hold(put: Stage, volume: Path) -> None:
    assert "half.png" in put.refused(images={"half.png": "volume://faces/half.png"}).message
    put.settings["max_file_mb"] = 0.004
    assert "MAX_FILE_MB" in put.refused({"c.bin": "volume://clip.bin"}, kind=PayloadTooLarge).message


@pytest.mark.parametrize("change", ["grows", "is cut", "is written over"])
def test_a_file_that_changes_while_it_is_read_is_not_taken_in_part(put: Stage, volume: Path, change: str) -> None:
    path = volume / "upload.bin"
    path.write_bytes(b"a" * 3_000_000)

    class Meanwhile(Cancel):
        """Is asked before each piece."""

        def is_set(self) -> bool:
            if put.workspace.made(kind="input")[0]:
                with path.open("r+b") as file:
                    file.truncate(1_000_000 if change == "is cut" else 3_000_000)
                    file.seek(0, os.SEEK_SET if change == "is written over" else os.SEEK_END)
                    file.write(b"" if change == "is cut" else b"b")
            return super().is_set()

    put.cancel = Meanwhile()
    error = put.refused({"c.bin": "volume://upload.bin"}, kind=StagingError)
    assert "changed while it was read" in error.message
    assert put.workspace.made(kind="input") == ([], 0)


def test_a_file_that_is_replaced_while_it_is_read_comes_whole(put: Stage, volume: Path) -> None:
    path = volume / "swapped.bin"
    path.write_bytes(b"a" * 3_000_000)

    class Meanwhile(Cancel):
        def is_set(self) -> bool:
            if put.workspace.made(kind="input")[0] and path.exists():
                path.unlink()
                path.symlink_to("/etc/hostname")
            return super().is_set()

    put.cancel = Meanwhile()
    assert put.bytes_of("volume://swapped.bin") == b"a" * 3_000_000


def test_copying_ends_with_the_job(put: Stage, volume: Path) -> None:
    put.cancel.set()
    with pytest.raises(JobCanceled):
        put({"c.bin": "volume://clip.bin"})
