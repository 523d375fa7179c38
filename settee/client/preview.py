"""Pictures where they were made to be seen: in a terminal that can show them, or in the desktop's own program.

Terminals are known by their environment, not asked: a late answer would end up in the user's shell. Pictures are
decoded and encoded again, small, so that what reaches the terminal is ours, whatever the worker sent.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TextIO

from settee.base.job import Kind
from settee.client.client_errors import ClientError, UsageError
from settee.comfyui.media import kind_of

#: What no terminal's cell is smaller than, pixels: a picture of so many per cell fits everywhere.
_CELL = (8, 16)
_MAX_PIXELS = (1024, 768)
#: Pillow reads more, some of it (EPS) by starting other programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
#: kitty takes base64 in pieces of at most so many characters.
_KITTY_PIECE = 4096
#: An opener that has not failed by then has started its program.
_OPENER_S = 2.0


def protocol_of(env: Mapping[str, str]) -> Literal["kitty", "iterm2"] | None:
    """Return the terminal's protocol for pictures; None where it has none, or none is known."""
    term, program = env.get("TERM", ""), env.get("TERM_PROGRAM", "")
    if env.get("TMUX") or env.get("STY") or term.startswith(("tmux", "screen")):
        return None  # they keep the screen themselves, and know nothing of pictures
    if env.get("KITTY_WINDOW_ID") or env.get("KONSOLE_VERSION") or term in ("xterm-kitty", "xterm-ghostty"):
        return "kitty"
    if program == "ghostty":
        return "kitty"
    is_iterm2 = program in ("iTerm.app", "WezTerm", "mintty") or env.get("LC_TERMINAL") == "iTerm2"
    return "iterm2" if is_iterm2 else None


def show(path: Path, stream: TextIO, env: Mapping[str, str], *, size: tuple[int, int] = (80, 24)) -> None:
    """Draw the picture (of several frames, the first) where the cursor is, which is below it then.

    ``size``: the terminal's columns and lines. Raises UsageError where the terminal is the reason, and ClientError for
    a file that is not a picture.
    """
    protocol = protocol_of(env)
    if protocol is None:
        raise UsageError(
            "--preview: this terminal is not known to show pictures (kitty, Ghostty, Konsole, iTerm2, WezTerm and "
            "mintty do, outside of tmux and screen); --open shows them in a window"
        )
    most = (min(_MAX_PIXELS[0], size[0] * _CELL[0]), min(_MAX_PIXELS[1], max(1, size[1] - 2) * _CELL[1]))
    png = _png(path, most)
    data = base64.b64encode(png).decode()
    encoded = _kitty(data) if protocol == "kitty" else _iterm2(data, len(png))
    with contextlib.suppress(BrokenPipeError):
        stream.write(encoded + "\n")
        stream.flush()


def _png(path: Path, most: tuple[int, int]) -> bytes:
    """Return the picture, upright and no larger than ``most`` pixels, as a PNG of nothing but pixels.

    Raises ClientError.
    """
    from PIL import Image, ImageOps

    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # slightly odd files
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # 89 million pixels: no preview's size
            with Image.open(path, formats=_FORMATS) as picture:
                picture.draft("RGB", most)
                upright = ImageOps.exif_transpose(picture)
        if upright.mode.startswith("I;16"):
            upright = upright.point(lambda value: value / 256).convert("L")
        upright = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
        upright.thumbnail(most)
        upright.info = {}
        upright.save(buffer, "PNG")
    except Exception as error:  # Pillow's decoders raise anything on invalid data
        raise ClientError(f"--preview: {path.name} is not a picture that can be shown") from error
    return buffer.getvalue()


def _kitty(data: str) -> str:
    """kitty's graphics protocol: PNG (f=100), shown at once (a=T), no answers (q=2), in pieces (m=1 but for the last).

    https://sw.kovidgoyal.net/kitty/graphics-protocol/
    """
    codes = []
    for start in range(0, len(data), _KITTY_PIECE):
        keys, more = "" if start else "a=T,f=100,q=2,", int(start + _KITTY_PIECE < len(data))
        codes.append(f"\x1b_G{keys}m={more};{data[start : start + _KITTY_PIECE]}\x1b\\")
    return "".join(codes)


def _iterm2(data: str, size: int) -> str:
    """iTerm2's inline images. https://iterm2.com/documentation-images.html"""
    return f"\x1b]1337;File=inline=1;size={size};preserveAspectRatio=1:{data}\x07"


def open_file(path: Path, env: Mapping[str, str], *, platform: str = sys.platform) -> None:
    """Show the picture with the program that the desktop has for it, without waiting for that program's end.

    Raises UsageError where there is no desktop, or for a kind of file that a desktop might run; ClientError when the
    desktop refuses.
    """
    if kind_of(path.name)[0] is not Kind.IMAGE or path.suffix.lower() == ".svg":  # a browser runs scripts in SVG
        raise UsageError(f"--open: {path.name} is not a picture: open it yourself, if you trust it")
    target = str(path.resolve())  # absolute, so that no name looks like an option
    if platform == "win32":
        try:
            vars(os)["startfile"](target)
        except OSError as error:
            raise ClientError(f"--open: Windows has no program for {path.name}") from error
        return
    if platform != "darwin" and not (env.get("DISPLAY") or env.get("WAYLAND_DISPLAY")):
        # xdg-open would start a browser in this very terminal.
        raise UsageError(f"--open: this machine has no desktop to show {path.name} on")
    opener, null = "open" if platform == "darwin" else "xdg-open", subprocess.DEVNULL
    try:
        process = subprocess.Popen(  # noqa: S603  # no shell, and the path is absolute
            [opener, target], stdin=null, stdout=null, stderr=null, start_new_session=True
        )
        code = process.wait(_OPENER_S)
    except FileNotFoundError as error:
        raise UsageError(f"--open needs {opener}, which is not installed (Debian, Ubuntu: xdg-utils)") from error
    except OSError as error:
        raise ClientError(f"--open: {opener} does not start: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        # Some openers are the program itself; their exit code has to be collected.
        threading.Thread(target=process.wait, name="opener", daemon=True).start()
        return
    if code != 0:
        raise ClientError(f"--open: {opener} has no program for {path.name} (exit code {code})")
