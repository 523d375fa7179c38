"""What a server says of a file before its first byte: size, validator, and the Hub's hash of an LFS file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from settee.models.transfer.route import Route
from settee.net.failures import Refused
from settee.net.http import Answer, number


@dataclass(frozen=True)
class Facts:
    """None is: not said."""

    size: int | None = None
    #: An ETag, or a date of last change.
    validator: str | None = None
    #: Hex.
    sha256: str | None = None


def probe(route: Route) -> Facts:
    """Ask with HEAD, or where that is refused (S3's signatures are for one method) for the first byte.

    Raises what :meth:`Route.ask` does.
    """
    try:
        answer, linked = route.ask("HEAD", {})
    except Refused:
        return _first_byte(route)
    answer.done()
    # Servers that do not care for HEAD say 0: that is no size.
    return _facts(answer.length or None, answer, linked)


def _first_byte(route: Route) -> Facts:
    try:
        answer, linked = route.ask("GET", {"Range": "bytes=0-0"})
    except Refused as refused:
        if refused.status == 416:  # of a file without any byte
            return Facts()
        raise
    size = total_of(answer) if answer.status == 206 else answer.length
    answer.drop()
    return _facts(size, answer, linked)


def _facts(size: int | None, answer: Answer, linked: Mapping[str, str]) -> Facts:
    linked_size = number(linked.get("x-linked-size"))
    # The Hub's ETag of an LFS file is its sha256, of any other a git hash of 40 digits.
    etag = linked.get("x-linked-etag", "").removeprefix("W/").strip('"')
    return Facts(
        size=size if linked_size is None else linked_size,
        validator=etag or validator_of(answer),
        sha256=etag.lower() if re.fullmatch(r"[0-9a-fA-F]{64}", etag) else None,
    )


def validator_of(answer: Answer) -> str | None:
    """What tells one state of a file from another: its ETag, else its date of last change."""
    etag = answer.headers.get("ETag", "").removeprefix("W/").strip()
    return etag or answer.headers.get("Last-Modified") or None


def span_of(answer: Answer) -> tuple[int, int, int | None] | None:
    """First byte, last byte and whole size by Content-Range; None when it is missing or unreadable."""
    text = answer.headers.get("Content-Range", "").strip()
    match = re.fullmatch(r"bytes\s+(\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", text, re.IGNORECASE | re.ASCII)
    if match is None:
        return None
    return int(match[1]), int(match[2]), None if match[3] == "*" else int(match[3])


def total_of(answer: Answer) -> int | None:
    span = span_of(answer)
    return None if span is None else span[2]
