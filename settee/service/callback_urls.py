"""Addresses of callbacks: those that a dispatch names, completed and checked against the operator's list."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

from settee.base.errors import InvalidRequest
from settee.net.addresses import holds_credentials, is_this_machine, normal_host

_MAX_URL = 2000


def checked(
    urls: Mapping[str, str | None], *, base_url: str | None = None, hosts: Sequence[str] | None = None
) -> dict[str, str]:
    """Return the addresses of a job's callbacks by their names, :func:`addressed`, if they are :func:`allowed`.

    An empty one means none. One below ``base_url`` is the operator's own and always allowed. Raises InvalidRequest
    with every problem, by the caller's names (``callbacks.status``).
    """
    problems: list[dict[str, Any]] = []
    found: dict[str, str] = {}
    for name, given in urls.items():
        if not given:
            continue
        try:
            found[name] = url = addressed(given, base_url)
            is_own = bool(base_url) and _origin(url) == _origin(base_url or "")
            if not is_own and not allowed(url, hosts):
                raise ValueError("this host is not among callbacks.allowed_hosts of the agent")
        except ValueError as error:
            problems.append({"path": f"callbacks.{name}", "problem": str(error)})
    if problems:
        raise InvalidRequest.from_problems(problems)
    return found


def addressed(url: str, base_url: str | None = None) -> str:
    """Return the address to post to.

    ``base_url`` replaces the scheme and host of relative and loopback addresses, and its path goes in front of
    theirs; any other address stays as it is. Raises ValueError, without the address, if it is invalid.
    """
    parts = _split(url)
    if base_url and (not parts.netloc or is_this_machine(parts.hostname or "")):
        base = _split(base_url)
        path = f"{base.path.rstrip('/')}/{parts.path.lstrip('/')}"
        # Credentials in the address were meant for the host that it named.
        url = urlunsplit((base.scheme, base.netloc, path, parts.query, ""))
        parts = _split(url)
    if not parts.netloc:
        raise ValueError("it is relative, and the agent has no callbacks.base_url to put in front of it")
    if parts.scheme not in ("http", "https"):
        raise ValueError("it is not an http(s) address")
    return url


def allowed(url: str, hosts: Sequence[str] | None) -> bool:
    """Return True if a job may have callbacks posted there.

    ``hosts``: names (``host``, ``host:port``, ``*.domain`` for all below it, ``[::1]:port``); None when there is no
    list. An empty one allows no host. Without a list, numeric addresses where clouds keep a machine's credentials, and
    no dispatcher is, are refused all the same: link-local ones, also by way of NAT64, and AWS's over IPv6. A name that
    leads there is not: who wants that refused sets a list.
    """
    try:
        parts = _split(url)
        host, port = normal_host(parts.hostname or ""), _port(parts)
    except ValueError:
        return False
    if not host:
        return False
    if hosts is None:
        return not holds_credentials(host)
    return any(_matches(entry, host, port) for entry in hosts)


def _split(url: str) -> SplitResult:
    """Raises ValueError for what two readers might understand differently."""
    if len(url) > _MAX_URL or re.search(r"[\x00-\x20\x7f\\]", url) or not url.isprintable():
        raise ValueError(f"it has a space, backslash or control character in it, or more than {_MAX_URL} characters")
    try:
        parts = urlsplit(url)
        _port(parts)
    except ValueError:
        raise ValueError("it is not a valid address") from None
    if not (parts.hostname or "").isascii():
        # Two spellings of one host, of which only one may be on a list.
        raise ValueError("its host has characters beyond ASCII: write it in its xn-- form")
    if (parts.scheme and not parts.netloc) or (parts.netloc and not parts.hostname):
        raise ValueError("it is not an http(s) address")
    return parts


def _port(parts: SplitResult) -> int:
    return parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)


def _origin(url: str) -> tuple[str, str, int]:
    parts = _split(url)
    return parts.scheme, normal_host(parts.hostname or ""), _port(parts)


def _matches(entry: str, host: str, port: int) -> bool:
    try:
        wanted = urlsplit(f"//{entry.strip()}")
        name, wanted_port = normal_host(wanted.hostname or ""), wanted.port
    except ValueError:
        return False
    if wanted_port not in (None, port):
        return False
    return host.endswith(name[1:]) if name.startswith("*.") else host == name
