"""What is known of a file before it is asked for, and what was learned from a go at it."""

from __future__ import annotations

from dataclasses import dataclass

from settee.errors import IntegrityError
from settee.models.address import Address
from settee.models.transfer.probe import Facts


@dataclass(frozen=True)
class Given:
    """What the caller says of the file; it goes before what its address says."""

    size: int | None = None
    sha256: str | None = None

    def with_address(self, address: Address) -> Facts:
        """What must hold. Raises IntegrityError when caller and address contradict each other."""
        given, said = (text.lower() if text else None for text in (self.sha256, address.sha256))
        if given and said and given != said:
            raise wrong_hash(address.where, given, said)
        if self.size is not None and address.size is not None and self.size != address.size:
            raise wrong_size(address.where, self.size, address.size)
        return Facts(address.size if self.size is None else self.size, address.validator, given or said)


@dataclass(frozen=True)
class How:
    """What was learned from a go before this one."""

    #: Ranges are of no use here.
    plain: bool = False
    #: The file changed: the source is asked for its newest address first.
    renew: bool = False


def wrong_size(where: str, expected: int, found: int) -> IntegrityError:
    return IntegrityError(
        f"{where} has {found:,} bytes instead of {expected:,}: correct the entry, or replace the file at its source",
        details={"expected_size": expected, "size": found},
    )


def wrong_hash(where: str, expected: str, found: str) -> IntegrityError:
    return IntegrityError(
        f"{where} has the sha256 {found} instead of {expected}: correct the entry, or replace the file at its source",
        details={"expected_sha256": expected, "sha256": found},
    )
