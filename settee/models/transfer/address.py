"""Where the bytes of one file can be had over HTTP, and what is known of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from settee.base.errors import IntegrityError


@dataclass(frozen=True)
class Address:
    """One URL. ``headers`` (an Authorization, say) go to its own host only: a redirect elsewhere loses them."""

    url: str = field(repr=False)
    #: The form that errors may show: no query, no credentials.
    where: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: Bytes, when known before asking.
    size: int | None = None
    #: Hex in lower case, when known (given by the operator, or X-Linked-ETag of an LFS file).
    sha256: str | None = None
    #: What must still be the same for a partial download to go on: an ETag, a commit and path.
    validator: str | None = None
    #: A caller's address: only public hosts are connected to, at every redirect.
    public_only: bool = False
    #: False: the certificates of this address's own host are not checked; those of a redirect elsewhere are.
    verify_tls: bool = True
    #: A job named it: no log line names the file.
    private: bool = False
    #: Returns a fresh address of the same file, for signatures that expire.
    renew: Callable[[], Address] | None = field(default=None, repr=False)
    #: Fetches the whole file into a folder and returns its path: the way out where no plain HTTP serves it (Xet).
    by_library: Callable[[Path], Path] | None = field(default=None, repr=False)

    @property
    def logged(self) -> str:
        """Return the name that log lines use."""
        return "a model of the job's" if self.private else self.where

    def held_to(self, size: int | None, sha256: str | None) -> Address:
        """Return it with the size and hash that are expected (None: any). Raises IntegrityError if it states others."""
        if None not in (size, self.size) and size != self.size:
            raise wrong_size(self.where, size, self.size)
        if sha256 and self.sha256 and sha256 != self.sha256:
            raise wrong_hash(self.where, sha256, self.sha256)
        return replace(self, size=self.size if size is None else size, sha256=sha256 or self.sha256)


def wrong_size(where: str, expected: int | None, found: int | None) -> IntegrityError:
    """Return the error for a file of another size."""
    return IntegrityError(
        f"{where} has {found:,} bytes instead of {expected:,}: correct the entry, or replace the file at its source",
        details={"expected_size": expected, "size": found},
    )


def wrong_hash(where: str, expected: str, found: str | None) -> IntegrityError:
    """Return the error for a file with another content."""
    return IntegrityError(
        f"{where} has the sha256 {found} instead of {expected}: correct the entry, or replace the file at its source",
        details={"expected_sha256": expected, "sha256": found},
    )
