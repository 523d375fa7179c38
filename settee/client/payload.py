"""The request: a workflow, its files as base64 or by S3, and the job's options, within what the target takes."""

from __future__ import annotations

import binascii
import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from settee.client.client_errors import UsageError
from settee.client.inject import InputFile
from settee.client.sealed_jobs import Sealer
from settee.client.shrink import Shrink, fitted
from settee.client.uploads import URL_SIZE, Uploader
from settee.comfyui.workflow import Workflow

#: What a job may have in addition to its workflow and files (docs/api.md).
OPTIONS = ("models", "delivery", "timeout_s", "debug", "allow_partial", "seeds", "extra_data", "comfy_org_api_key")
_PICTURES = ("image", "mask")
#: Bytes read at a time: a multiple of three, so that the pieces' base64 is the whole's, and a small part of most files.
_CHUNK = 3 << 17
_SHOWN_FILES = 10


@dataclass(frozen=True)
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
        return len(json.dumps(self.url)) - 2 if self.url is not None else _encoded_size(self.size)


def build(
    workflow: Workflow,
    files: Sequence[InputFile],
    *,
    options: Mapping[str, Any] | None = None,
    cap: int | None = None,
    shrink: Shrink | None = None,
    upload: Uploader | None = None,
    seal: Sealer | None = None,
) -> dict[str, Any]:
    """Return ``{"input": {…}}`` for a target that takes ``cap`` bytes of JSON (None: any).

    ``options`` are those of :data:`OPTIONS`; one that is None is left out. Pictures and masks are made smaller as
    ``shrink`` says, masks never with loss. While the whole is over the cap, the largest files go by ``upload``; what
    is uploaded when something fails is removed. With ``seal`` all of it becomes one token, and nothing is uploaded:
    it would be unsealed there. A large file is held once, as its base64, or sealed as its token.

    Raises UsageError before anything is sent or uploaded, and what uploading raises.
    """
    fields = _fields(workflow, options or {})
    parts = [_part(file, shrink) for file in files]
    to_upload = _over_cap(fields, parts, cap, upload is not None, seal)
    if to_upload:
        assert upload is not None
        try:
            for index in to_upload:
                part = parts[index]
                url = upload.put(part.file.name, part.file.path if part.content is None else part.content)
                parts[index] = replace(part, content=None, url=url)
            _check_size(fields, parts, cap, seal)
            return {"input": _plain(fields, parts)}
        except BaseException:
            upload.remove()
            raise
    if seal is not None:
        return {"input": {"encrypted_input": seal.seal(_json(fields, parts)), "is_encrypted": True}}
    return {"input": _plain(fields, parts)}


def check(
    workflow: Workflow,
    files: Sequence[InputFile],
    *,
    options: Mapping[str, Any] | None = None,
    cap: int | None = None,
    shrink: Shrink | None = None,
    upload: Uploader | None = None,
    seal: Sealer | None = None,
) -> None:
    """Raise the UsageError that :func:`build` would, for all that can be known without sending a file anywhere."""
    parts = [_part(file, shrink) for file in files]
    if _over_cap(_fields(workflow, options or {}), parts, cap, upload is not None, seal):
        assert upload is not None
        upload.check()


def _fields(workflow: Workflow, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all of a job but its files. Raises UsageError for an option that no worker knows."""
    for name in options:
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, OPTIONS, n=1)
            raise UsageError(f"a job has no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return {"workflow": workflow} | {name: value for name, value in options.items() if value is not None}


def _part(file: InputFile, shrink: Shrink | None) -> _Part:
    content = None
    if shrink is not None and file.kind in _PICTURES:
        # JPEG's noise around a mask's edges would be part of the mask.
        jpeg = shrink.jpeg if file.kind == "image" else None
        content = fitted(file.path, max_side=shrink.max_side, jpeg=jpeg)
    if content is not None:
        return _Part(file, len(content), content)
    try:
        return _Part(file, file.path.stat().st_size)
    except OSError as error:
        raise UsageError(f"{file.path} cannot be read: {error.strerror}") from error


# --- size --------------------------------------------------------------------------------------------


def _encoded_size(size: int) -> int:
    return -(-size // 3) * 4


def _request_size(fields: Mapping[str, Any], parts: Iterable[_Part], seal: Sealer | None) -> int:
    """Return the bytes of the whole request as JSON, as ``json.dumps`` writes it by default."""
    costs = list(parts)
    empty = [replace(part, size=0, content=None, url=None) for part in costs]
    size = len(_dumped(_plain(fields, empty))) + sum(part.cost for part in costs)
    if seal is None:
        return size + len('{"input": }')
    return seal.size(size) + len('{"input": {"encrypted_input": "", "is_encrypted": true}}')


def _over_cap(
    fields: Mapping[str, Any], parts: Sequence[_Part], cap: int | None, may_upload: bool, seal: Sealer | None
) -> list[int]:
    """Return the parts that must go by S3, the largest first. Raises UsageError when that is impossible or not
    enough."""
    size = _request_size(fields, parts, seal)
    if cap is None or size <= cap:
        return []
    if seal is None and may_upload:
        chosen = []
        for index in sorted(range(len(parts)), key=lambda index: -parts[index].size):
            if parts[index].cost <= URL_SIZE:
                break  # its URL would be longer
            chosen.append(index)
            size -= parts[index].cost - URL_SIZE
            if size <= cap:
                return chosen
    raise UsageError(_too_large(size, cap, parts, may_upload, seal))


def _check_size(fields: Mapping[str, Any], parts: Sequence[_Part], cap: int | None, seal: Sealer | None) -> None:
    """Check the size again, with the URLs as they are."""
    size = _request_size(fields, parts, seal)
    if cap is not None and size > cap:
        raise UsageError(_too_large(size, cap, parts, True, seal))


def _too_large(size: int, cap: int, parts: Sequence[_Part], may_upload: bool, seal: Sealer | None) -> str:
    sealed = "sealed " if seal is not None else ""
    lines = [f"the {sealed}request would be {_megabytes(size)}, and the target accepts at most {_megabytes(cap)}:"]
    inline = sorted((part for part in parts if part.url is None), key=lambda part: -part.size)
    for part in inline[:_SHOWN_FILES]:
        lines.append(f"  {part.file.path}: {_megabytes(part.size)}, {_megabytes(part.cost)} as base64")
    if len(inline) > _SHOWN_FILES:
        lines.append(f"  and {len(inline) - _SHOWN_FILES} more files")
    ways = []
    if any(part.file.kind in _PICTURES for part in inline):
        ways.append("make the pictures smaller (--max-side 2048, --jpeg 90)")
    if seal is not None and parts:
        ways.append("do not seal the job: a sealed job's files are not sent by S3, where they would be unsealed")
    elif not may_upload and parts:
        ways.append(
            "send large files by S3: set BUCKET_ENDPOINT_URL, BUCKET_ACCESS_KEY_ID, BUCKET_SECRET_ACCESS_KEY and "
            "BUCKET_NAME"
        )
    elif not ways:
        ways.append("make the workflow smaller")
    return "\n".join([*lines, ", or ".join(ways)])


def _megabytes(size: int) -> str:
    """Millions of bytes, as RunPod counts them."""
    return f"{size / 1e6:,.1f} MB" if size >= 50_000 else f"{size / 1e3:,.1f} KB"


# --- writing -----------------------------------------------------------------------------------------


def _plain(fields: Mapping[str, Any], parts: Iterable[_Part]) -> dict[str, Any]:
    """Return the input as an object. Pictures go under ``images``, where the worker decodes them; all else under
    ``files``."""
    from settee.base.text import join_ascii

    whole = dict(fields)
    for part in parts:
        data = part.url if part.url is not None else join_ascii(_base64(part))
        if part.file.kind in _PICTURES:
            whole.setdefault("images", []).append({"name": part.file.name, "image": data})
        else:
            whole.setdefault("files", []).append({"name": part.file.name, "data": data})
    return whole


def _json(fields: Mapping[str, Any], parts: Sequence[_Part]) -> Iterator[bytes]:
    """Yield the JSON of :func:`_plain`, in pieces that are never together in memory."""
    yield _dumped(fields)[:-1].encode("ascii")
    for key, data_key, among in (
        ("images", "image", [part for part in parts if part.file.kind in _PICTURES]),
        ("files", "data", [part for part in parts if part.file.kind not in _PICTURES]),
    ):
        for number, part in enumerate(among):
            opening = f', "{key}": [' if number == 0 else ", "
            yield f'{opening}{{"name": {json.dumps(part.file.name)}, "{data_key}": "'.encode("ascii")
            yield from (piece.encode("ascii") for piece in _base64(part))
            yield b'"}]' if number == len(among) - 1 else b'"}'
    yield b"}"


def _dumped(value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise UsageError("the job holds NaN or an infinite number, which JSON cannot express") from error


def _base64(part: _Part) -> Iterator[str]:
    """Yield the base64 of a part, in pieces. Raises UsageError when its file has changed since it was measured."""
    if part.content is not None:
        for start in range(0, len(part.content), _CHUNK):
            yield _encoded(part.content[start : start + _CHUNK])
        return
    if part.size == 0:
        return
    read = 0
    for chunk in _chunks(part.file.path):
        read += len(chunk)
        yield _encoded(chunk)
    if read != part.size:
        raise UsageError(f"{part.file.path} changed while it was read: send it when it is complete")


def _encoded(chunk: bytes) -> str:
    return binascii.b2a_base64(chunk, newline=False).decode("ascii")


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
