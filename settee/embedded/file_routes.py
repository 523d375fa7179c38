"""/view and /upload: files in and out."""

from __future__ import annotations

import hashlib
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

Form = MultiDictProxy[Any]
ACTIVE_TYPES = ("text/html", "text/html-sandboxed", "application/xhtml+xml", "text/javascript", "text/css")
"""Served as plain bytes, so that a browser does not run them."""


@routes.get("/view")
async def view(request: web.Request) -> web.StreamResponse:
    """A file, or with ``preview`` or ``channel`` a picture made from it.

    400 for a bad name or type, 403 for a subfolder outside, 404 when there is no such file.
    """
    state = request.app[STATE]
    query = request.query
    if "filename" not in query or state.faults.get("view_404"):
        return web.Response(status=404)
    path = _view_path(state.options.folders, query["filename"], query.get("type", "output"), query.get("subfolder"))
    if isinstance(path, int):
        return web.Response(status=path)
    if not os.path.isfile(path):
        return web.Response(status=404)
    name = {"Content-Disposition": f'filename="{os.path.basename(path)}"'}
    if "preview" in query:
        body, kind = _preview(path, query["preview"], query.get("channel", ""))
        return web.Response(body=body, content_type=kind, headers=name)
    channel = query.get("channel", "rgba")
    if channel in ("rgb", "a"):
        body = _without_alpha(path) if channel == "rgb" else _only_alpha(path)
        return web.Response(body=body, content_type="image/png", headers=name)
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    if kind in ACTIVE_TYPES:
        kind = "application/octet-stream"
    return web.FileResponse(path, headers={**name, "Content-Type": kind})


def _view_path(folders: Folders, filename: str, kind: str, subfolder: str | None) -> str | int:
    """The path a query means, or the status that refuses it."""
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


def _png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _preview(path: str, wish: str, channel: str) -> tuple[bytes, str]:
    """A lossy copy; wish is ``webp``, ``jpeg`` or either with a quality: ``webp;50``."""
    kind, *rest = wish.split(";")
    if kind not in ("webp", "jpeg") or "a" in channel:
        kind = "webp"
    quality = int(rest[-1]) if rest and rest[-1].isdigit() else 90
    buffer = BytesIO()
    with Image.open(path) as image:
        flat = image.convert("RGB") if kind == "jpeg" or channel == "rgb" else image
        flat.save(buffer, format=kind, quality=quality)
    return buffer.getvalue(), f"image/{kind}"


def _without_alpha(path: str) -> bytes:
    with Image.open(path) as image:
        return _png(image.convert("RGB"))


def _only_alpha(path: str) -> bytes:
    """A black picture with the file's alpha, opaque when it has none."""
    with Image.open(path) as image:
        alpha = image.getchannel("A") if image.mode == "RGBA" else Image.new("L", image.size, 255)
    black = Image.new("RGBA", alpha.size)
    black.putalpha(alpha)
    return _png(black)


@routes.post("/upload/image")
async def upload_image(request: web.Request) -> web.Response:
    """Keep an image file; the answer says under which name."""
    form = await request.post()
    request.app[STATE].stats.add("uploads")
    return _store(request.app[STATE].options.folders, form, _write_bytes)


@routes.post("/upload/mask")
async def upload_mask(request: web.Request) -> web.Response:
    """Keep a copy of the image ``original_ref`` names, with the alpha of the uploaded one."""
    form = await request.post()
    folders = request.app[STATE].options.folders
    request.app[STATE].stats.add("uploads")

    def write_masked(upload: web.FileField, path: str) -> None:
        reference = json.loads(str(form["original_ref"]))
        original = _view_path(
            folders, reference["filename"], reference.get("type", "output"), reference.get("subfolder") or None
        )
        # ComfyUI drops a refusal here and still answers 200, having written nothing.
        if isinstance(original, str) and os.path.isfile(original):
            _write_masked(original, upload, path)

    return _store(folders, form, write_masked)


def _store(folders: Folders, form: Form, write: Callable[[web.FileField, str], None]) -> web.Response:
    """Write the form's ``image`` under a free name. Raises for an unknown type, which becomes 500."""
    upload = form.get("image")
    kind = form.get("type", "input")
    directory = {"input": folders.input, "temp": folders.temp, "output": folders.output}[kind]
    if not upload:
        return web.Response(status=400)
    name, subfolder = upload.filename, form.get("subfolder", "")
    if not name:
        return web.Response(status=400)
    folder = os.path.join(directory, os.path.normpath(subfolder))
    path = os.path.abspath(os.path.join(folder, name))
    if not _contains(directory, path):
        return web.Response(status=400)
    os.makedirs(folder, exist_ok=True)
    is_there = False
    if form.get("overwrite") not in ("true", "1"):
        name, path, is_there = _free_name(folder, name, path, upload)
    if not is_there:
        write(upload, path)
    return web.json_response({"name": name, "subfolder": subfolder, "type": kind})


def _free_name(folder: str, name: str, path: str, upload: web.FileField) -> tuple[str, str, bool]:
    """The name, else ``name (1)`` and so on; True when the file there has the same bytes already."""
    stem, suffix = os.path.splitext(name)
    number = 1
    while os.path.exists(path):
        if _same_bytes(path, upload):
            return name, path, True
        name = f"{stem} ({number}){suffix}"
        path = os.path.join(folder, name)
        number += 1
    return name, path, False


def _same_bytes(path: str, upload: web.FileField) -> bool:
    with open(path, "rb") as file:
        known = hashlib.sha256(file.read()).digest()
    given = hashlib.sha256(upload.file.read()).digest()
    upload.file.seek(0)
    return known == given


def _write_bytes(upload: web.FileField, path: str) -> None:
    with open(path, "wb") as file:
        file.write(upload.file.read())


def _write_masked(original: str, upload: web.FileField, path: str) -> None:
    with Image.open(original) as image, Image.open(upload.file) as mask:
        metadata = PngInfo()
        for key, text in getattr(image, "text", {}).items():
            metadata.add_text(key, text)
        masked = image.convert("RGBA")
        masked.putalpha(mask.convert("RGBA").getchannel("A"))
        masked.save(path, compress_level=4, pnginfo=metadata)
