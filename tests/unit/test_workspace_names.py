"""Names that are safe, and outputs that are where history says."""

from __future__ import annotations

import ntpath
import os
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from settee.base.errors import OutputMissing, UnsafePath
from settee.staging.workspace import Folders, Workspace, safe_relative

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


@settings(max_examples=500, derandomize=True)
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


@pytest.mark.parametrize("name", list(BAD)[:20], ids=ascii)
def test_write_refuses_bad_names(workspace: Workspace, tmp_path: Path, name: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UnsafePath):
        workspace.write(name, [b"x"], 10)
    assert sorted(tmp_path.rglob("*")) == before


# --- outputs ---------------------------------------------------------------------------------------------


def test_outputs_are_found(workspace: Workspace) -> None:
    file = workspace.folders.output / "job" / "a.png"
    file.parent.mkdir()
    file.write_bytes(b"x")
    assert workspace.path_of("output", "job", "a.png") == (file.resolve(), "job/a.png")
    assert workspace.path_of("output", "", "job/a.png") == (file.resolve(), "job/a.png")
    (workspace.folders.output / "again.png").symlink_to("job/a.png")
    assert workspace.path_of("output", "", "again.png") == (file.resolve(), "job/a.png")


def test_the_output_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "shm").mkdir()
    (tmp_path / "shm" / "a.png").write_bytes(b"x")
    (tmp_path / "output").symlink_to(tmp_path / "shm")
    workspace = Workspace(Folders(tmp_path / "input", tmp_path / "output", None))
    assert workspace.path_of("output", "", "a.png")[0].read_bytes() == b"x"


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
    workspace = Workspace(Folders(tmp_path / "i", tmp_path / "o", None))
    with pytest.raises(UnsafePath, match="does not share"):
        workspace.path_of("temp", "", "a.png")
