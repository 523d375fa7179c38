"""Pictures where they were made to be seen: in a terminal that can show them, or in the desktop's own program.

Terminals are known by their environment, not asked: a late answer would end up in the user's shell. Pictures are
decoded and encoded again, small, so that what reaches the terminal is ours, whatever the worker sent. (textual-image
asks the terminal when it is imported, writes to standard output alone, and does not know iTerm2's pictures; chafa's
own detection asks too.)
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import io
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from settee.client.client_errors import ClientError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

Protocol = Literal["kitty", "iterm2", "sixel"]

#: What no terminal's cell is smaller than, pixels: a picture of so many per cell fits everywhere.
_CELL = (8, 16)
_MAX_PIXELS = (1024, 768)
#: Pillow reads more, some of it (EPS) by starting other programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
#: kitty takes base64 in pieces of at most so many characters.
_KITTY_PIECE = 4096

#: What may be given to the desktop's program for it: files that are looked at or listened to, and that run nothing.
_OPENED = re.compile(
    r"\.(png|apng|jpe?g|jfif|webp|gif|avif|bmp|tiff?|heic|jxl"
    r"|mp4|m4v|webm|mov|mkv|avi|flac|mp3|wav|opus|ogg|m4a|aac|glb|gltf|obj|ply|stl|txt)",
    re.IGNORECASE,
)
#: An opener that has not failed by then has started its program.
_OPENER_S = 2.0


def protocol_of(env: Mapping[str, str]) -> Protocol | None:
    """Return the terminal's protocol for pictures; None where it has none, or none is known."""
    term, program = env.get("TERM", ""), env.get("TERM_PROGRAM", "")
    if env.get("TMUX") or env.get("STY") or term.startswith(("tmux", "screen")):
        # They keep the screen themselves, and know nothing of pictures.
        return None
    if env.get("KITTY_WINDOW_ID") or env.get("KONSOLE_VERSION") or term in ("xterm-kitty", "xterm-ghostty"):
        return "kitty"
    if program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm", "mintty") or env.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    if term.startswith(("foot", "mlterm")) or env.get("TERMINAL_NAME") == "contour":
        return "sixel"
    return None


def show(path: Path, stream: TextIO, env: Mapping[str, str], *, size: tuple[int, int] = (80, 24)) -> None:
    """Draw the picture (of several frames, the first) where the cursor is, which is below it then.

    ``size``: the terminal's columns and lines. Raises UsageError where the terminal, or a package that is missing,
    is the reason, and ClientError for a file that is not a picture.
    """
    protocol = protocol_of(env)
    if protocol is None:
        raise UsageError(
            "--preview: this terminal is not known to show pictures (kitty, Ghostty, Konsole, iTerm2, WezTerm, mintty, "
            "foot, mlterm, contour do, outside of tmux and screen); --open shows them in a window"
        )
    columns, lines = size
    most = (min(_MAX_PIXELS[0], columns * _CELL[0]), min(_MAX_PIXELS[1], max(1, lines - 2) * _CELL[1]))
    picture = _decoded(path, most)
    encoded = {"kitty": _kitty, "iterm2": _iterm2, "sixel": _sixel}[protocol](picture)
    with contextlib.suppress(BrokenPipeError):
        stream.write(encoded + "\n")
        stream.flush()


def open_file(path: Path, env: Mapping[str, str], *, platform: str = sys.platform) -> None:
    """Show the file with the program that the desktop has for it, without waiting for that program's end.

    Raises UsageError where there is no desktop, or for a kind of file that a desktop might run; ClientError when the
    desktop refuses.
    """
    if not _OPENED.fullmatch(path.suffix):
        raise UsageError(
            f"--open: {path.name} is not a picture, film, sound or model: open it yourself, if you trust it"
        )
    # Absolute, so that no name looks like an option.
    target = str(path.resolve())
    if platform == "win32":
        start: Any = getattr(importlib.import_module("os"), "startfile", None)
        try:
            start(target)
        except OSError as error:
            raise ClientError(f"--open: Windows has no program for {path.name}") from error
        return
    if platform != "darwin" and not (env.get("DISPLAY") or env.get("WAYLAND_DISPLAY")):
        # xdg-open would start a browser in this very terminal.
        raise UsageError(f"--open: this machine has no desktop to show {path.name} on")
    _run("open" if platform == "darwin" else "xdg-open", target)


def _run(opener: str, target: str) -> None:
    name = Path(target).name
    try:
        process = subprocess.Popen(  # noqa: S603  # no shell, and the path is absolute
            [opener, target],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise UsageError(f"--open needs {opener}, which is not installed (Debian, Ubuntu: xdg-utils)") from error
    except OSError as error:
        raise ClientError(f"--open: {opener} does not start: {error.strerror}") from error
    try:
        code = process.wait(_OPENER_S)
    except subprocess.TimeoutExpired:
        # Some openers are the program itself; their exit code has to be collected.
        threading.Thread(target=process.wait, name="opener", daemon=True).start()
        return
    if code != 0:
        raise ClientError(f"--open: {opener} has no program for {name} (exit code {code})")


def _decoded(path: Path, most: tuple[int, int]) -> Image:
    """Return the picture, upright, in RGB or RGBA, and no larger than ``most`` pixels. Raises ClientError."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # slightly odd files
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # 89 million pixels: no preview's size
            with Image.open(path) as picture:
                if picture.format not in _FORMATS:
                    raise ValueError(picture.format)
                return _small(picture, most)
    except Exception as error:  # Pillow's decoders raise anything on invalid data
        raise ClientError(f"--preview: {path.name} is not a picture that can be shown") from error


def _small(picture: Image, most: tuple[int, int]) -> Image:
    from PIL import ImageOps

    picture.draft("RGB", most)
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I;16"):
        upright = upright.point(lambda value: value / 256).convert("L")
    has_alpha = "A" in upright.getbands() or "transparency" in upright.info
    upright = upright.convert("RGBA" if has_alpha else "RGB")
    upright.thumbnail(most)
    return upright


def _png(picture: Image) -> str:
    """Base64 of it, with nothing in it but pixels."""
    buffer = io.BytesIO()
    picture.info = {}
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _kitty(picture: Image) -> str:
    """kitty's graphics protocol: PNG (f=100), shown at once (a=T), no answers (q=2), in pieces (m=1 but for the last).

    https://sw.kovidgoyal.net/kitty/graphics-protocol/
    """
    data = _png(picture)
    pieces = [data[start : start + _KITTY_PIECE] for start in range(0, len(data), _KITTY_PIECE)]
    codes = []
    for index, piece in enumerate(pieces):
        keys = "a=T,f=100,q=2," if index == 0 else ""
        codes.append(f"\x1b_G{keys}m={int(index < len(pieces) - 1)};{piece}\x1b\\")
    return "".join(codes)


def _iterm2(picture: Image) -> str:
    """iTerm2's inline images. https://iterm2.com/documentation-images.html"""
    data = _png(picture)
    size = len(data) // 4 * 3 - data[-2:].count("=")
    return f"\x1b]1337;File=inline=1;size={size};preserveAspectRatio=1:{data}\x07"


def _sixel(picture: Image) -> str:
    """By chafa, which is small, has no dependencies, and comes with its library for every platform.

    Raises UsageError without it.
    """
    try:
        chafa: Any = importlib.import_module("chafa")
    except (ImportError, OSError) as error:  # OSError: its library does not load here
        raise UsageError("--preview needs one more package for this terminal: pip install chafa.py") from error
    flat = picture.convert("RGBA")
    config = chafa.CanvasConfig()
    config.pixel_mode = chafa.PixelMode.CHAFA_PIXEL_MODE_SIXELS
    # One cell as large as the picture: it is drawn pixel by pixel, and not fitted to whole cells.
    config.cell_width, config.cell_height = flat.size
    config.width = config.height = 1
    config.dither_mode = chafa.DitherMode.CHAFA_DITHER_MODE_DIFFUSION
    canvas = chafa.Canvas(config)
    pixel = chafa.PixelType.CHAFA_PIXEL_RGBA8_UNASSOCIATED
    canvas.draw_all_pixels(pixel, flat.tobytes(), flat.width, flat.height, 4 * flat.width)
    text: bytes = canvas.print(fallback=True)
    return text.decode("ascii")
