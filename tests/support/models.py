"""Small models, entries, how they come to lie in the models folder, and another process that shares it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from settee.models.entry import HubFile, ModelEntry
from settee.models.folder.model_folder import ModelFolder


def safetensors(count: int = 64, fill: int = 0) -> bytes:
    """A whole safetensors file of one tensor of ``count`` bytes."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes([fill]) * count


DATA = safetensors()


def entry(path: str = "loras/m.safetensors", **changes: Any) -> ModelEntry:
    target, _, name = path.rpartition("/")
    given = {"source": HubFile("org/repo", name), "target": target, "name": name, "position": "MODELS entry 1"}
    return ModelEntry(**{**given, **changes})


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def put(models: ModelFolder, asked: ModelEntry, data: bytes = DATA) -> Path:
    """As a download, or something else than settee, does it."""
    path = models.path_of(asked)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name("unfinished").write_bytes(data)
    return path.with_name("unfinished").replace(path)


def download(
    models: ModelFolder, asked: ModelEntry, data: bytes = DATA, *, xxh3: str | None = "", **known: Any
) -> Path:
    import xxhash

    with models.claim(asked):
        path = put(models, asked, data)
        known = {
            "size": len(data),
            "sha256": None,
            "xxh3": xxhash.xxh3_64_hexdigest(data) if xxh3 == "" else xxh3,
            **known,
        }
        models.record(asked, **known)
    return path


def record_file(models: ModelFolder, path: str = "loras/m.safetensors") -> Path:
    return models.models_dir / ".settee" / f"{path}.json"


@contextmanager
def other_process(code: str, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A Python that runs ``code``; when this begins, it has printed its first line. Killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline(), "the other process failed"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
