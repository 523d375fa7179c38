"""The request: a workflow, its files as base64 or by S3, and the job's options, within what the target takes.

Pictures may be made smaller before they are sent; Pillow is imported only then.
"""

from __future__ import annotations

import binascii
import contextlib
import io
import json
import re
import secrets
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from settee.base.sealing import sealed_size
from settee.base.text import first_of, join_ascii, megabytes
from settee.client.client_errors import UsageError
from settee.client.inject import InputFile
from settee.client.sealed_jobs import Sealer
from settee.client.targets.json_http import json_bytes
from settee.client.uploads import URL_SIZE, Uploader
from settee.comfyui.workflow import Workflow

if TYPE_CHECKING:
    from PIL.Image import Image

_PICTURES = ("image", "mask")
#: Bytes read at a time: a multiple of three, so that the pieces' base64 is the whole's, and a small part of most files.
_CHUNK = 3 << 17
#: Quality of pictures that were lossy, and are scaled only.
_QUALITY = 95
#: Modes with grey or colour of 8 bits, which JPEG can hold.
_JPEG_MODES = ("L", "RGB")
#: Modes that PNG holds, and ComfyUI reads as they are.
_PNG_MODES = ("L", "LA", "RGB", "RGBA", "I;16", "I;16B", "I")
_opening = threading.Lock()


@dataclass
class _Part:
    """A file that goes with the job: from its path, or as a picture that was made smaller."""

    file: InputFile
    #: Bytes.
    size: int
    content: bytes | None = field(default=None, repr=False)
    #: Where it was put, instead of into the request.
    url: str | None = field(default=None, repr=False)

    @property
    def cost(self) -> int:
        """Return the characters of its data in the request."""
        return len(json.dumps(self.url)) - 2 if self.url is not None else -(-self.size // 3) * 4

    def pieces(self) -> Iterator[str]:
        """Yield its data, in pieces. Raises UsageError when its file has changed since it was measured."""
        if self.url is not None:
            yield self.url
            return
        read = 0
        try:
            with self.file.path.open("rb") if self.content is None else io.BytesIO(self.content) as source:
                while chunk := source.read(_CHUNK):
                    read += len(chunk)
                    yield binascii.b2a_base64(chunk, newline=False).decode("ascii")
        except OSError as error:
            raise UsageError(f"{self.file.path} cannot be read: {error.strerror}") from error
        if read != self.size:
            raise UsageError(f"{self.file.path} changed while it was read: send it when it is complete")


class Request:
    """A job on its way to a target that takes ``cap`` bytes of JSON (None: any).

    ``options``: what it has in addition to workflow and files (docs/api.md); one that is None is left out. Pictures and
    masks are made smaller than ``max_side`` pixels, pictures also encoded as JPEG of quality ``jpeg``. While the whole
    is over the cap, the largest files go by ``upload``. With ``seal`` all of it becomes one token, and nothing is
    uploaded: it would be unsealed there. Raises UsageError.
    """

    def __init__(
        self,
        workflow: Workflow,
        files: Sequence[InputFile],
        *,
        options: Mapping[str, Any] | None = None,
        cap: int | None = None,
        max_side: int | None = None,
        jpeg: int | None = None,
        upload: Uploader | None = None,
        seal: Sealer | None = None,
    ) -> None:
        given = {name: value for name, value in (options or {}).items() if value is not None}
        self._fields: dict[str, Any] = {"workflow": workflow, **given}
        self._parts = [_part(file, max_side, jpeg) for file in files]
        self._cap, self._upload, self._seal = cap, upload, seal

    def check(self) -> None:
        """Raise the UsageError that :meth:`build` would, for all that is known without sending a file anywhere."""
        if self._to_upload():
            assert self._upload is not None
            _ = self._upload.target

    def build(self) -> dict[str, Any]:
        """Return ``{"input": {…}}``. A large file is held once, as its base64, or sealed as its token.

        Raises UsageError before anything is uploaded, and what uploading raises.
        """
        for part in self._to_upload():
            assert self._upload is not None
            part.url = self._upload.put(part.file.name, part.file.path if part.content is None else part.content)
            part.content = None
        if (size := self._size()) > (self._cap or size):  # with the URLs as they are
            raise UsageError(self._too_large(size))
        if self._seal is not None:
            token = join_ascii(str(piece, "ascii") for piece in self._seal.seal_chunks(self._json()))
            return {"input": {"encrypted_input": token, "is_encrypted": True}}
        return {"input": self._input(lambda part: join_ascii(part.pieces()))}

    def _input(self, data_of: Callable[[_Part], str]) -> dict[str, Any]:
        """Return the input as an object. Pictures go under ``images``, where the worker decodes them; all else under
        ``files``."""
        whole = dict(self._fields)
        for part in self._parts:
            key, name = ("images", "image") if part.file.kind in _PICTURES else ("files", "data")
            whole.setdefault(key, []).append({"name": part.file.name, name: data_of(part)})
        return whole

    def _json(self) -> Iterator[bytes]:
        """Yield the input's JSON, in pieces that are never together in memory."""
        mark, order = secrets.token_hex(16), {id(part): number for number, part in enumerate(self._parts)}
        whole = json_bytes(self._input(lambda part: f"{mark}{order[id(part)]};"))
        for number, piece in enumerate(re.split(f"{mark}([0-9]+);".encode(), whole)):
            yield from (each.encode("ascii") for each in self._parts[int(piece)].pieces()) if number % 2 else [piece]

    # --- size -----------------------------------------------------------------------------------------------------

    def _size(self) -> int:
        """Return the bytes of the whole request as JSON, as ``json.dumps`` writes it by default."""
        size = len(json_bytes(self._input(lambda part: ""))) + sum(part.cost for part in self._parts)
        if self._seal is None:
            return size + len('{"input": }')
        return sealed_size(size) + len('{"input": {"encrypted_input": "", "is_encrypted": true}}')

    def _to_upload(self) -> list[_Part]:
        """Return the parts that must go by S3, the largest first. Raises UsageError when that is impossible or not
        enough."""
        size = self._size()
        if self._cap is None or size <= self._cap:
            return []
        chosen = []
        for part in sorted(self._parts, key=lambda part: -part.size):
            if self._seal is not None or self._upload is None or part.cost <= URL_SIZE:
                break  # its URL would be longer
            chosen.append(part)
            size -= part.cost - URL_SIZE
            if size <= self._cap:
                return chosen
        raise UsageError(self._too_large(size))

    def _too_large(self, size: int) -> str:
        sealed = "sealed " if self._seal is not None else ""
        sizes = f"{megabytes(size)}, and the target accepts at most {megabytes(self._cap or 0)}"
        inline = sorted((part for part in self._parts if part.url is None), key=lambda part: -part.size)
        files = (f"  {part.file.path}: {megabytes(part.size)}, {megabytes(part.cost)} as base64" for part in inline)
        lines = [f"the {sealed}request would be {sizes}:", *first_of(files, 10)]
        ways = []
        if any(part.file.kind in _PICTURES for part in inline):
            ways.append("make the pictures smaller (--max-side 2048, --jpeg 90)")
        if sealed and self._parts:
            ways.append("do not seal the job: a sealed job's files are not sent by S3, where they would be unsealed")
        elif self._upload is None and self._parts:
            ways.append(
                "send large files by S3: set BUCKET_ENDPOINT_URL, BUCKET_ACCESS_KEY_ID, BUCKET_SECRET_ACCESS_KEY and "
                "BUCKET_NAME"
            )
        return "\n".join([*lines, ", or ".join(ways or ["make the workflow smaller"])])


def _part(file: InputFile, max_side: int | None, jpeg: int | None) -> _Part:
    if file.kind in _PICTURES:
        # JPEG's noise around a mask's edges would be part of the mask.
        content = fitted(file.path, max_side=max_side, jpeg=jpeg if file.kind == "image" else None)
        if content is not None:
            return _Part(file, len(content), content)
    try:
        return _Part(file, file.path.stat().st_size)
    except OSError as error:
        raise UsageError(f"{file.path} cannot be read: {error.strerror}") from error


# --- smaller pictures -----------------------------------------------------------------------------------------


def fitted(path: Path, *, max_side: int | None, jpeg: int | None) -> bytes | None:
    """Return the picture within ``max_side`` pixels and, with ``jpeg``, as a JPEG of that quality; None: send the file.

    Never scaled up, and never re-encoded into something larger. Where pixels are touched, EXIF's orientation
    is applied to them, and of the metadata only the colour profile stays. Without ``jpeg``, JPEG and WEBP stay such,
    and everything else becomes PNG. A picture that is transparent anywhere never becomes a JPEG: ComfyUI makes a
    loader's mask of its transparency. One that moves (GIF, WEBP, APNG) is left alone. Raises UsageError.
    """
    if max_side is not None and not 1 <= max_side <= 65535:
        raise UsageError(f"--max-side {max_side}: give the pixels of the longer side, from 1 to 65535")
    if jpeg is not None and not 1 <= jpeg <= 100:
        raise UsageError(f"--jpeg {jpeg}: give a quality from 1 to 100")
    if max_side is None and jpeg is None:
        return None
    from PIL.Image import Resampling, merge

    with _opened(path) as image:
        # A phone's MPO is a JPEG with further pictures behind it; ComfyUI, too, takes the first.
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
            return None
        is_large = max_side is not None and max(image.size) > max_side
        if not is_large and jpeg is None:
            return None
        picture = _upright(image)
        becomes_jpeg = jpeg is not None and _can_be_jpeg(picture)
        if not is_large and not becomes_jpeg:
            return None
        if is_large:
            ratio = (max_side or 1) / max(picture.size)
            size = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
            # Band by band: Pillow would multiply colours by their transparency first, and what is under a mask be lost.
            bands = [band.resize(size, Resampling.LANCZOS, reducing_gap=3.0) for band in picture.split()]
            picture = merge(picture.mode, bands) if len(bands) > 1 else bands[0]
        content = _encoded(picture, image, path, jpeg if becomes_jpeg else None)
        return content if is_large or len(content) < path.stat().st_size else None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """Open the picture, without decoding its pixels. Errors of Pillow, also later ones, become a UsageError."""
    from PIL import Image, UnidentifiedImageError

    try:
        # A caller's own picture may be as large as it likes up to Pillow's limit for errors; that for warnings,
        # which are the whole process's affair, is half of it.
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
        with image:
            yield image
    except UnidentifiedImageError as error:
        raise UsageError(f"{path} cannot be scaled or re-encoded: it is not a picture that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise UsageError(f"{path} has too many pixels to be scaled here") from error
    except FileNotFoundError as error:
        raise UsageError(f"{path} is not there") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UsageError(f"{path} cannot be scaled or re-encoded: it is damaged or cut off") from error


def _upright(image: Image) -> Image:
    """Return the picture as it is meant to be seen, in a mode that its formats hold."""
    from PIL import ImageOps

    turned = ImageOps.exif_transpose(image)
    if turned.mode == "1":
        return turned.convert("L")
    if turned.mode not in ("LA", "RGBA") and turned.has_transparency_data:
        return turned.convert("RGBA")
    return turned if turned.mode in _PNG_MODES else turned.convert("RGB")


def _can_be_jpeg(picture: Image) -> bool:
    """Return True if JPEG can hold it all: 8 bits a channel, and nothing transparent."""
    if picture.mode in ("LA", "RGBA"):
        return bool(picture.getchannel("A").getextrema() == (255, 255))
    return picture.mode in _JPEG_MODES


def _encoded(picture: Image, original: Image, path: Path, jpeg: int | None) -> bytes:
    """Encode the picture as a JPEG of this quality, or in its own format."""
    options: dict[str, Any] = {}
    profile = original.info.get("icc_profile")
    # Pixels that were converted are not in the profile's colours any more.
    if profile and original.mode not in ("CMYK", "YCbCr", "LAB", "HSV"):
        options["icc_profile"] = profile
    format_name = {"JPEG": "JPEG", "MPO": "JPEG", "WEBP": "WEBP"}.get(original.format or "", "PNG")
    if jpeg is not None:
        format_name, picture = "JPEG", picture.convert({"LA": "L", "RGBA": "RGB"}.get(picture.mode, picture.mode))
    elif format_name == "JPEG" and picture.mode not in _JPEG_MODES:
        format_name = "PNG"
    if format_name == "JPEG":
        options |= {"quality": jpeg or _QUALITY, "optimize": True}
    elif format_name == "WEBP":
        # Its pixels are in a VP8L chunk then (RFC 9649); a profile of more than 4 KiB before it hides it.
        with path.open("rb") as file:
            is_lossless = b"VP8L" in file.read(4096)
        # Colours under transparent pixels are part of the picture (exact).
        options |= {"quality": _QUALITY, "exact": True, "lossless": is_lossless}
    elif picture.mode == "I":
        picture = picture.convert("I;16")  # PNG's most
    buffer = io.BytesIO()
    picture.save(buffer, format_name, **options)
    return buffer.getvalue()
