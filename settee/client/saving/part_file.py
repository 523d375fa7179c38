"""A file on its way into the folder: fetched or decoded, counted, hashed, then given its name, or else removed.

A download (from S3's presigned addresses, or a ComfyUI's /view) that breaks off is resumed when the server can, and the
file is certainly still the same; else it starts again. An address is a secret (S3 signs it): errors name its host only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit

from settee.base.json_io import decode_base64
from settee.client.client_errors import JobFailed, JobStopped, NetworkError
from settee.client.job_outputs import Output, numbered, same
from settee.net.retry import Backoff

if TYPE_CHECKING:
    from settee.net.http import Answer, Http

#: Seconds for a connection, and of silence.
CONNECT_S, SILENT_S = 10.0, 30.0
#: Tries without a single byte gained between them.
MAX_TRIES = 6
BACKOFF = Backoff(first_s=0.5, longest_s=15.0)
_MAX_REDIRECTS = 5
_PIECE = 256 * 1024

_REFUSALS = {
    401: "it requires a key",
    403: "it refuses the address (HTTP 403): addresses of results expire",
    404: "the file does not exist (HTTP 404)",
    410: "the file does not exist any more (HTTP 410)",
}
#: Characters of a string that are written at once.
_TEXT_PIECE = 1024 * 1024


class Damaged(JobFailed):
    """An output that differs from what the worker stated."""


class Part:
    """A file that is written from its front. ``open_part`` makes them."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        #: Bytes so far.
        self.size = 0
        #: Identifies this version of the file on its server, where that is known.
        self.validator: str | None = None
        self._file = file
        self._sha256 = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Hex, of the bytes so far."""
        return self._sha256.hexdigest()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self.size += len(data)

    def start_over(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._sha256, self.size, self.validator = hashlib.sha256(), 0, None

    def finish(self) -> None:
        """Close the file. Raises OSError: a full disk may be reported only now."""
        self._file.close()


@contextlib.contextmanager
def open_part(folder: Path) -> Iterator[Part]:
    """Open a part in the folder. At the end it is removed, unless it was moved away. Raises OSError."""
    path = folder / f".settee-{secrets.token_hex(8)}.part"
    file = path.open("xb")
    try:
        yield Part(path, file)
    finally:
        # Closing writes what is buffered, which a full disk refuses a second time.
        with contextlib.suppress(OSError):
            file.close()
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def check(part: Part, output: Output) -> None:
    """Check the part. Raises Damaged when its size or hash differs from what the worker stated."""
    if output.size is not None and part.size != output.size:
        raise Damaged(f"it has {part.size:,} bytes, and the worker stated {output.size:,}")
    if output.sha256 is not None and part.sha256 != output.sha256.strip().lower():
        raise Damaged("its sha256 differs from the one that the worker stated: it was damaged on its way")


def write_base64(data: str, part: Part) -> None:
    """Decode into the part, a piece at a time. Standard and URL-safe alphabet, white space, a ``data:`` prefix and
    missing padding are all taken; anything else raises Damaged."""
    start = data.index(",") + 1 if data[:5].lower() == "data:" and "," in data[:200] else 0
    try:
        for piece in decode_base64(data, start):
            part.write(piece)
    except ValueError as error:
        raise Damaged("its base64 is broken: it was cut or damaged on its way") from error


def write_text(text: str, part: Part) -> None:
    """Write the string as UTF-8, line ends as they are."""
    for position in range(0, len(text), _TEXT_PIECE):
        # Half a surrogate pair is all that UTF-8 cannot take; cutting text into pieces makes no such halves.
        part.write(text[position : position + _TEXT_PIECE].encode(errors="replace"))


#: Appended to the whole name of a file: ``a.png`` and ``a.mp4`` of one job do not collide.
NOTE_SUFFIX = ".json"


def place(
    part: Path, folder: Path, name: str, taken: set[str], *, overwrite: bool, note: Callable[[str], bytes] | None
) -> Path:
    """Move the part to its name, or to the next free one: ``a-2.png``. Returns where it is now. Raises OSError.

    What was there before stays, unless ``overwrite``; names in ``taken`` (of this job, as :func:`names.same` has
    them) are never used twice, and the ones used are added. ``note`` makes the JSON to write next to a file of a name;
    with one, its name must be free too.
    """
    move = _replaced if overwrite else _taken
    for candidate in numbered(name):
        names = [candidate, candidate + NOTE_SUFFIX] if note else [candidate]
        paths = [folder / one for one in names]
        is_blocked = Path.is_dir if overwrite else os.path.lexists
        if any(same(one) in taken for one in names) or any(map(is_blocked, paths)):
            continue
        with open_part(folder) if note else contextlib.nullcontext() as written:
            if written and note:
                written.write(note(candidate))
                written.finish()
                if not move(written.path, paths[1]):
                    continue
        if move(part, paths[0]):
            taken.update(same(one) for one in names)
            return paths[0]
        if note:
            paths[1].unlink(missing_ok=True)
    raise AssertionError("numbers end")


def _replaced(source: Path, target: Path) -> bool:
    os.replace(source, target)
    return True


def _taken(source: Path, target: Path) -> bool:
    """Give the file this name as well, or instead; False when the name was taken, also by another process at the same
    time."""
    with contextlib.suppress(FileExistsError):
        try:
            os.link(source, target)
        except FileExistsError:
            raise
        except OSError:
            # FAT, many network shares and Android have no hard links: take the name with an empty file, then fill it.
            target.open("xb").close()
            try:
                os.replace(source, target)
            except OSError:
                target.unlink(missing_ok=True)
                raise
        return True
    return False


# --- downloads ------------------------------------------------------------------------------------------------


class Fetcher:
    """Fetches one job's outputs; a context manager, for its connections.

    ``timeout_s`` is for each file. ``stop``, set from any thread, ends the current one soon.
    """

    def __init__(self, *, timeout_s: float = 3600.0, stop: threading.Event | None = None) -> None:
        self._timeout_s, self._stop = timeout_s, stop or threading.Event()

    @cached_property
    def _http(self) -> Http:
        from settee.net.http import Http

        return Http(public_only=False, connect_s=CONNECT_S, read_s=SILENT_S, connections=4, proxies_local=False)

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *_: object) -> None:
        if "_http" in self.__dict__:
            self._http.close()

    def fetch(self, output: Output, part: Part) -> None:
        """Fetch the output's file into the empty part, whole and checked.

        Raises NetworkError, Damaged for a file that twice differs from what the worker stated, JobStopped when
        ``stop`` is set, and OSError of the disk.
        """
        deadline = time.monotonic() + self._timeout_s
        self._whole(output, part, deadline)
        try:
            check(part, output)
        except Damaged:
            # Joined wrongly, or damaged on the way: again, from the front.
            part.start_over()
            self._whole(output, part, deadline)
            check(part, output)

    def _whole(self, output: Output, part: Part, deadline: float) -> None:
        from settee.net.failures import Broken, Refused

        tries, host = 0, _host(output.data)
        while True:
            before = part.size
            try:
                return self._rest(output, part, deadline)
            except Refused as error:
                raise NetworkError(f"{host}: {_REFUSALS.get(error.status, error.reason)}") from error
            except Broken as error:
                tries = 1 if part.size > before else tries + 1
                pause_s = BACKOFF.pause_s(tries, error.wait_s)
                if tries >= MAX_TRIES or time.monotonic() + pause_s > deadline:
                    raise NetworkError(f"{host}: {error.reason}") from error
                self._stop.wait(pause_s)

    def _rest(self, output: Output, part: Part, deadline: float) -> None:
        """Fetch what is missing. Raises Broken, Refused, NetworkError, JobStopped."""
        from settee.net.failures import Broken, Refused

        # Bytes in place are kept where the server, or the hash, will show if they are of another file.
        if part.validator is None and output.sha256 is None:
            part.start_over()
        headers = {"Range": f"bytes={part.size}-"} if part.size else {}
        if part.size and part.validator is not None:
            headers["If-Range"] = part.validator
        self._check_wanted(output, deadline)
        try:
            answer = self._http.follow(output.data, headers, redirects=_MAX_REDIRECTS)
        except Refused as error:
            if error.status != 416 or not part.size:
                raise
            part.start_over()
            raise Broken("it has another file there than before") from error
        try:
            end = _end_of(part, answer)
            most = end if output.size is None else output.size
            for piece in answer.chunks(_PIECE):
                part.write(piece)
                if most is not None and part.size > most:
                    return  # what is too long already would only fill the disk
                self._check_wanted(output, deadline)
        finally:
            answer.done()
        if end is not None and part.size < end:
            raise Broken(f"the file breaks off after {part.size:,} of {end:,} bytes")

    def _check_wanted(self, output: Output, deadline: float) -> None:
        if self._stop.is_set():
            raise JobStopped("stopped before it was saved")
        if time.monotonic() > deadline:
            raise NetworkError(f"{_host(output.data)}: not done within {self._timeout_s:g} s")


def _end_of(part: Part, answer: Answer) -> int | None:
    """Return the size of the file once this answer has come whole; None when it is not stated. Raises Broken."""
    from settee.net.failures import Broken

    headers, span = answer.headers, answer.span
    if answer.status != 206:
        part.start_over()
    elif span is None or span[0] != part.size:
        part.start_over()
        raise Broken("it sends another piece of the file than it was asked for")
    is_packed = headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity")
    etag = headers.get("ETag", "")
    # Weak ones do not promise equal bytes, and bytes that are packed again need not be equal.
    part.validator = etag if etag.startswith('"') and not is_packed else None
    if is_packed or "Transfer-Encoding" in headers or answer.length is None:
        return None
    return part.size + answer.length


def _host(url: str) -> str:
    """Return the host for a message; a server named it, so only what a host's name can hold."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        host = ""
    return host if re.fullmatch(r"[A-Za-z0-9_.:-]{1,253}", host) else "its server"
