"""Names of delivered files: S3 keys and paths on the volume, made of what callers and nodes chose.

A template such as ``results/{date}/{job_id}`` becomes a folder of safe segments; no value can add a slash, a ``..``
or a control character, and no two files of a job get the same name.
"""

from __future__ import annotations

import itertools
import re
import string
import time
import unicodedata
from collections.abc import Iterator
from pathlib import PurePosixPath

from settee.base.files import digest_of
from settee.base.job import Artifact, Job

FIELDS = ("job_id", "date", "time", "node_id", "kind")
#: S3 takes keys of 1,024 bytes; this is the template's share, its fields filled in.
MAX_PREFIX_BYTES = 500
MAX_NAME_BYTES = 200
#: An id's share, and the hash that a changed one gets.
_ID_BYTES, _HASH_BYTES = 100, 10
_FIELD_BYTES = {"job_id": _ID_BYTES + 1 + _HASH_BYTES, "node_id": _ID_BYTES + 1 + _HASH_BYTES}

_UNSAFE = re.compile(r"[^\w\-.+=@,()\[\] ]", re.UNICODE)


def safe_segment(text: str, limit: int = MAX_NAME_BYTES) -> str:
    """Return one path segment for any text: letters and digits of any script, ``-_.+=@,()[]`` and inner spaces.

    At most ``limit`` bytes of UTF-8. Never empty, never dots only, no leading dot or space; a suffix survives.
    """
    # Names in two Unicode spellings are one on some systems, and a mark of its own would be no letter below.
    text = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode("utf-8"))
    text = text if len(text) <= 512 else text[:480] + text[-32:]
    text = _UNSAFE.sub("_", text).strip(" ")
    if text.startswith("."):
        text = "_" + text.lstrip(".")
    while len(text.encode()) > limit:
        path = PurePosixPath(text)
        stem = path.stem if len(path.suffix.encode()) < limit // 2 else text
        suffix = path.suffix if stem is not text else ""
        text = stem[:-1] + suffix
    return text.rstrip(" ") or "_"


def safe_id(text: str) -> str:
    """Return one segment for an id. Ids that differ stay different: a changed one gets a short hash."""
    safe = safe_segment(text, _ID_BYTES)
    if safe == text:
        return safe
    return f"{safe}-{digest_of(text)[:_HASH_BYTES]}"


def prefix_problem(template: str) -> str | None:
    """Return the fault of a prefix template, for a person; None for a valid one."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        return f"not a template ({error}): write {{{{ and }}}} for braces"
    for _, name, spec, conversion in parts:
        if name is not None and (name not in FIELDS or spec or conversion):
            known = ", ".join(f"{{{field}}}" for field in FIELDS)
            return f"unknown field {{{name[:40]}}}; known: {known}"
    literal = "".join(text for text, *_ in parts)
    if any(segment in (".", "..") for segment in literal.split("/")):
        return "`.` and `..` are not allowed as folders"
    if any(ord(char) < 32 or ord(char) == 127 or 0xD800 <= ord(char) <= 0xDFFF for char in literal):
        return "control characters are not allowed"
    fields = sum(_FIELD_BYTES.get(name, 10) for _, name, *_ in parts if name)
    if len(literal.encode()) + fields > MAX_PREFIX_BYTES:
        return f"too long: it may come to more than {MAX_PREFIX_BYTES} bytes"
    return None


class Namer:
    """Gives each file of a job its key. One per delivery: it remembers the names given."""

    def __init__(self, template: str, job: Job) -> None:
        assert prefix_problem(template) is None
        moment = time.gmtime(job.created_at)
        self._values = {
            "job_id": safe_id(job.id),
            "date": time.strftime("%Y-%m-%d", moment),
            "time": time.strftime("%H-%M-%S", moment),
        }
        # ComfyUI numbers files from 00001 in every job: without the job's id, one job would overwrite another's.
        names = {name for _, name, *_ in string.Formatter().parse(template)}
        self._template = template if "job_id" in names else f"{template}/{{job_id}}"
        self._taken: set[str] = set()
        self._folders: set[str] = set()

    def key(self, artifact: Artifact, filename: str) -> str:
        """``folder/name``; if that is taken ``folder/subfolder/name``, then ``folder/node/name``, then a counter."""
        node = safe_id(artifact.node_id)
        filled = self._template.format(**self._values, node_id=node, kind=safe_segment(artifact.kind.value))
        segments = [safe_segment(segment, MAX_PREFIX_BYTES) for segment in filled.split("/") if segment.strip()]
        folder, name = "/".join(segments), safe_segment(filename)
        path = PurePosixPath(name)
        subfolder = "/".join(safe_segment(part, 40) for part in artifact.subfolder.split("/")[:4] if part)
        candidates: Iterator[str] = itertools.chain(
            (f"{folder}/{name}", *([f"{folder}/{subfolder}/{name}"] if subfolder else ()), f"{folder}/{node}/{name}"),
            (f"{folder}/{path.stem}-{number}{path.suffix}" for number in itertools.count(2)),
        )
        return next(key for key in candidates if self._take(key))

    def _take(self, key: str) -> bool:
        """False for a name that is given, and where a file would have to be a folder too."""
        # Compared without case: the volume may be a file system that knows none.
        name = key.casefold()
        if name in self._taken or name in self._folders:
            return False
        parents = {str(parent) for parent in PurePosixPath(name).parents}
        if not parents.isdisjoint(self._taken):
            return False
        self._taken.add(name)
        self._folders |= parents
        return True
