"""A Hub-compatible server on loopback that the real huggingface_hub takes for one, with a second host for large files.

What it answers follows huggingface.co: HEAD and GET of ``/{repo}/resolve/{revision}/{file}``, LFS files redirected to
another host that needs no token (and must never see one), ``X-Error-Code`` for what is gated, private or missing.
Links, tokens, faults and speed are attributes; every request is kept in :attr:`HubServer.requests`.

As a process of its own, so that a bench does not share the client's interpreter:
``python -m tests.support.hub FOLDER [--rate BYTES_PER_S] [--latency S]`` serves ``FOLDER/org/name/**`` and prints one
line of JSON with the endpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.http_double import Ask
from tests.support.hub_answers import Host

#: Files above this are LFS files, unless `add` is told otherwise.
LFS_FROM = 1_000_000


@dataclass(frozen=True)
class HubBlob:
    """A file's content."""

    path: Path
    size: int
    sha256: str
    #: The git blob's name for a small file, the sha256 for an LFS file: what the Hub's ETag says.
    etag: str
    lfs: bool
    #: Served by Xet alone: the Hub names its hash, and redirects nowhere.
    xet: bool = False


@dataclass
class Repo:
    """Commits and the names that lead to them."""

    gated: bool = False
    private: bool = False
    commits: dict[str, dict[str, HubBlob]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit_of(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)


@dataclass(frozen=True)
class Request:
    """What was asked of which host ("hub" or "cdn"), and what came of it."""

    host: str
    ask: Ask

    @property
    def method(self) -> str:
        return self.ask.method

    @property
    def sent(self) -> int:
        """Bytes of the body that were handed to the socket."""
        return self.ask.sent

    @property
    def authorization(self) -> str | None:
        return self.ask.headers.get("Authorization")

    @property
    def user_agent(self) -> str:
        return str(self.ask.headers.get("User-Agent", ""))


@dataclass
class Faults:
    """What goes wrong. All offsets are in the file, whatever range is asked for."""

    #: Whether Range is honoured; without it every GET is answered with the whole file.
    ranges: bool = True
    #: The connection is reset once each of these offsets is reached; each works once.
    cuts: set[int] = field(default_factory=set)
    #: Byte that is wrong ...
    corrupt_at: int | None = None
    #: ... for so many answers that hold it.
    corrupt_times: int = 1
    #: Answers (status, headers) for the next GETs of files, before anything else is looked at.
    next_answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    #: The same for the next HEADs.
    heads: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    #: Seconds before every answer.
    latency_s: float = 0.0
    #: Bytes per second of all answers together; None is as fast as it goes.
    rate: float | None = None
    #: Bodies stop at this offset and the connection stays open, silent, until the server stops; works once.
    stall_at: int | None = None
    #: Answer nothing at all, to anything, until the server stops.
    silent: bool = False
    #: GETs of files by anybody but huggingface_hub answer 403, as for what only Xet serves.
    library_only: bool = False
    #: Whether Content-Length and Content-Range say how long a body is.
    lengths: bool = True


class HubServer:
    """Use as a context manager. ``endpoint`` is the Hub, ``cdn`` the other host that large files redirect to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.repos: dict[str, Repo] = {}
        #: Token -> repositories that it opens (private ones) or whose licence its account accepted (gated ones).
        self.tokens: dict[str, set[str]] = {}
        #: Old repository name -> new name, as the Hub redirects after a move.
        self.moved: dict[str, str] = {}
        #: Whether LFS files are redirected to the other host.
        self.redirects = True
        self.faults = Faults()
        #: Raised by `expire`: links of an earlier generation answer 403.
        self.generation = 0
        self.lock = threading.Lock()
        #: When the line that all answers share is free again.
        self.free_at = 0.0
        self._hosts = [Host(self, "hub"), Host(self, "cdn")]

    @property
    def endpoint(self) -> str:
        return self._hosts[0].origin

    @property
    def cdn(self) -> str:
        return self._hosts[1].origin

    def __enter__(self) -> HubServer:
        for host in self._hosts:
            host.up()
        return self

    def __exit__(self, *exc: object) -> None:
        for host in self._hosts:
            host.close()

    # --- What it holds -------------------------------------------------------------------------------
    def repo(self, name: str, *, gated: bool = False, private: bool = False) -> Repo:
        """Make a repository, or change who may read it."""
        found = self.repos.setdefault(name, Repo())
        found.gated, found.private = gated, private
        return found

    def add(
        self,
        repo: str,
        filename: str,
        content: bytes | Path,
        *,
        revision: str = "main",
        lfs: bool | None = None,
        xet: bool = False,
    ) -> HubBlob:
        """Commit a file to a branch. A Path is served from where it lies."""
        path = content if isinstance(content, Path) else self._store(content)
        size = path.stat().st_size
        lfs = size > LFS_FROM if lfs is None else lfs
        sha256 = _digest(path, "sha256")
        etag = sha256 if lfs else _digest(path, "sha1", f"blob {size}\0".encode())
        blob = HubBlob(path, size, sha256, etag, lfs, xet)
        found = self.repos.setdefault(repo, Repo())
        files = {**found.commits.get(found.refs.get(revision, ""), {}), filename: blob}
        named = json.dumps([repo, revision, sorted((name, file.etag) for name, file in files.items())])
        commit = hashlib.sha1(named.encode()).hexdigest()
        found.commits[commit] = files
        found.refs[revision] = commit
        return blob

    def commit(self, repo: str, revision: str = "main") -> str:
        return self.repos[repo].refs[revision]

    def expire(self) -> None:
        """Have all links to the other host that were handed out so far answer 403."""
        self.generation += 1

    def _store(self, content: bytes) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / hashlib.sha256(content).hexdigest()
        path.write_bytes(content)
        return path

    def blob(self, sha256: str) -> HubBlob | None:
        for repo in self.repos.values():
            for files in repo.commits.values():
                for file in files.values():
                    if file.sha256 == sha256:
                        return file
        return None

    # --- What was asked ------------------------------------------------------------------------------
    @property
    def requests(self) -> list[Request]:
        """Everything so far, in the order in which it came."""
        for host in self._hosts:
            host.settle()
        return sorted(
            (Request(host.role, ask) for host in self._hosts for ask in host.asked), key=lambda one: one.ask.at
        )

    def asked(self, host: str | None = None, method: str | None = None) -> list[Request]:
        return [one for one in self.requests if host in (None, one.host) and method in (None, one.method)]

    @property
    def served(self) -> int:
        """Bytes of files handed to clients since the last `forget`."""
        return sum(
            one.sent for one in self.asked(method="GET") if one.ask.status in (200, 206) and "/api/" not in one.ask.path
        )

    def authorizations(self) -> Mapping[str, set[str | None]]:
        """Host -> the Authorization headers that it saw."""
        found: dict[str, set[str | None]] = {"hub": set(), "cdn": set()}
        for request in self.asked():
            found[request.host].add(request.authorization)
        return found

    def counts(self) -> Counter[str]:
        """How often "hub HEAD", "cdn GET", … was asked."""
        return Counter(f"{request.host} {request.method}" for request in self.asked())

    def forget(self) -> None:
        for host in self._hosts:
            host.asked.clear()


def _digest(path: Path, algorithm: str, head: bytes = b"") -> str:
    digest = hashlib.new(algorithm, head)
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def main() -> None:
    """Serve a folder until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description="Serve FOLDER/org/name/** like the Hugging Face Hub, on loopback.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rate", type=float, help="bytes per second of all answers together")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before every answer")
    parser.add_argument("--no-redirect", action="store_true", help="serve LFS files from the Hub's own host")
    chosen = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with tempfile.TemporaryDirectory() as scratch, HubServer(Path(scratch)) as hub:
        hub.faults.rate, hub.faults.latency_s, hub.redirects = chosen.rate, chosen.latency, not chosen.no_redirect
        for path in sorted(item for item in chosen.folder.rglob("*") if item.is_file()):
            organisation, name, *rest = path.relative_to(chosen.folder).parts
            hub.add(f"{organisation}/{name}", "/".join(rest), path)
        print(json.dumps({"endpoint": hub.endpoint, "cdn": hub.cdn}), flush=True)
        ended.wait()


if __name__ == "__main__":
    main()
