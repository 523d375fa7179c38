"""Clients of S3, kept from one job to the next, and the one look at a bucket before anything is made for it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any
from urllib.parse import quote

from settee.net.addresses import connect_public, pool_classes
from settee.s3.error_table import CERTAIN, S3Error, code_of, explain, status_of
from settee.s3.target import Target

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
#: Requests at a time, and so connections kept.
LANES = 8
_CLIENTS = 4
#: What botocore makes of one of ours. It knows best what to send again at once.
BOTOCORE_ATTEMPTS = 2

_clients: OrderedDict[tuple[object, ...], Any] = OrderedDict()
_clients_lock = threading.Lock()
#: Buckets that exist.
_seen: set[tuple[object, ...]] = set()


def client_for(target: Target) -> Any:
    """Return a boto3 client, kept for the next job with the same keys: making one takes a tenth of a second.

    Raises S3Error for an endpoint that is not a URL, ImportError without boto3.
    """
    key = _identity(target)
    with _clients_lock:
        client = _clients.pop(key, None)
        if client is None:
            client = _new_client(target)
        _clients[key] = client
        # The oldest is dropped, not closed: another thread may still use it.
        while len(_clients) > _CLIENTS:
            _clients.popitem(last=False)
        return client


def forget(target: Target) -> None:
    """Have the next job make a client of its own."""
    with _clients_lock:
        _clients.pop(_identity(target), None)
    _seen.discard((*_identity(target), target.bucket))


def url_for(target: Target, key: str) -> str:
    """Return a presigned GET, or the public address. Signing is local: no request is made. Raises as client_for."""
    if target.public_url:
        return f"{target.public_url.rstrip('/')}/{quote(key)}"
    where = {"Bucket": target.bucket, "Key": key}
    url: str = client_for(target).generate_presigned_url("get_object", Params=where, ExpiresIn=target.expires_s)
    return url


def look(target: Target) -> S3Error | None:
    """Look at the bucket, once: return why S3 takes nothing, where it states that for certain."""
    from botocore.exceptions import BotoCoreError, ClientError

    if (*_identity(target), target.bucket) in _seen:
        return None
    try:
        client = client_for(target)
        try:
            client.head_bucket(Bucket=target.bucket)
        except ClientError as error:
            if status_of(error) >= 500:
                return None
            # An answer to HEAD has no code. And keys may write to a bucket that they may not list; and an address that
            # names a bucket itself knows no other.
            client.list_objects_v2(Bucket=target.bucket, MaxKeys=1)
    except ClientError as error:
        return explain(error, target) if code_of(error) in CERTAIN else None
    except S3Error as error:
        return error
    except (BotoCoreError, OSError):
        return None  # the upload may find it better
    if len(_seen) > 100:  # callers' own
        _seen.clear()
    _seen.add((*_identity(target), target.bucket))
    return None


def _identity(target: Target) -> tuple[object, ...]:
    given = (target.endpoint_url, target.access_key, target.secret_key, target.region, target.path_style)
    return (*given, target.guarded, target.verify_tls)


def _new_client(target: Target) -> Any:
    import boto3.session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path" if target.path_style else "virtual"},
        retries={"mode": "standard", "total_max_attempts": BOTOCORE_ATTEMPTS},
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        max_pool_connections=LANES + 2,
        # botocore's default sends checksums as aws-chunked trailers, which many S3-compatible servers refuse.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        user_agent_extra="settee",
        # None means those of the environment; the address of what a proxy connects to cannot be checked.
        proxies={} if target.guarded else None,
    )
    if not target.verify_tls:
        import urllib3

        # The operator knows; one warning for each request tells nothing new.
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    endpoint = target.setting("ENDPOINT_URL")
    try:
        client = boto3.session.Session().client(
            "s3",
            endpoint_url=target.endpoint_url,
            aws_access_key_id=target.access_key,
            aws_secret_access_key=target.secret_key,
            region_name=target.region,
            config=config,
            # None means the file of certificates that the environment names, or botocore's own.
            verify=None if target.verify_tls else False,
        )
    except ValueError as error:
        raise S3Error(f"{endpoint} is not the address of an S3 API", settings=(endpoint,)) from error
    except BotoCoreError as error:
        # It reads the machine's AWS_* variables and files too: AWS_PROFILE may name what does not exist.
        raise S3Error(f"S3 cannot be used with this machine's AWS_* variables: {type(error).__name__}") from error
    if target.guarded:
        _guard(client)
    return client


def _guard(client: Any) -> None:
    """Have a botocore client connect only to addresses that were looked up and checked for that very connection."""
    from botocore.awsrequest import AWSHTTPConnectionPool, AWSHTTPSConnectionPool

    class Checked:
        def _new_conn(self) -> Any:
            return connect_public(self, super()._new_conn)  # type: ignore[misc]

    pools = pool_classes(Checked, AWSHTTPConnectionPool, AWSHTTPSConnectionPool)
    # botocore has no public way to choose these.
    client._endpoint.http_session._manager.pool_classes_by_scheme = pools
