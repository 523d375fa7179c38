"""RunPod's cache of Hugging Face models on the host, laid out as huggingface_hub does.

    models--ORG--NAME/refs/<branch or tag>          a text file: the commit
    models--ORG--NAME/snapshots/<commit>/<file>     a link to ../../blobs/<etag>

``<etag>`` is the sha256 of an LFS file, the git blob's name of a small one. Since huggingface_hub 2 a blob may itself
be a link, to ``blobs/`` of the whole cache. Another process fills the cache, perhaps at this moment: anything but a
whole file in its place counts as absent.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import stat
from pathlib import Path

from settee.models.entry import HubFile
from settee.models.folder.place import blob_sha256

log = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")
#: The end of the names of files that huggingface_hub is still writing.
_UNFINISHED = ".incomplete"


def find(
    file: HubFile, cache: Path, *, size: int | None = None, sha256: str | None = None, is_private: bool = False
) -> Path | None:
    """Return the file in the snapshot that its revision names, or None. Follows refs/<revision> only.

    ``size`` and ``sha256``, when given, must match the cache's; the bytes are not read. A file that exists but cannot
    be used is logged, once, unless it is private (a job's).
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
        return None  # this snapshot does not have the file
    problem = _problem(path, found, repo, cache, size, sha256)
    if problem is None:
        return path
    if not is_private:
        _log_once(file.where, problem)
    return None


def snapshot(file: HubFile, cache: Path) -> tuple[str, list[list[str | None]]] | None:
    """Return a revision's commit and the files of its snapshot, in the form of Hub.files.

    None without a snapshot. It may lack files: the complete list is not known here.
    """
    repo = cache / "--".join(("models", *file.repo.split("/")))
    commit = _commit(repo, file.revision)
    root = repo / "snapshots" / (commit or "none")
    names = [os.path.relpath(os.path.join(at, name), root) for at, _, names in os.walk(root) for name in names]
    return (commit, [[name, None, None] for name in sorted(names)]) if commit and names else None


def _commit(repo: Path, revision: str) -> str | None:
    try:
        # A branch with slashes is in folders below refs/.
        commit = (repo / "refs" / revision).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        commit = revision
    return commit if _COMMIT.fullmatch(commit) else None


def _problem(
    path: Path, found: os.stat_result, repo: Path, cache: Path, size: int | None, sha256: str | None
) -> str | None:
    """Return why the file at ``path`` cannot be used."""
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
    known = blob_sha256(path)
    if sha256 is not None and known is not None and known != sha256:
        return f"its sha256 is {known} instead of {sha256}"
    return None


@functools.lru_cache(maxsize=1000)
def _log_once(where: str, problem: str) -> None:
    log.warning("the host cache has %s, but %s: not used", where, problem)
