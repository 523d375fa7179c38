"""The request: a workflow, its files as base64 or by S3, and the job's options, within what the target takes."""

from __future__ import annotations

import binascii
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from settee.base.sealing import sealed_size
from settee.base.text import join_ascii
from settee.client.client_errors import UsageError
from settee.client.inject import InputFile
from settee.client.sealed_jobs import Sealer
from settee.client.shrink import fitted
from settee.client.uploads import URL_SIZE, Uploader
from settee.comfyui.workflow import Workflow

_PICTURES = ("image", "mask")
#: Bytes read at a time: a multiple of three, so that the pieces' base64 is the whole's, and a small part of most files.
_CHUNK = 3 << 17
_SHOWN_FILES = 10


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
        for chunk in self._chunks():
            read += len(chunk)
            yield binascii.b2a_base64(chunk, newline=False).decode("ascii")
        if read != self.size:
            raise UsageError(f"{self.file.path} changed while it was read: send it when it is complete")

    def _chunks(self) -> Iterator[bytes]:
        if self.content is not None:
            yield from (self.content[start : start + _CHUNK] for start in range(0, self.size, _CHUNK))
            return
        try:
            with self.file.path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    yield chunk
        except OSError as error:
            raise UsageError(f"{self.file.path} cannot be read: {error.strerror}") from error


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
            return {"input": {"encrypted_input": self._seal.seal(self._json()), "is_encrypted": True}}
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
        text = _dumped(self._input(lambda part: f"{mark}{order[id(part)]};"))
        for number, piece in enumerate(re.split(f"{mark}([0-9]+);", text)):
            pieces = self._parts[int(piece)].pieces() if number % 2 else [piece]
            yield from (piece.encode("ascii") for piece in pieces)

    # --- size -----------------------------------------------------------------------------------------------------

    def _size(self) -> int:
        """Return the bytes of the whole request as JSON, as ``json.dumps`` writes it by default."""
        size = len(_dumped(self._input(lambda part: ""))) + sum(part.cost for part in self._parts)
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
        sizes = f"{_megabytes(size)}, and the target accepts at most {_megabytes(self._cap or 0)}"
        inline = sorted((part for part in self._parts if part.url is None), key=lambda part: -part.size)
        lines = [f"the {sealed}request would be {sizes}:"]
        for part in inline[:_SHOWN_FILES]:
            lines.append(f"  {part.file.path}: {_megabytes(part.size)}, {_megabytes(part.cost)} as base64")
        if len(inline) > _SHOWN_FILES:
            lines.append(f"  and {len(inline) - _SHOWN_FILES} more files")
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


def _megabytes(size: int) -> str:
    """Millions of bytes, as RunPod counts them."""
    return f"{size / 1e6:,.1f} MB" if size >= 50_000 else f"{size / 1e3:,.1f} KB"


def _dumped(value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise UsageError("the job holds NaN or an infinite number, which JSON cannot express") from error
