"""Which hosts a URL may lead to: public ones, this machine's own, and those where clouds keep credentials.

A host that two parsers read differently, or that a name server answers differently the second time, would have the
worker speak to its own network for a stranger. So a name is looked up once, for the very connection that is made.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from typing import Any

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

#: NAT64 (RFC 6052) and IPv4-compatible addresses (RFC 4291, 2.5.5.1) end with an IPv4 address.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_ENDING_IN_IPV4 = (_NAT64, ipaddress.IPv6Network("::/96"))
#: Services of the machine itself on EC2: fd00:ec2::254 has its credentials, fd00:ec2::23 those of its containers.
_AWS = ipaddress.IPv6Network("fd00:ec2::/32")


class NotPublic(Exception):
    """The host has an address that is not public."""


def public_addresses(host: str, port: int | None = None) -> list[str]:
    """Look the host up. Raises NotPublic when any of its addresses is not public, OSError when it has none."""
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
    """Return True for the address of a public host, also where an IPv6 address carries an IPv4 one that is reached."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return _is_plainly_public(address.ipv4_mapped)
        if not all(_is_plainly_public(inner) for inner in _carried(address)):
            return False
    return _is_plainly_public(address)


def is_loopback(host: str) -> bool:
    """Return True if a host name or address is on the loopback interface, in any of its spellings (``127.1``)."""
    host = normal_host(host)
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761, 6.3
        return True
    address = numeric(host)
    return address is not None and address.is_loopback


def is_this_machine(host: str) -> bool:
    """Return True if a connection to the host stays on this machine: loopback, ``0.0.0.0`` and ``::``."""
    address = numeric(normal_host(host))
    return is_loopback(host) or (address is not None and address.is_unspecified)


def holds_credentials(host: str) -> bool:
    """Return True for a numeric address where clouds keep a machine's credentials: link-local, and AWS's over IPv6."""
    address = numeric(normal_host(host))
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            address = ipaddress.IPv4Address(address.packed[-4:])
        elif address in _AWS:
            return True
    return address is not None and address.is_link_local


def normal_host(host: str) -> str:
    """Return the one spelling in which hosts are compared."""
    return host.strip().strip("[]").lower().rstrip(".")


def numeric(host: str) -> IPAddress | None:
    """Return the numeric address that a host is; None for a name."""
    try:
        address = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        try:
            # Also 127.1, 0x7f.1 and 2130706433, which a connection would take for addresses.
            return ipaddress.IPv4Address(socket.inet_aton(host)) if host[:1].isdigit() else None
        except (OSError, UnicodeEncodeError):
            return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped if mapped is not None else address


def connect_public(connection: Any, connect: Callable[[], socket.socket]) -> socket.socket:
    """Connect an urllib3 connection to an address that was looked up and checked for it; certificates keep its name.

    ``connect`` is the ``_new_conn`` of its class. Raises NotPublic, and what urllib3 raises.
    """
    from urllib3.exceptions import HTTPError, NameResolutionError

    name = connection._dns_host
    try:
        found = public_addresses(name.strip("[]"), connection.port)
    except OSError as error:
        raise NameResolutionError(name, connection, error) from error  # type: ignore[arg-type]
    try:
        for address in found[:-1]:
            connection._dns_host = address
            try:
                return connect()
            except (HTTPError, OSError):
                continue
        connection._dns_host = found[-1]
        return connect()
    finally:
        connection._dns_host = name


def pool_classes(mixin: type, *pools: Any) -> dict[str, Any]:
    """Return urllib3's pool classes by scheme, derived from ``pools`` (http, https), with ``mixin`` in connections."""

    def derived(pool: Any) -> Any:
        return type(pool.__name__, (pool,), {"ConnectionCls": type("Connection", (mixin, pool.ConnectionCls), {})})

    return dict(zip(("http", "https"), map(derived, pools), strict=True))


def _carried(address: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """Return the IPv4 addresses within: 6to4 (RFC 3056), Teredo (RFC 4380), NAT64 and IPv4-compatible."""
    inner = [*(address.teredo or ())]
    if address.sixtofour is not None:
        inner.append(address.sixtofour)
    if any(address in network for network in _ENDING_IN_IPV4):
        inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return inner


def _is_plainly_public(address: IPAddress) -> bool:
    # is_global alone calls multicast and reserved addresses global.
    return address.is_global and not (
        address.is_multicast or address.is_reserved or address.is_link_local or address.is_private
    )
