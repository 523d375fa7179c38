"""Where a workflow comes from: a file, standard input, a name of workflows/, or a picture or film that ComfyUI made."""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from settee.client import media_metadata
from settee.client.client_errors import UsageError
from settee.comfyui.isolation import is_salt
from settee.comfyui.workflow import link_problems, shape_problems

#: Bytes of a workflow's JSON, and of anything that comes through a pipe.
MAX_BYTES = 64 * 1024 * 1024
#: More nodes than any worker allows by default.
_MAX_NODES = 100_000
_SHOWN_PROBLEMS = 5
_SHOWN_NAMES = 20

#: What ComfyUI reads of a node. A picture's metadata brings back more: with the `is_changed` in it, a loader answers
#: with the file that it read then.
_NODE_KEYS = ("class_type", "inputs", "_meta")
#: What a worker's isolation put before a file's name (settee.comfyui.isolation); films and some pictures keep it.
_ISOLATION = re.compile(r"(?:settee-[0-9a-f]{8}-[0-9a-f]{4}/)+")

_WANTED = "a workflow is JSON, or a PNG, WEBP, MP4 or WEBM that ComfyUI made"


@dataclass(frozen=True)
class Source:
    """A workflow as it was found: API format of a valid shape, or else the editor's format."""

    data: dict[str, Any] = field(repr=False)
    #: What to call it in a message: the path as it was given, ``standard input``.
    shown: str


def read(text: str, *, stdin: BinaryIO, folder: Path | None = None) -> Source:
    """Return the workflow that ``text`` names: ``-`` (standard input), a path, or the name of a workflow in ``folder``.

    ``folder``: by default the folders named workflows in the working directory and next to the package. A file that
    exists takes precedence over a name. Raises UsageError.
    """
    if text == "-":
        return _read(stdin, "standard input")
    path = _found(text, folder)
    try:
        with path.open("rb") as file:
            return _read(file, str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or type(error).__name__}") from error


def cleaned(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a workflow in API format without what a run has left in it; anything but nodes stays as it is."""
    clean: dict[str, Any] = {}
    for node_id, node in data.items():
        if not isinstance(node, dict) or "class_type" not in node or not isinstance(node.get("inputs"), dict):
            clean[node_id] = node
            continue
        kept = {key: node[key] for key in _NODE_KEYS if key in node}
        inputs = {name: value for name, value in node["inputs"].items() if not is_salt(name, value)}
        if isinstance(prefix := inputs.get("filename_prefix"), str):
            inputs["filename_prefix"] = prefix[found.end() :] if (found := _ISOLATION.match(prefix)) else prefix
        clean[node_id] = {**kept, "inputs": inputs}
    return clean


# --- finding -----------------------------------------------------------------------------------------


def _found(text: str, folder: Path | None) -> Path:
    """Return the file for a path or a name. Raises UsageError."""
    if not text:
        raise UsageError("name a workflow: a file, - for standard input, or one of workflows/")
    folders = _folders() if folder is None else [folder]
    path = Path(text)
    # What cannot be a path at all (too long, a NUL in it) is not there either; Python's versions differ about it.
    with contextlib.suppress(OSError, ValueError):
        if path.exists() and not path.is_dir():
            return path
        if "/" not in text and "\\" not in text:
            for name in (text, f"{text}.json"):
                for place in folders:
                    if (named := place / name).is_file():
                        return named
        if path.is_dir():
            raise UsageError(f"{text} is a folder: name a workflow in it")
    names = sorted({file.stem for place in folders if place.is_dir() for file in place.glob("*.json")})
    near = difflib.get_close_matches(path.stem[:100], names, n=3)
    if near:
        hint = f"; did you mean {' or '.join(near)}?"
    else:
        hint = f"; there are {', '.join(names[:_SHOWN_NAMES])}" if names else ""
    raise UsageError(f"there is no file {text[:200]!r}, and no workflow of that name{hint}")


def _folders() -> list[Path]:
    return [Path("workflows"), Path(__file__).parents[2] / "workflows"]


# --- reading -----------------------------------------------------------------------------------------


def _read(file: BinaryIO, shown: str) -> Source:
    if not file.seekable():  # a pipe
        content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UsageError(f"{shown} is too large for a workflow (over {MAX_BYTES // 2**20} MiB)")
        file = io.BytesIO(content)
    start = file.tell()
    head = file.read(media_metadata.HEAD)
    file.seek(start)
    format_name = media_metadata.format_of(head)
    if format_name is not None:
        return Source(checked(_of_picture(file, shown, format_name), shown), shown)
    content = file.read(MAX_BYTES + 1)
    if not content.strip():
        raise UsageError(f"{shown} is empty: {_WANTED}")
    if len(content) > MAX_BYTES:
        raise UsageError(f"{shown} is too large for a workflow (over {MAX_BYTES // 2**20} MiB)")
    return Source(checked(_json(content, shown), shown), shown)


def _of_picture(file: BinaryIO, shown: str, format_name: str) -> Any:
    """Return the prompt in a picture's metadata, or else the editor's graph. Raises UsageError."""
    try:
        texts = media_metadata.texts(file)
    except media_metadata.Unreadable as error:
        raise UsageError(f"{shown} {error}") from error
    for keyword in ("prompt", "workflow"):
        if keyword in texts:
            return _json(texts[keyword], f"the {keyword} in {shown}")
    raise UsageError(
        f"{shown} holds no workflow: this {format_name} was not made by ComfyUI, or its metadata was taken out"
    )


def _json(content: bytes | str, shown: str) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        if isinstance(content, bytes) and b"\0" in content[:1024] and error.pos == 0:
            raise UsageError(f"{shown} is not a workflow: {_WANTED}") from error
        where = f"line {error.lineno}, column {error.colno}"
        raise UsageError(f"{shown} is not valid JSON: {error.msg} at {where}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{shown} is not a workflow: {_WANTED}") from error
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or brackets thousands deep.
        raise UsageError(
            f"{shown} is not a workflow's JSON: it is nested too deeply, or has too long a number"
        ) from error


def checked(given: Any, shown: str) -> dict[str, Any]:
    """Return a checked workflow: API format, cleaned and of a valid shape, or the editor's.

    Raises UsageError for anything else.
    """
    if not isinstance(given, Mapping):
        raise UsageError(f"{shown} holds no workflow: it must be an object of nodes")
    if wrong := [node_id for node_id in given if not isinstance(node_id, str)]:
        raise UsageError(f"{shown}: the node id {wrong[0]!r} must be a string, as in JSON")
    data = dict(given)
    if isinstance(data.get("nodes"), list):
        _require_json(data, shown)
        return data  # the editor's; the converter decides
    if place := _workflow_in(data):
        raise UsageError(f"{shown} is a whole job, not a workflow: give the content of its {place!r}")
    clean = cleaned(data)
    _require_json(clean, shown)
    wrong = shape_problems(clean, max_nodes=_MAX_NODES) or link_problems(clean)
    if problems := [f"{shown}: {_line_of(problem)}" for problem in wrong]:
        more = len(problems) - _SHOWN_PROBLEMS
        raise UsageError("\n".join(problems[:_SHOWN_PROBLEMS] + ([f"… and {more} more"] if more > 0 else [])))
    return clean


def _workflow_in(data: Mapping[str, Any]) -> str | None:
    """Return where in a job for RunPod or ComfyUI the workflow is; None when this is not such a job."""
    for place in ("input.workflow", "workflow", "prompt"):
        inside: Any = data
        for key in place.split("."):
            inside = inside.get(key) if isinstance(inside, Mapping) else None
        if isinstance(inside, Mapping) and "class_type" not in inside:
            return place
    return None


def _line_of(problem: Mapping[str, Any]) -> str:
    where = str(problem["path"]).removeprefix("workflow").removeprefix(".")[:200]
    return f"{where}: {problem['problem']}" if where else str(problem["problem"])


def _require_json(data: Mapping[str, Any], shown: str) -> None:
    """Raise UsageError for numbers that JSON cannot express, though Python reads and writes them."""
    for name, value in data.items():
        for part, inner in _inputs_of(value):
            try:
                json.dumps(inner, allow_nan=False)
            except ValueError as error:
                where = f"{name[:100]}{part}"
                raise UsageError(f"{shown}: {where} holds NaN or an infinite number, which cannot be sent") from error
            except RecursionError as error:
                raise UsageError(f"{shown}: {name[:100]}{part} is nested too deeply") from error
            except TypeError as error:  # of a caller in Python: a path, a number of another library's
                raise UsageError(f"{shown}: {name[:100]}{part} is not a JSON value: {error}") from error


def _inputs_of(value: Any) -> Iterable[tuple[str, Any]]:
    """Return a node's inputs one by one, with how to name them; all else as it is."""
    if isinstance(value, dict) and isinstance(value.get("inputs"), dict):
        return [(f".{name[:100]}", inner) for name, inner in value["inputs"].items()]
    return [("", value)]
