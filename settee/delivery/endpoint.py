"""A caller's S3 endpoint: read by one parser only, and reached only where it is on the public Internet.

A host that two parsers read differently, or that a name server answers differently the second time, would have the
worker speak to its own network for a stranger.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any
from urllib.parse import urlsplit

from settee.net.addresses import NotPublic, connect_public, public_addresses

NOT_PUBLIC = "is not on the public Internet (ALLOW_PRIVATE_S3CONFIG permits it)"
_UNREADABLE = "is not a URL: its host or port cannot be read"


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
    """An urllib3 connection to an address that was looked up and checked for it."""

    def _new_conn(self) -> Any:
        return connect_public(self, super()._new_conn)  # type: ignore[misc]
