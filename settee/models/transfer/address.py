"""Where the bytes of one file can be had over HTTP, and what is known of them before the first one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
    #: Hex, when known (given by the operator, or X-Linked-ETag of an LFS file).
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


@dataclass(frozen=True)
class Facts:
    """Size, validator and hash of a file; None is unknown."""

    size: int | None = None
    #: An ETag, or a date of last change.
    validator: str | None = None
    #: Hex.
    sha256: str | None = None

    def with_address(self, address: Address) -> Facts:
        """Return these with the address's own where unknown. Raises IntegrityError when they contradict each other."""
        given, found = (text.lower() if text else None for text in (self.sha256, address.sha256))
        if given and found and given != found:
            raise wrong_hash(address.where, given, found)
        if self.size is not None and address.size is not None and self.size != address.size:
            raise wrong_size(address.where, self.size, address.size)
        return Facts(address.size if self.size is None else self.size, address.validator, given or found)


def wrong_size(where: str, expected: int, found: int) -> IntegrityError:
    """Return the error for a file of another size."""
    return IntegrityError(
        f"{where} has {found:,} bytes instead of {expected:,}: correct the entry, or replace the file at its source",
        details={"expected_size": expected, "size": found},
    )


def wrong_hash(where: str, expected: str, found: str) -> IntegrityError:
    """Return the error for a file with another content."""
    return IntegrityError(
        f"{where} has the sha256 {found} instead of {expected}: correct the entry, or replace the file at its source",
        details={"expected_sha256": expected, "sha256": found},
    )
