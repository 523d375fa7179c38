"""Is a file a whole model, by its first bytes and a few of its last; and the hashes of files larger than memory.

A problem follows the file's name in a sentence ("is a web page, not a model: …"); None means that none was found. A
safetensors file ends where the last of its header's tensors does.
"""

from __future__ import annotations

import hashlib
import operator
import os
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from settee.base.json_io import loads_strict
from settee.base.threads import Stopped

#: Longest header that the safetensors library reads.
MAX_HEADER_BYTES = 100_000_000
_SAFETENSORS = (".safetensors", ".sft")
_TORCH = (".pt", ".pth", ".ckpt")
#: Suffixes of files next to models that may well be text.
_TEXT = (".json", ".jsonc", ".yaml", ".yml", ".txt", ".md", ".jinja", ".html", ".xml", ".csv", ".toml", ".py")
_HEAD_BYTES = 1024
#: An error body or an LFS pointer is small; nothing larger is parsed to find out.
_TEXT_BYTES = 64 * 1024
#: A zip archive's end record and the longest comment after it.
_ZIP_END_BYTES = 22 + 65_535
_AGAIN = "delete it and let it be fetched again"


def model_problem(path: Path, name: str | None = None) -> str | None:
    """Return what is wrong with the file, by its suffix. ``name`` gives the suffix of a `.part`."""
    suffix = os.path.splitext(name or path.name)[1].lower()
    try:
        with _open(path) as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(_HEAD_BYTES)
            problem = _not_a_model(file, head, size, suffix)
            if problem:
                return problem
            if suffix in _SAFETENSORS:
                return _safetensors(file, size)
            if suffix == ".gguf" and head[:4] != b"GGUF":
                return f"is not a GGUF file (it does not begin with GGUF): {_AGAIN}, or correct its name"
            if suffix in _TORCH:
                return _torch(file, head, size)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None


def _open(path: Path) -> BinaryIO:
    """Raises OSError, also for what is not a regular file (a named pipe would block indefinitely)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(0, "not a regular file")
    return open(fd, "rb")


def _not_a_model(file: BinaryIO, head: bytes, size: int, suffix: str) -> str | None:
    """Recognise text that servers send, and repositories hold, in place of a model."""
    if size == 0:
        return f"is empty: {_AGAIN}"
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return (
            "is a git-lfs pointer, a short text in place of the model: fetch the model itself "
            "(git lfs pull, or an address that serves the file and not the repository's text)"
        )
    if suffix in _TEXT:
        return None
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return (
            "is a web page (HTML), not a model: the address needs a login or token, or shows the file instead of "
            "serving it (on Hugging Face, /resolve/ serves what /blob/ shows)"
        )
    if text.startswith((b"<?xml", b"<error")):
        return "is an XML answer, most likely a server's error, not a model: check the address and its credentials"
    if text.startswith((b"{", b"[")) and size <= _TEXT_BYTES and _is_json(file):
        return "is a JSON text, most likely a server's error, not a model: check the address and its token"
    return None


def _is_json(file: BinaryIO) -> bool:
    try:
        file.seek(0)
        loads_strict(file.read(_TEXT_BYTES))
    except ValueError:
        return False
    return True


def _torch(file: BinaryIO, head: bytes, size: int) -> str | None:
    if head.startswith(b"PK\x03\x04"):
        file.seek(max(0, size - _ZIP_END_BYTES))
        return None if b"PK\x05\x06" in file.read() else f"is cut short (its archive has no end): {_AGAIN}"
    is_pickle = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    # The tar archives of PyTorch before 0.1.11 are still read by torch.load.
    if is_pickle or head[257:262] == b"ustar":
        return None
    return f"is not a PyTorch file (neither an archive nor a pickle): {_AGAIN}, or correct its name"


def _safetensors(file: BinaryIO, size: int) -> str | None:
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or (length <= MAX_HEADER_BYTES and 8 + length > size):
        return f"is cut short ({size} bytes, not even a whole header): {_AGAIN}"
    if length > MAX_HEADER_BYTES or length < 2:
        return f"is not a safetensors file (its first 8 bytes are not a header length): {_AGAIN}, or correct its name"
    try:
        header = loads_strict(file.read(length))
    except ValueError:
        return f"is not a safetensors file, or a damaged one (its header is not JSON): {_AGAIN}"
    if not isinstance(header, dict):
        return f"is a damaged safetensors file (its header is not a JSON object): {_AGAIN}"
    header.pop("__metadata__", None)
    try:
        end = max((operator.index(tensor["data_offsets"][1]) for tensor in header.values()), default=0)
    except (TypeError, KeyError, IndexError):
        return f"is a damaged safetensors file (its header has a tensor without a place): {_AGAIN}"
    missing = end - (size - 8 - length)
    if missing > 0:
        return f"is cut short ({missing} bytes are missing at its end): {_AGAIN}"
    return f"is damaged ({-missing} bytes too many at its end): {_AGAIN}" if missing else None


# --- hashes ------------------------------------------------------------------------------------------------

#: Large enough that the interpreter's share vanishes and its lock is free nearly all the time.
_CHUNK = 4 * 1024 * 1024


@dataclass(frozen=True)
class Hashes:
    """Bytes that were hashed, and their digests in hex."""

    size: int
    #: None where none was asked for.
    sha256: str | None
    #: Of 64 bits, for later checks.
    xxh3: str


class Hashing:
    """Takes a file's bytes in order."""

    def __init__(self, *, sha256: bool) -> None:
        import xxhash

        self.size = 0
        self._fast, self._strong = xxhash.xxh3_64(), hashlib.sha256() if sha256 else None

    def update(self, chunk: memoryview) -> None:
        self.size += len(chunk)
        self._fast.update(chunk)
        if self._strong is not None:
            self._strong.update(chunk)

    def result(self) -> Hashes:
        sha256 = None if self._strong is None else self._strong.hexdigest()
        return Hashes(self.size, sha256, self._fast.hexdigest())


def hash_file(path: Path | str, *, sha256: bool, stop: threading.Event | None = None) -> Hashes:
    """Read the file once. Raises OSError, Stopped."""
    hashing, buffer = Hashing(sha256=sha256), memoryview(bytearray(_CHUNK))
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while count := file.readinto(buffer):
            if stop is not None and stop.is_set():
                raise Stopped
            hashing.update(buffer[:count])
    return hashing.result()
