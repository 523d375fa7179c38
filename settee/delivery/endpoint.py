"""A caller's S3 endpoint: read by one parser only, and reached only where it is on the public Internet.

A host that two parsers read differently, or that a name server answers differently the second time, would have the
worker speak to its own network for a stranger.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Any
from urllib.parse import urlsplit

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

NOT_PUBLIC = "is not on the public Internet (ALLOW_PRIVATE_S3CONFIG permits it)"
_UNREADABLE = "is not a URL: its host or port cannot be read"
#: NAT64 (RFC 6052) and IPv4-compatible addresses (RFC 4291, 2.5.5.1) end with an IPv4 address.
_ENDING_IN_IPV4 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))


class NotPublic(Exception):
    """The host has an address that is not public."""


def normal_endpoint(url: str) -> str:
    """The endpoint put together anew from its parts, so that whoever parses it next finds the same host.

    Raises ValueError with what is wrong with it, to follow its name.
    """
    if re.search(r"[\x00-\x20\x7f\\?#@]", url):
        raise ValueError("has a character that no endpoint may have (a space, \\, ?, # or @)")
    if problem := unreadable(url):
        raise ValueError(problem)
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    if ":" in host:
        host = f"[{host}]"
    # "%" would be an IPv6 zone, or an escape that some parsers decode.
    if not re.fullmatch(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]", host) or port == 0:
        raise ValueError(_UNREADABLE)
    return f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{parts.path.rstrip('/')}"


def unreadable(url: str) -> str | None:
    """Why no host and port can be read from an endpoint, the operator's own or a caller's."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        if host and ":" in host:
            ipaddress.IPv6Address(host)
    except ValueError:
        return _UNREADABLE
    if parts.scheme not in ("http", "https"):
        return "must start with https:// or http://"
    return None if host else "has no host"


def endpoint_problem(url: str) -> str | None:
    """Why a caller's endpoint may not be used. Looks the host up."""
    try:
        host = urlsplit(normal_endpoint(url)).hostname or ""
        public_addresses(host)
    except ValueError as error:
        return str(error)
    except NotPublic:
        return NOT_PUBLIC
    except OSError:
        return "has a host that cannot be found"
    return None


def public_addresses(host: str, port: int | None = None) -> list[str]:
    """The host's addresses. Raises NotPublic when any is not public, OSError when there is none."""
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError("this name cannot be looked up") from error
    found = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
    if not found:
        raise OSError("this name has no address")
    if not all(is_public(text) for text in found):
        raise NotPublic
    return found


def is_public(text: str) -> bool:
    """Whether an address is a public host's, also where an IPv6 address carries an IPv4 one that is reached."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return _plain(address.ipv4_mapped)
        if not all(_plain(inner) for inner in _carried(address)):
            return False
    return _plain(address)


def _carried(address: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses within: 6to4 (RFC 3056), Teredo (RFC 4380), NAT64 and IPv4-compatible."""
    inner = [*(address.teredo or ())]
    if address.sixtofour is not None:
        inner.append(address.sixtofour)
    if any(address in network for network in _ENDING_IN_IPV4):
        inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return inner


def _plain(address: IPAddress) -> bool:
    # is_global alone calls multicast and reserved addresses global.
    return address.is_global and not (
        address.is_multicast or address.is_reserved or address.is_link_local or address.is_private
    )


def guard(client: Any) -> None:
    """Have a botocore client connect only to addresses that were looked up and checked for that very connection."""
    from botocore import awsrequest

    class Http(_Checked, awsrequest.AWSHTTPConnection):  # type: ignore[misc]  # botocore has no types
        pass

    class Https(_Checked, awsrequest.AWSHTTPSConnection):  # type: ignore[misc]
        pass

    class HttpPool(awsrequest.AWSHTTPConnectionPool):  # type: ignore[misc]
        ConnectionCls = Http

    class HttpsPool(awsrequest.AWSHTTPSConnectionPool):  # type: ignore[misc]
        ConnectionCls = Https

    # botocore has no public way to choose these; a proxy, which would look the name up itself, is off (s3.py).
    client._endpoint.http_session._manager.pool_classes_by_scheme = {"http": HttpPool, "https": HttpsPool}


class _Checked:
    """An urllib3 connection that takes the name it was given for certificates, and a checked address to connect."""

    _dns_host: str
    port: int

    def _new_conn(self) -> Any:
        from urllib3.exceptions import NewConnectionError

        name = self._dns_host
        try:
            found = public_addresses(name.strip("[]"), self.port)
        except OSError as error:
            raise NewConnectionError(self, "the host cannot be found") from error  # type: ignore[arg-type]
        try:
            for address in found[:-1]:
                self._dns_host = address
                try:
                    return super()._new_conn()  # type: ignore[misc]
                except (NewConnectionError, OSError):
                    continue
            self._dns_host = found[-1]
            return super()._new_conn()  # type: ignore[misc]
        finally:
            self._dns_host = name
