"""A picture shown by the desktop: what came from a worker does not reach it as it came."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest

from settee.client import run_one
from settee.client.client_errors import ClientError, UsageError
from settee.client.run_one import open_picture
from tests.support.waiting import eventually

DESKTOP = {"DISPLAY": ":0"}


@pytest.fixture
def opener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What xdg-open and open were called with: one argument a line."""
    called = tmp_path / "called"
    for name in ("xdg-open", "open"):
        program(tmp_path / "bin" / name, f'printf "%s\\n" "${{0##*/}}" "$@" > {shlex.quote(str(called))}')
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return called


def program(path: Path, script: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(("platform", "name"), [("linux", "xdg-open"), ("darwin", "open")])
def test_a_file_is_opened_without_a_shell(
    tmp_path: Path, opener: Path, platform: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    path = tmp_path / "-a $(touch evil);'b.png"
    path.write_bytes(b"")
    open_picture(path, DESKTOP)
    assert opener.read_text().splitlines() == [name, str(path)]


def test_a_relative_name_is_no_option(tmp_path: Path, opener: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    open_picture(Path("-x.png"), {"WAYLAND_DISPLAY": "wayland-0"})
    assert opener.read_text().splitlines()[1] == str(tmp_path / "-x.png")


@pytest.mark.parametrize("name", ["a.exe", "a.desktop", "a.html", "a.svg", "a", "a.sh", "a.png.lnk", "a.mp4"])
def test_what_a_desktop_might_run_is_not_opened(tmp_path: Path, opener: Path, name: str) -> None:
    with pytest.raises(UsageError, match="open it yourself"):
        open_picture(tmp_path / name, DESKTOP)
    assert not opener.exists()


def test_without_a_desktop_nothing_is_opened(tmp_path: Path, opener: Path) -> None:
    with pytest.raises(UsageError, match="no desktop"):
        open_picture(tmp_path / "a.png", {"TERM": "xterm"})
    assert not opener.exists()


def test_an_opener_that_refuses(tmp_path: Path, opener: Path) -> None:
    program(tmp_path / "bin" / "xdg-open", "exit 3")
    with pytest.raises(ClientError, match=r"no program for a\.png \(exit code 3\)"):
        open_picture(tmp_path / "a.png", DESKTOP)


def test_no_opener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(ClientError, match="xdg-utils"):
        open_picture(tmp_path / "a.png", DESKTOP)


def test_a_program_that_stays_is_not_waited_for(tmp_path: Path, opener: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_one, "_OPENER_S", 0.05)
    os.mkfifo(tmp_path / "gate")
    program(
        tmp_path / "bin" / "xdg-open",
        f"read line < {shlex.quote(str(tmp_path / 'gate'))}; echo $line > {shlex.quote(str(opener))}",
    )
    open_picture(tmp_path / "a.png", DESKTOP)
    assert not opener.exists()
    (tmp_path / "gate").write_text("on\n")
    assert eventually(lambda: opener.exists() and opener.read_text()) == "on\n"


def test_windows_opens_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "startfile", opened.append, raising=False)
    open_picture(tmp_path / "a.png", {})
    assert opened == [str(tmp_path / "a.png")]
