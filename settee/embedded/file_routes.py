"""/view and /upload: files in and out."""

from __future__ import annotations

import itertools
import json
import mimetypes
import os
from collections.abc import Callable
from io import BytesIO
from typing import Any

from aiohttp import web
from multidict import MultiDictProxy
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from settee.embedded.folders import Folders
from settee.embedded.state import STATE

routes = web.RouteTableDef()

ACTIVE_TYPES = ("text/html", "text/html-sandboxed", "application/xhtml+xml", "text/javascript", "text/css")
"""Served as plain bytes, so that a browser does not run them."""


@routes.get("/view")
async def view(request: web.Request) -> web.StreamResponse:
    """Answer with a file, or for ``preview`` or ``channel`` with a picture made from it.

    400 for a bad name or type, 403 for a subfolder outside, 404 for a file that does not exist.
    """
    state, query = request.app[STATE], request.query
    if "filename" not in query:
        return web.Response(status=404)
    path = _view_path(state.options.folders, query["filename"], query.get("type", "output"), query.get("subfolder"))
    if isinstance(path, int):
        return web.Response(status=path)
    if not os.path.isfile(path):
        return web.Response(status=404)
    name = {"Content-Disposition": f'filename="{os.path.basename(path)}"'}
    channel = query.get("channel", "")
    if "preview" in query or channel in ("rgb", "a"):
        with Image.open(path) as image:
            body, kind = _preview(image, query["preview"], channel) if "preview" in query else _channel(image, channel)
        return web.Response(body=body, content_type=kind, headers=name)
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    if kind in ACTIVE_TYPES:
        kind = "application/octet-stream"
    return web.FileResponse(path, headers={**name, "Content-Type": kind})


def _view_path(folders: Folders, filename: str, kind: str, subfolder: str | None) -> str | int:
    """Return the path that a query means, or the status that refuses it."""
    filename, directory = folders.split_annotation(filename)
    if not filename or filename.startswith("/") or ".." in filename:
        return 400
    directory = directory or folders.of_type(kind)
    if directory is None:
        return 400
    if subfolder is not None:
        inside = os.path.join(directory, subfolder)
        if not _contains(directory, inside):
            return 403
        directory = inside
    return os.path.join(directory, os.path.basename(filename))


def _contains(directory: str, path: str) -> bool:
    return os.path.commonpath((directory, os.path.abspath(path))) == directory


def _preview(image: Image.Image, wish: str, channel: str) -> tuple[bytes, str]:
    """Return a lossy copy; wish is ``webp``, ``jpeg`` or either with a quality: ``webp;50``."""
    kind, *rest = wish.split(";")
    if kind not in ("webp", "jpeg") or "a" in channel:
        kind = "webp"
    quality = int(rest[-1]) if rest and rest[-1].isdigit() else 90
    flat = image.convert("RGB") if kind == "jpeg" or channel == "rgb" else image
    flat.save(buffer := BytesIO(), kind, quality=quality)
    return buffer.getvalue(), f"image/{kind}"


def _channel(image: Image.Image, channel: str) -> tuple[bytes, str]:
    """Return a PNG without alpha, or black with the file's alpha, opaque when it has none."""
    part = image.convert("RGB")
    if channel == "a":
        alpha = image.getchannel("A") if image.mode == "RGBA" else Image.new("L", image.size, 255)
        part = Image.new("RGBA", image.size)
        part.putalpha(alpha)
    part.save(buffer := BytesIO(), "PNG")
    return buffer.getvalue(), "image/png"


@routes.post("/upload/image")
async def upload_image(request: web.Request) -> web.Response:
    """Keep an image file; the answer has the name that it got."""
    return await _store(request, _write_bytes)


@routes.post("/upload/mask")
async def upload_mask(request: web.Request) -> web.Response:
    """Keep a copy of the image ``original_ref`` names, with the alpha of the uploaded one."""
    return await _store(request, _write_masked)


Writer = Callable[[Folders, MultiDictProxy[Any], web.FileField, str], None]
"""Writes an upload, with the rest of its form, to a path."""


def _write_bytes(folders: Folders, form: MultiDictProxy[Any], upload: web.FileField, path: str) -> None:
    with open(path, "wb") as file:
        file.write(upload.file.read())


def _write_masked(folders: Folders, form: MultiDictProxy[Any], upload: web.FileField, path: str) -> None:
    named = json.loads(str(form["original_ref"]))
    subfolder = named.get("subfolder") or None
    original = _view_path(folders, named["filename"], named.get("type", "output"), subfolder)
    if isinstance(original, int) or not os.path.isfile(original):
        return  # ComfyUI drops a refusal here and still answers 200, having written nothing
    with Image.open(original) as image, Image.open(upload.file) as mask:
        metadata = PngInfo()
        for key, text in getattr(image, "text", {}).items():
            metadata.add_text(key, text)
        masked = image.convert("RGBA")
        masked.putalpha(mask.convert("RGBA").getchannel("A"))
        masked.save(path, compress_level=4, pnginfo=metadata)


async def _store(request: web.Request, write: Writer) -> web.Response:
    """Write the form's ``image`` under its name, else ``name (1)`` and so on, unless the same bytes are there already.

    Raises for an unknown type, which becomes 500.
    """
    form = await request.post()
    folders = request.app[STATE].options.folders
    upload: Any = form.get("image")
    kind = str(form.get("type", "input"))
    directory = {"input": folders.input, "temp": folders.temp, "output": folders.output}[kind]
    if not upload or not upload.filename:
        return web.Response(status=400)
    name, subfolder = upload.filename, str(form.get("subfolder", ""))
    folder = os.path.join(directory, os.path.normpath(subfolder))
    if not _contains(directory, os.path.join(folder, name)):
        return web.Response(status=400)
    os.makedirs(folder, exist_ok=True)
    stem, suffix = os.path.splitext(name)
    numbers = itertools.count(1)
    while os.path.exists(path := os.path.join(folder, name)) and form.get("overwrite") not in ("true", "1"):
        if _has_same_bytes(path, upload):
            break
        name = f"{stem} ({next(numbers)}){suffix}"
    else:
        write(folders, form, upload, path)
    return web.json_response({"name": name, "subfolder": subfolder, "type": kind})


def _has_same_bytes(path: str, upload: web.FileField) -> bool:
    with open(path, "rb") as file:
        same = file.read() == upload.file.read()
    upload.file.seek(0)
    return same
