"""Pictures in a terminal, and files for the desktop: nothing that came from a worker reaches either as it came."""

from __future__ import annotations

import base64
import io
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from settee.client import preview
from settee.client.client_errors import ClientError, UsageError
from settee.client.preview import open_file, protocol_of, show
from tests.support.waiting import eventually

KITTY = {"TERM": "xterm-kitty"}
ITERM2 = {"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}
DESKTOP = {"DISPLAY": ":0"}


@pytest.mark.parametrize(
    ("env", "protocol"),
    [
        (KITTY, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"KONSOLE_VERSION": "240802"}, "kitty"),
        (ITERM2, "iterm2"),
        ({"LC_TERMINAL": "iTerm2"}, "iterm2"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "foot-extra"}, None),
        ({**KITTY, "TMUX": "/tmp/tmux-0/default,1,0"}, None),
        ({**ITERM2, "TERM": "screen-256color"}, None),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "dumb"}, None),
        ({}, None),
    ],
)
def test_terminals_are_told_by_their_environment(env: dict[str, str], protocol: str | None) -> None:
    assert protocol_of(env) == protocol


def shown(path: Path, env: dict[str, str], **keys: Any) -> str:
    stream = io.StringIO()
    show(path, stream, env, **keys)
    return stream.getvalue()


def kitty_picture(text: str) -> Image.Image:
    """The picture that kitty would draw."""
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text)
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in pieces) + "\n" == text
    assert [keys for keys, _ in pieces[1:]] == ["m=1"] * (len(pieces) - 2) + ["m=0"] * (len(pieces) > 1)
    assert pieces[0][0] == f"a=T,f=100,q=2,m={int(len(pieces) > 1)}"
    assert all(len(data) <= 4096 and len(data) % 4 == 0 for _, data in pieces)
    return Image.open(io.BytesIO(base64.b64decode("".join(data for _, data in pieces))))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    words = PngImagePlugin.PngInfo()
    words.add_text("prompt", "a secret prompt")
    Image.effect_mandelbrot((1200, 900), (-2, -1.5, 1, 1.5), 50).save(path, pnginfo=words)
    return path


def test_kitty_gets_a_png_in_pieces(picture: Path) -> None:
    drawn = kitty_picture(shown(picture, KITTY, size=(100, 40)))
    assert drawn.size == (800, 600)
    assert drawn.info == {}


def test_a_picture_fits_into_a_small_terminal(picture: Path) -> None:
    drawn = kitty_picture(shown(picture, KITTY, size=(40, 12)))
    assert drawn.size == (213, 160)


def test_iterm2_gets_a_png_with_its_size(picture: Path) -> None:
    match = re.fullmatch(
        r"\x1b]1337;File=inline=1;size=(\d+);preserveAspectRatio=1:([^\x07]*)\x07\n", shown(picture, ITERM2)
    )
    assert match is not None
    data = base64.b64decode(match[2])
    assert int(match[1]) == len(data)
    assert Image.open(io.BytesIO(data)).format == "PNG"


def test_another_terminal_gets_nothing(picture: Path) -> None:
    stream = io.StringIO()
    with pytest.raises(UsageError, match="--open"):
        show(picture, stream, {"TERM": "xterm"})
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("1", "png"),
        ("L", "png"),
        ("P", "gif"),
        ("LA", "png"),
        ("I;16", "png"),
        ("RGBA", "webp"),
        ("CMYK", "jpg"),
        ("F", "tiff"),
    ],
)
def test_pictures_of_every_kind(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new(mode, (300, 400)).save(path)
    drawn = kitty_picture(shown(path, KITTY, size=(80, 52)))
    assert drawn.size == (300, 400)
    assert drawn.mode in ("RGB", "RGBA")


def test_a_picture_of_16_bits_keeps_its_greys(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("I;16", (2000, 1500), 32768).save(path)
    assert kitty_picture(shown(path, KITTY)).getpixel((5, 5)) == (128, 128, 128)


def test_a_picture_on_its_side_is_turned(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((400, 200), 90).convert("RGB").save(path, exif=exif)
    assert kitty_picture(shown(path, KITTY, size=(100, 60))).size == (200, 400)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no picture",
        b"\x89PNG\r\n\x1a\n",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ],
)
def test_what_is_no_picture_is_not_shown(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ClientError, match=r"a\.png is not a picture"):
        shown(path, KITTY)


def test_half_a_picture_is_not_shown(picture: Path) -> None:
    picture.write_bytes(picture.read_bytes()[:5000])
    with pytest.raises(ClientError, match=r"a\.png is not a picture"):
        shown(picture, KITTY)


def test_a_picture_of_100_million_pixels_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (10_000, 10_000)).save(path)
    with pytest.raises(ClientError, match=r"a\.png is not a picture that can be shown"):
        shown(path, KITTY)


# --- the desktop -------------------------------------------------------------------------------------------------


@pytest.fixture
def opener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What xdg-open and open were called with: one argument a line."""
    called = tmp_path / "called"
    for name in ("xdg-open", "open"):
        program(tmp_path / "bin" / name, f'printf "%s\\n" "${{0##*/}}" "$@" > {shlex.quote(str(called))}')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return called


def program(path: Path, script: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(("platform", "name"), [("linux", "xdg-open"), ("darwin", "open")])
def test_a_file_is_opened_without_a_shell(tmp_path: Path, opener: Path, platform: str, name: str) -> None:
    path = tmp_path / "-a $(touch evil);'b.png"
    path.write_bytes(b"")
    open_file(path, DESKTOP, platform=platform)
    assert opener.read_text().splitlines() == [name, str(path)]


def test_a_relative_name_is_no_option(tmp_path: Path, opener: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    open_file(Path("-x.png"), {"WAYLAND_DISPLAY": "wayland-0"}, platform="linux")
    assert opener.read_text().splitlines()[1] == str(tmp_path / "-x.png")


@pytest.mark.parametrize("name", ["a.exe", "a.desktop", "a.html", "a.svg", "a", "a.sh", "a.png.lnk", "a.mp4"])
def test_what_a_desktop_might_run_is_not_opened(tmp_path: Path, opener: Path, name: str) -> None:
    with pytest.raises(UsageError, match="open it yourself"):
        open_file(tmp_path / name, DESKTOP, platform="linux")
    assert not opener.exists()


def test_without_a_desktop_nothing_is_opened(tmp_path: Path, opener: Path) -> None:
    with pytest.raises(UsageError, match="no desktop"):
        open_file(tmp_path / "a.png", {"TERM": "xterm"}, platform="linux")
    assert not opener.exists()


def test_an_opener_that_refuses(tmp_path: Path, opener: Path) -> None:
    program(tmp_path / "bin" / "xdg-open", "exit 3")
    with pytest.raises(ClientError, match=r"no program for a\.png \(exit code 3\)"):
        open_file(tmp_path / "a.png", DESKTOP, platform="linux")


def test_no_opener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="xdg-utils"):
        open_file(tmp_path / "a.png", DESKTOP, platform="linux")


def test_a_program_that_stays_is_not_waited_for(tmp_path: Path, opener: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "_OPENER_S", 0.05)
    os.mkfifo(tmp_path / "gate")
    program(
        tmp_path / "bin" / "xdg-open",
        f"read line < {shlex.quote(str(tmp_path / 'gate'))}; echo $line > {shlex.quote(str(opener))}",
    )
    open_file(tmp_path / "a.png", DESKTOP, platform="linux")
    assert not opener.exists()
    (tmp_path / "gate").write_text("on\n")
    assert eventually(lambda: opener.exists() and opener.read_text()) == "on\n"


def test_windows_opens_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(os, "startfile", opened.append, raising=False)
    open_file(tmp_path / "a.png", {}, platform="win32")
    assert opened == [str(tmp_path / "a.png")]
