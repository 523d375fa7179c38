"""Where a workflow comes from: a file, standard input, a name of workflows/, or a picture or film that ComfyUI made."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

from settee.base.text import first_of
from settee.client import media_metadata
from settee.client.client_errors import UsageError
from settee.comfyui.isolation import is_salt
from settee.comfyui.media import HEAD, Unreadable
from settee.comfyui.problems import near_matches
from settee.comfyui.workflow import NODE_KEYS, link_problems, measure, shape_problems

#: Those of the working directory, and of a checkout.
FOLDERS = (Path("workflows"), Path(__file__).parents[2] / "workflows")
#: Bytes of a workflow's JSON, and of anything that comes through a pipe.
MAX_BYTES = 64 * 1024 * 1024
#: More nodes than any worker allows by default.
_MAX_NODES = 100_000
_SHOWN_NAMES = 20

#: What a worker's isolation put before a file's name (settee.comfyui.isolation); films and some pictures keep it.
_ISOLATION = re.compile(r"(?:settee-[0-9a-f]{8}-[0-9a-f]{4}/)+")

_WANTED = "a workflow is JSON, or a PNG, WEBP, MP4 or WEBM that ComfyUI made"


def read(given: Mapping[str, Any] | str | PathLike[str]) -> tuple[dict[str, Any], str]:
    """Return a checked workflow (:func:`checked`), and what to call it in a message (a path as it was given).

    ``given``: the workflow itself, ``-`` (standard input), a path, or the name of a workflow in FOLDERS. A file that
    exists takes precedence over a name. Raises UsageError.
    """
    if isinstance(given, Mapping):
        return checked(given, "the workflow"), "the workflow"
    if given == "-":
        # A service has no standard input.
        stdin = sys.stdin.buffer if sys.stdin is not None else io.BytesIO()
        return _read(stdin, "standard input"), "standard input"
    path = _found(os.fspath(given))
    try:
        with path.open("rb") as file:
            return _read(file, str(path)), str(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or type(error).__name__}") from error


def cleaned(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a workflow in API format without what a run has left in it; anything but nodes stays as it is."""
    clean: dict[str, Any] = {}
    for node_id, node in data.items():
        if not isinstance(node, dict) or "class_type" not in node or not isinstance(node.get("inputs"), dict):
            clean[node_id] = node
            continue
        kept = {key: node[key] for key in NODE_KEYS if key in node}
        inputs = {name: value for name, value in node["inputs"].items() if not is_salt(name, value)}
        if isinstance(prefix := inputs.get("filename_prefix"), str):
            inputs["filename_prefix"] = prefix[found.end() :] if (found := _ISOLATION.match(prefix)) else prefix
        clean[node_id] = {**kept, "inputs": inputs}
    return clean


# --- finding -----------------------------------------------------------------------------------------


def _found(text: str) -> Path:
    if not text:
        raise UsageError("name a workflow: a file, - for standard input, or one of workflows/")
    path, names = Path(text), (text, f"{text}.json") if "/" not in text and "\\" not in text else ()
    # What cannot be a path at all (too long, a NUL in it) is not there either; Python's versions differ about it.
    with contextlib.suppress(OSError, ValueError):
        for each in (path, *(folder / name for name in names for folder in FOLDERS)):
            if each.exists() and not each.is_dir():
                return each
        if path.is_dir():
            raise UsageError(f"{text} is a folder: name a workflow in it")
    known = sorted({file.stem for folder in FOLDERS if folder.is_dir() for file in folder.glob("*.json")})
    if near := near_matches(path.stem, known, are_files=False):
        hint = f"; did you mean {' or '.join(near)}?"
    else:
        hint = f"; there are {', '.join(known[:_SHOWN_NAMES])}" if known else ""
    raise UsageError(f"no file {text[:200]!r}, and no workflow of that name{hint}")


# --- reading -----------------------------------------------------------------------------------------


def _read(file: BinaryIO, shown: str) -> dict[str, Any]:
    if not file.seekable():
        file = io.BytesIO(_content(file, shown))  # a pipe
    head = file.read(HEAD)
    file.seek(-len(head), os.SEEK_CUR)
    format_name = media_metadata.format_of(head)
    if format_name is not None:
        return checked(_of_picture(file, shown, format_name), shown)
    content = _content(file, shown)
    if not content.strip():
        raise UsageError(f"{shown} is empty: {_WANTED}")
    return checked(_json(content, shown), shown)


def _content(file: BinaryIO, shown: str) -> bytes:
    content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UsageError(f"{shown} is too large for a workflow (over {MAX_BYTES // 2**20} MiB)")
    return content


def _of_picture(file: BinaryIO, shown: str, format_name: str) -> Any:
    """Return the prompt in a picture's metadata, or else the editor's graph. Raises UsageError."""
    try:
        texts = media_metadata.texts(file)
    except Unreadable as error:
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
    if numbers := [node_id for node_id in given if not isinstance(node_id, str)]:
        raise UsageError(f"{shown}: the node id {numbers[0]!r} must be a string, as in JSON")
    data = dict(given)
    if isinstance(data.get("nodes"), list):
        _require_json(data, shown)
        return data  # the editor's; the converter decides
    for place in ("input.workflow", "workflow", "prompt"):  # of a job for RunPod or ComfyUI
        inside: Any = data
        for key in place.split("."):
            inside = inside.get(key) if isinstance(inside, Mapping) else None
        if isinstance(inside, Mapping) and "class_type" not in inside:
            raise UsageError(f"{shown} is a whole job, not a workflow: give the content of its {place!r}")
    clean = cleaned(data)
    _require_json(clean, shown)
    if wrong := shape_problems(clean, max_nodes=_MAX_NODES) or link_problems(clean):
        places = (str(problem["path"]).removeprefix("workflow").removeprefix(".")[:200] for problem in wrong)
        lines = [": ".join(filter(None, (shown, at, each["problem"]))) for at, each in zip(places, wrong, strict=True)]
        raise UsageError("\n".join(first_of(lines, 5)))
    return clean


def _require_json(data: Mapping[str, Any], shown: str) -> None:
    """Raise UsageError for what cannot be sent as JSON, though Python reads it, or would harm ComfyUI."""
    for name, node in data.items():
        inputs = node.get("inputs") if isinstance(node, dict) else None
        # A node's inputs one by one, to name the one; all else as it is.
        for part, inner in inputs.items() if isinstance(inputs, dict) else [("", node)]:
            if (problem := measure(inner)[1]) is not None:
                raise UsageError(f"{shown}: {name[:100]}{f'.{part}'[:100] if part else ''} {problem}")
