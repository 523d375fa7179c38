"""RunPod's cache of Hugging Face models on the host, laid out as huggingface_hub does.

    models--ORG--NAME/refs/<branch or tag>          a text file: the commit
    models--ORG--NAME/snapshots/<commit>/<file>     a link to ../../blobs/<etag>

``<etag>`` is the sha256 of an LFS file, the git blob's name of a small one. Since huggingface_hub 2 a blob may itself
be a link, to ``blobs/`` of the whole cache. Somebody else fills the cache, perhaps at this moment: what is not a whole
file in its place counts as absent.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import threading
from pathlib import Path

from settee.models.entry import HubFile

log = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: How huggingface_hub ends the names of files that it is still writing.
_UNFINISHED = ".incomplete"

_MOST_TOLD = 1000
_told: set[str] = set()
_told_lock = threading.Lock()


def find(
    file: HubFile, cache: Path, *, size: int | None = None, sha256: str | None = None, is_private: bool = False
) -> Path | None:
    """The file in the snapshot that its revision names, or None. Follows refs/<revision>, never any other snapshot.

    ``size`` and ``sha256``, when given, must match what the cache says of the file; its bytes are not read. Something
    that is there but cannot be used is logged, once; not of a file that is private (a job's).
    """
    names = [*file.repo.split("/"), *file.revision.split("/"), *file.filename.split("/")]
    if not all(names) or ".." in names or "." in names or "\0" in "".join(names):
        return None
    repo = cache / "--".join(("models", *file.repo.split("/")))
    commit = _commit(repo, file.revision)
    if commit is None:
        return None
    path = repo / "snapshots" / commit / file.filename
    try:
        found = path.lstat()
    except OSError:
        return None  # this snapshot does not have the file: nothing odd
    problem = _problem(path, found, repo, cache, size, sha256)
    if problem is None:
        return path
    if not is_private:
        _tell_once(file, problem)
    return None


def snapshot(file: HubFile, cache: Path) -> tuple[str, list[list[str | None]]] | None:
    """The commit and the files of the snapshot that a revision names, as settee.models.sources.hub.files_of lists them;
    None without one. It may lack files: nothing here says which there should be."""
    repo = cache / "--".join(("models", *file.repo.split("/")))
    commit = _commit(repo, file.revision)
    root = repo / "snapshots" / (commit or "none")
    names = [os.path.relpath(os.path.join(at, name), root) for at, _, names in os.walk(root) for name in names]
    return (commit, [[name, None, None] for name in sorted(names)]) if commit and names else None


def sha256_of(path: Path) -> str | None:
    """The sha256 that the cache knows of a file it holds, by its blob's name; None for files that are not LFS files."""
    try:
        name = os.path.basename(os.readlink(path))
    except OSError:
        return None
    return name if _SHA256.fullmatch(name) else None


def _commit(repo: Path, revision: str) -> str | None:
    try:
        # A branch with slashes lies in folders below refs/.
        commit = (repo / "refs" / revision).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        commit = revision
    return commit if _COMMIT.fullmatch(commit) else None


def _problem(
    path: Path, found: os.stat_result, repo: Path, cache: Path, size: int | None, sha256: str | None
) -> str | None:
    """Why what lies at ``path`` cannot be used."""
    real = os.path.realpath(path)
    inside = (os.path.realpath(repo) + os.sep, os.path.realpath(cache / "blobs") + os.sep)
    if not real.startswith(inside):
        return "it leads out of the cache"
    if stat.S_ISLNK(found.st_mode):
        try:
            found = os.stat(real)
        except OSError:
            return "its blob is not there"
    if not stat.S_ISREG(found.st_mode):
        return "it is not a file"
    if real.endswith(_UNFINISHED):
        return "it is not whole yet"
    if size is not None and found.st_size != size:
        return f"it has {found.st_size} bytes instead of {size}"
    known = sha256_of(path)
    if sha256 is not None and known is not None and known != sha256:
        return f"its sha256 is {known} instead of {sha256}"
    return None


def _tell_once(file: HubFile, problem: str) -> None:
    text = f"{file.where}: {problem}"
    with _told_lock:
        if text in _told or len(_told) >= _MOST_TOLD:
            return
        _told.add(text)
    log.warning("the host cache has %s, but %s: not used", file.where, problem)
