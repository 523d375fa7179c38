"""Input files: from what a caller sends to files in ComfyUI's input folder.

Everything that can be known for free is found out first and reported at once: all bad names, then all broken data. Only
then are URLs fetched.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from settee.base.errors import InvalidRequest, PayloadTooLarge, StagingError, UnsafePath
from settee.base.files import closing_fd
from settee.base.job import Limits
from settee.base.json_io import BadData, decode_base64, decode_data_uri
from settee.base.settings import MIB, Settings
from settee.base.text import shown
from settee.comfyui.media import HEAD
from settee.comfyui.problems import near_matches
from settee.comfyui.workflow import Problem
from settee.staging import fetch
from settee.staging.fetch import Remote
from settee.staging.images import check_image, looks_like_image, unloadable
from settee.staging.workspace import Workspace, open_folder, safe_relative

if TYPE_CHECKING:
    from settee.engine.request import InputFile, JobRequest

_DATA_URI = re.compile(r"data:([^,]{0,1024}),", re.IGNORECASE)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{1,15}):/")
_MAX_URL = 16 * 1024
#: So many names are compared with one that is not there.
_MAX_NEAR = 2000


@dataclass(frozen=True)
class Staged:
    """An input file in its place."""

    name: str
    path: Path
    #: Bytes.
    size: int
    changed_ns: int
    #: Hex.
    sha256: str
    #: Why ComfyUI's own loaders make nothing, or half a picture, of it.
    unloadable: str | None

    def is_as_it_came(self) -> bool:
        """False once a node has written to it, or has taken it away."""
        try:
            now = self.path.lstat()
        except OSError:
            return False
        return (now.st_size, now.st_mtime_ns) == (self.size, self.changed_ns)


@dataclass
class Staging:
    """One job's input files on their way. ``notify(done, total)`` is called after each of them."""

    request: JobRequest
    workspace: Workspace
    settings: Settings
    limits: Limits
    notify: Callable[[int, int], None] = lambda done, total: None
    _done: dict[str, Staged] = field(default_factory=dict)
    _remotes: list[Remote] = field(default_factory=list)
    _problems: list[tuple[Problem, type[InvalidRequest]]] = field(default_factory=list)

    def run(self) -> tuple[Staged, ...]:
        """Write the files; returns them in order, ``files`` first.

        Raises InvalidRequest (UnsafePath or PayloadTooLarge when it is all that) with every problem of a stage,
        DownloadFailed, NoSpace, JobTimeout, JobCanceled.
        """
        self._check_names()
        self._write_inline()
        self._download()
        return tuple(self._done[file.name] for file in self._files)

    @property
    def _files(self) -> tuple[InputFile, ...]:
        return (*self.request.files, *self.request.images)

    def _check_names(self) -> None:
        """Raise for every name that breaks a rule, and where two want one place."""
        places: dict[PurePosixPath, str] = {}
        for file in self._files:
            try:
                # One name in two Unicode spellings is two files here and one on other systems.
                place = PurePosixPath(unicodedata.normalize("NFC", str(safe_relative(file.name))))
            except UnsafePath as error:
                self._problems.append(({"path": "images", "problem": error.message, "code": error.code}, UnsafePath))
                continue
            if place in places:
                twice = f"the file name {shown(file.name)} is given twice"
                self._problems.append(({"path": "images", "problem": twice}, InvalidRequest))
            places[place] = file.name
        for place, name in places.items():
            for folder in filter(places.__contains__, place.parents):
                clash = f"the file {shown(places[folder])} cannot also be a folder, that of {shown(name)}"
                self._problems.append(({"path": "images", "problem": clash}, InvalidRequest))
        self._raise()

    def _write_inline(self) -> None:
        """Decode and write what came with the request; what must be fetched is only noted."""
        for file in self._files:
            self.limits.check()
            with self._noting(file.name):
                chunks = self._source(file)
                if chunks is not None:
                    self._finish(file.name, self._write(file.name, chunks))
        self._raise()

    def _download(self) -> None:
        """Fetch the rest, then check the images among it."""

        def arrived(remote: Remote, sha256: str) -> None:
            with self._noting(remote.name):
                self._finish(remote.name, sha256)

        if self._remotes:
            fetch.Downloads(self._write, self.settings, self.limits).run(self._remotes, arrived)
        self._raise()

    @contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        """Note what is wrong with a file, so that all problems are raised together."""
        try:
            yield
        except BadData as error:
            self._problems.append(({"path": shown(name), "problem": str(error)}, InvalidRequest))
        except InvalidRequest as error:
            found = error.details.get("problems") or [{"problem": error.message}]
            self._problems += [({**problem, "path": shown(name)}, type(error)) for problem in found]

    def _raise(self) -> None:
        """Raise one error for all problems; of their own kind when they are all of one."""
        if self._problems:
            kinds = {kind for _, kind in self._problems}
            kind = kinds.pop() if len(kinds) == 1 else InvalidRequest
            raise kind.from_problems([problem for problem, _ in self._problems], "input file")

    def _write(self, name: str, chunks: Iterable[bytes]) -> str:
        return self.workspace.write(name, chunks, self.settings.max_file_bytes)

    def _source(self, file: InputFile) -> Iterable[bytes] | None:
        """Return the decoded data, piece by piece; None for an address, which is noted."""
        text = file.data
        start = len(text[:64]) - len(text[:64].lstrip())
        if not text or text.isspace():
            raise BadData("it has no data")
        uri = _DATA_URI.match(text, start)
        if uri is not None:
            return decode_data_uri(uri[1], text, uri.end())
        scheme = _SCHEME.match(text, start)
        if scheme is None:
            return decode_base64(text, start)
        if len(text) > _MAX_URL:
            raise BadData("this address is too long")
        kind, address = scheme[1].lower(), text.strip()
        if kind == "volume":
            return self._from_volume(address[len("volume:/") :].removeprefix("/"))
        try:
            if kind in ("http", "https"):
                self._remotes.append(fetch.web(file.name, address, self.settings))
            elif kind == "s3":
                self._remotes.append(fetch.s3(file.name, address, self.settings, self.request.bucket))
            else:
                raise ValueError(
                    f"{kind}:// addresses are not fetched: give base64, data:, http(s)://, s3:// or volume://"
                )
        except ValueError as error:
            raise BadData(str(error)) from error
        return None

    def _from_volume(self, name: str) -> Iterator[bytes]:
        """Give a file below INPUT_VOLUME_DIR, piece by piece: copied, since the workspace is wiped."""
        if self.settings.input_volume_dir is None:
            raise BadData(
                "this worker takes no files from a volume (INPUT_VOLUME_DIR is not set): send the file instead"
            )
        with _open_below(self.settings.input_volume_dir, name) as file:
            found = os.fstat(file.fileno())
            if found.st_size > self.settings.max_file_bytes:
                limit = f"MAX_FILE_MB ({self.settings.max_file_mb:g} MiB)"
                raise PayloadTooLarge(f"the file {shown(name)} of the volume is over {limit}")
            try:
                while piece := file.read(MIB):
                    self.limits.check()
                    yield piece
                now = os.fstat(file.fileno())
            except OSError as error:
                raise StagingError(f"the volume's file {shown(name)} cannot be read ({error.strerror})") from error
            if (now.st_size, now.st_mtime_ns) != (found.st_size, found.st_mtime_ns):
                raise StagingError(
                    f"the volume's file {shown(name)} changed while it was read: send the job again once it is whole",
                    retryable=True,
                )

    def _finish(self, name: str, sha256: str) -> None:
        """Check a file that has been written, and count it."""
        path = self.workspace.folders.input / name
        now = path.stat()
        with path.open("rb") as file:
            head = file.read(HEAD)
        # LoadImage goes by the first bytes as well, whatever the name's suffix is.
        if looks_like_image(head) or any(image.name == name for image in self.request.images):
            check_image(path, self.settings.max_pixels)
        self._done[name] = Staged(name, path, now.st_size, now.st_mtime_ns, sha256, unloadable(head))
        self.notify(len(self._done), len(self._files))


#: A FIFO would be waited for.
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


def _open_below(folder: Path, name: str) -> FileIO:
    """Open a regular file below a folder that others may write to. A link is followed when it stays inside.

    Raises UnsafePath for what is outside or not a file, InvalidRequest with near matches for what is not there, and
    StagingError for what cannot be read.
    """
    root = os.path.realpath(folder)
    path = os.path.realpath(os.path.join(root, safe_relative(name)))
    inside = PurePosixPath(os.path.relpath(path, root))
    if ".." in inside.parts:
        raise UnsafePath(f"the volume's file {shown(name)} is a link that leaves the folder of INPUT_VOLUME_DIR")
    try:
        with closing_fd(open_folder(root, inside.parts[:-1])) as folder_fd:
            fd = os.open(inside.name or ".", _FILE, dir_fd=folder_fd)
    except OSError as error:
        if not os.path.isdir(root):
            raise StagingError(
                "the folder of INPUT_VOLUME_DIR does not exist: is the volume attached to this worker?"
            ) from error
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            problem = {"problem": f"the volume has no file {shown(name)}", "near": _near(root, path, name)}
            raise InvalidRequest.from_problems([problem]) from error
        raise StagingError(f"the volume's file {shown(name)} cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise UnsafePath(f"the volume's {shown(name)} is not a file")
    return FileIO(fd)


def _near(root: str, path: str, name: str) -> list[str]:
    """Return addresses of files with a name like this one, below the nearest folder that there is."""
    folder = os.path.dirname(path)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    files = (os.path.join(at, file) for at, _, files in os.walk(folder) for file in files)
    return [
        f"volume://{near}" for near in near_matches(name, [os.path.relpath(f, root) for f in islice(files, _MAX_NEAR)])
    ]
