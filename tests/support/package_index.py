"""A package index on loopback: stand-ins of locked packages, with their real requirements, and newer releases of all.

It answers both as PEP 503 (HTML, all that old pips read) and as PEP 691 (JSON, which says when a file was uploaded).
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from tests.support.http_double import Ask, Reply
from tests.support.web import Web

#: A pin of a lock: its name, its version, its marker, and hashes on further lines.
PIN = re.compile(
    r"^([a-z0-9.-]+)==([^\s;]+)((?: ;[^\n\\]*)?)[^\n]*\n(?:    --hash=[^\n]*\n)*(?:    #[^\n]*\n)*", re.MULTILINE
)
NEWER = "9999.0"
LONG_AGO = "2020-01-01T00:00:00Z"


@dataclass(frozen=True)
class Release:
    """One wheel."""

    name: str
    version: str
    requires: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    files: dict[str, bytes] = field(default_factory=dict)
    uploaded: str = LONG_AGO
    tag: str = "py3-none-any"

    @property
    def stem(self) -> str:
        return f"{self.name.replace('-', '_').replace('.', '_')}-{self.version}"

    @property
    def metadata(self) -> bytes:
        lines = ["Metadata-Version: 2.1", f"Name: {self.name}", f"Version: {self.version}"]
        lines += [f"Requires-Dist: {one}" for one in self.requires] + [f"Provides-Extra: {x}" for x in self.extras]
        return "\n".join([*lines, ""]).encode()

    @property
    def wheel(self) -> bytes:
        """Return the same bytes for the same release."""
        stem = self.stem
        files = {
            **{path.replace("{stem}", stem): content for path, content in self.files.items()},
            f"{stem}.dist-info/METADATA": self.metadata,
            f"{stem}.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: %s\n" % self.tag.encode(),
        }
        record = [f"{path},sha256={_digest(content)},{len(content)}\n" for path, content in files.items()]
        files[f"{stem}.dist-info/RECORD"] = "".join([*record, f"{stem}.dist-info/RECORD,,\n"]).encode()
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for path, content in files.items():
                entry = zipfile.ZipInfo(path)
                entry.external_attr = 0o100755 << 16  # scripts stay executable
                archive.writestr(entry, content)
        return packed.getvalue()


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


class PackageIndex(Web):
    """Serves what was added, at ``simple``."""

    def __init__(self) -> None:
        super().__init__()
        self.simple = self.url("/simple")
        self._files: dict[str, list[dict[str, Any]]] = {}

    def add(self, release: Release) -> str:
        """Serve a release; return its wheel's SHA-256."""
        wheel = release.wheel
        path = f"/files/{release.stem.replace('+', '%2B')}-{release.tag}.whl"
        self.serve(path, wheel)
        self.serve(f"{path}.metadata", release.metadata)
        digest = hashlib.sha256(wheel).hexdigest()
        file = {
            "filename": f"{release.stem}-{release.tag}.whl",
            "url": self.url(path),
            "hashes": {"sha256": digest},
            "core-metadata": {"sha256": hashlib.sha256(release.metadata).hexdigest()},
            "upload-time": release.uploaded,
        }
        self._files.setdefault(release.name, []).append(file)
        self.answers[f"/simple/{release.name}/"] = lambda ask: self._list(ask, release.name)
        return digest

    def _list(self, ask: Ask, name: str) -> Reply:
        files = self._files[name]
        kind = "application/vnd.pypi.simple.v1+json"
        if kind in ask.headers.get("Accept", ""):
            text = json.dumps({"meta": {"api-version": "1.1"}, "name": name, "files": files})
        else:
            kind = "text/html"
            links = [f'<a href="{one["url"]}#sha256={one["hashes"]["sha256"]}">{one["filename"]}</a>' for one in files]
            text = f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>"
        return Reply(200, {"Content-Type": kind}, text.encode())

    def stand_in_for(self, lock: Path, target: Path, real: Iterable[str] = (), uv: Path | None = None) -> None:
        """Serve a stand-in for each pin of ``lock``, and a newer release; write ``target``, the lock of the stand-ins.

        Where the same release is installed here, its stand-in has its requirements, and its files if it is in ``real``.
        """
        real = set(real)

        def one(match: re.Match[str]) -> str:
            name, version, marker = match.groups()
            installed = _installed(name, version)
            files: dict[str, bytes] = {}
            if name == "uv" and uv is not None:
                files = {"{stem}.data/scripts/uv": f'#!/bin/sh\nexec "{uv}" "$@"\n'.encode()}
            elif installed is not None and name in real:
                files = dict(_files(installed))
            requires = tuple(installed.requires or ()) if installed is not None else ()
            extras = tuple(installed.metadata.get_all("Provides-Extra") or ()) if installed is not None else ()
            digest = self.add(Release(name, version, requires, extras, files))
            self.add(Release(name, NEWER, requires, extras))
            return f"{name}=={version}{marker} \\\n    --hash=sha256:{digest}\n"

        target.write_text(PIN.sub(one, lock.read_text()))


def _installed(name: str, version: str) -> Distribution | None:
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return None
    return found if found.version == version else None


def _files(installed: Distribution) -> Iterable[tuple[str, bytes]]:
    for path in installed.files or ():
        if ".." not in path.parts and "__pycache__" not in path.parts and ".dist-info" not in path.parts[0]:
            yield str(path), Path(str(path.locate())).read_bytes()
    entry_points = installed.read_text("entry_points.txt")
    if entry_points:
        yield "{stem}.dist-info/entry_points.txt", entry_points.encode()
