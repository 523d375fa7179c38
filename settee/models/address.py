"""Where the bytes of one file can be had over HTTP, and what is known of them before the first one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Address:
    """One URL. ``headers`` (an Authorization, say) go to its own host only: a redirect elsewhere loses them."""

    url: str = field(repr=False)
    #: What an error may show of it: no query, no credentials.
    where: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: Bytes, when known before asking.
    size: int | None = None
    #: Hex, when known (given by the operator, or X-Linked-ETag of an LFS file).
    sha256: str | None = None
    #: What must still be the same for a partial download to go on: an ETag, a commit and path.
    validator: str | None = None
    #: A caller's address: only public hosts are connected to, at every redirect.
    public_only: bool = False
    #: False: the certificates of this address's own host are not checked; those of a redirect elsewhere are.
    verify_tls: bool = True
    #: A job named it: no log says which file it is.
    private: bool = False
    #: A fresh address of the same file, for signatures that expire.
    renew: Callable[[], Address] | None = field(default=None, repr=False)
    #: Fetches the whole file into a folder and returns its path: the way out where no plain HTTP serves it (Xet).
    by_library: Callable[[Path], Path] | None = field(default=None, repr=False)

    @property
    def logged(self) -> str:
        """What a log line may call it."""
        return "a model of the job's" if self.private else self.where
