"""What stands in for weights: the hash of the model file that was really there, and what was done to it since."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

from settee.base.files import sha256_of

#: Longest header that the safetensors library reads.
_MOST_HEADER_BYTES = 100_000_000
_CHUNK_BYTES = 1 << 20


class SafetensorError(Exception):
    """A .safetensors file is not one; reported under the name of the library's exception."""


SafetensorError.__module__ = "safetensors._safetensors_rust"


def digest_of(*parts: object) -> str:
    """One hash for plain values, in which their types and order count."""
    return hashlib.sha256(json.dumps(parts, allow_nan=True).encode()).hexdigest()


@dataclass(frozen=True)
class Weights:
    """A MODEL, CLIP or VAE: two are the same when their digests are."""

    kind: str
    file: str
    """SHA-256 of the file it came from."""
    changes: tuple[tuple[object, ...], ...] = ()

    def with_lora(self, file: str, strength: float) -> Weights:
        """With a LoRA on top. The order of LoRAs does not count: each adds to the weights."""
        return self if strength == 0 else self._changed("lora", file, strength)

    def at_layer(self, layer: int) -> Weights:
        """A CLIP that stops at a layer."""
        kept = tuple(change for change in self.changes if change[0] != "layer")
        return replace(self, changes=kept)._changed("layer", layer)

    def _changed(self, *change: object) -> Weights:
        return replace(self, changes=(*self.changes, change))

    @property
    def digest(self) -> str:
        """A hash of the file and all changes."""
        return digest_of(self.kind, self.file, sorted(map(list, self.changes), key=repr))

    def __str__(self) -> str:
        return f"{self.kind}({self.digest[:12]})"


@dataclass(frozen=True)
class Conditioning:
    """A CONDITIONING: the hash of a text and of the CLIP that read it."""

    digest: str

    def __str__(self) -> str:
        return f"conditioning({self.digest[:12]})"


def file_digest(path: str, check_interrupted: Callable[[], None]) -> str:
    """SHA-256 of a model file. Raises SafetensorError as the library would, and what ``check_interrupted`` raises."""
    with open(path, "rb") as file:
        if path.lower().endswith((".safetensors", ".sft")):
            problem = _header_problem(file.read(8), file.read, os.fstat(file.fileno()).st_size)
            if problem:
                raise SafetensorError(f"Error while deserializing header: {problem}")
    return sha256_of(path, check_interrupted)


def _header_problem(start: bytes, read: Callable[[int], bytes], size: int) -> str | None:
    """The library's words for a header that does not fit its file."""
    if len(start) < 8:
        return "header too small"
    (length,) = struct.unpack("<Q", start)
    if length > _MOST_HEADER_BYTES:
        return "header too large"
    if 8 + length > size:
        return "invalid header length"
    try:
        tensors = json.loads(read(length))
        ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
        if 8 + length + max(ends, default=0) != size:
            return "incomplete metadata, file not fully covered"
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return "invalid JSON in header"
    return None
