"""A bucket with all that reaching it takes, and what the address of its endpoint means."""

from __future__ import annotations

import ipaddress
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from settee.net.addresses import NotPublic, public_addresses

if TYPE_CHECKING:
    from pydantic import SecretStr

    from settee.base.settings import Settings
    from settee.engine.request import Bucket

NOT_PUBLIC = "is not on the public Internet (ALLOW_PRIVATE_S3CONFIG permits it)"
_UNREADABLE = "is not a URL: its host or port cannot be read"

#: The owners of a target, by how they spell its settings: the operator's two, and a job's s3Config.
OUTPUTS, MODELS, CALLERS = "BUCKET_", "MODELS_S3_", "s3Config."
_CALLERS_NAMES = {
    "ENDPOINT_URL": "endpointUrl",
    "NAME": "bucketName",
    "ACCESS_KEY_ID": "accessId",
    "SECRET_ACCESS_KEY": "accessSecret",
    "REGION": "endpointUrl",
}


@dataclass(frozen=True, kw_only=True)
class Target:
    endpoint_url: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    region: str
    bucket: str
    path_style: bool = True
    #: Of keys, in the owner's own grammar.
    prefix: str = ""
    #: Lifetime of presigned URLs, seconds.
    expires_s: int
    public_url: str | None = None
    #: OUTPUTS, MODELS or CALLERS.
    owner: str = OUTPUTS
    #: BUCKET_NAME is not set: the bucket is called after the month.
    by_month: bool = False
    #: Only connect to public addresses.
    guarded: bool = False
    verify_tls: bool = True

    @property
    def own(self) -> bool:
        """Return True for the operator's own, False for a caller's."""
        return self.owner != CALLERS

    def setting(self, name: str) -> str:
        """Return how its owner spells a setting: BUCKET_NAME, or s3Config.bucketName."""
        return f"{self.owner}{name if self.own else _CALLERS_NAMES[name]}"


def callers_target(bucket: Bucket, settings: Settings) -> Target:
    """Return a job's s3Config, without a prefix. Raises ValueError with what is wrong with its endpoint, by name."""
    try:
        endpoint = callers_endpoint(bucket.endpoint_url, bucket.bucket_name)
    except ValueError as error:
        raise ValueError(f"{CALLERS}endpointUrl {error}") from error
    return Target(
        endpoint_url=endpoint,
        access_key=bucket.access_id.get_secret_value(),
        secret_key=bucket.access_secret.get_secret_value(),
        region=region_of(endpoint),
        bucket=bucket.bucket_name,
        expires_s=settings.bucket_expires_s,
        owner=CALLERS,
        guarded=not settings.allow_private_s3config,
    )


def workers_target(settings: Settings) -> Target | None:
    """Return the bucket of BUCKET_ENDPOINT_URL, without a prefix; None when it is not set."""
    return _operators(
        settings.bucket_endpoint_url,
        settings.bucket_name,
        settings.bucket_access_key_id,
        settings.bucket_secret_access_key,
        settings.bucket_region,
        # RunPod's uploader: the month and year of the worker's clock. Behind an endpoint that names a bucket
        # itself (https://bucket.s3.region.amazonaws.com, as that worker's guide says) this is a folder in it.
        bucket=settings.bucket_name or time.strftime("%m-%y"),
        path_style=settings.bucket_path_style,
        expires_s=settings.bucket_expires_s,
        public_url=settings.bucket_public_url,
        by_month=not settings.bucket_name,
        verify_tls=settings.bucket_verify_tls,
    )


def models_target(settings: Settings, expires_s: int) -> Target | None:
    """Return the store of MODELS_S3_ENDPOINT_URL, without a bucket; None when it is not set."""
    return _operators(
        settings.models_s3_endpoint_url,
        (settings.models_mirror or "s3://")[len("s3://") :].partition("/")[0],
        settings.models_s3_access_key_id,
        settings.models_s3_secret_access_key,
        settings.models_s3_region,
        bucket="",
        path_style=settings.models_s3_path_style,
        expires_s=expires_s,
        owner=MODELS,
    )


def _operators(
    url: str | None, named: str | None, key: SecretStr | None, secret: SecretStr | None, region: str | None, **more: Any
) -> Target | None:
    if not url or key is None or secret is None:  # settings.py: all three or none
        return None
    endpoint = plain_endpoint(url, named)
    return Target(
        endpoint_url=endpoint,
        access_key=key.get_secret_value(),
        secret_key=secret.get_secret_value(),
        region=region or region_of(endpoint),
        **more,
    )


def plain_endpoint(url: str, bucket: str | None) -> str:
    """Return the endpoint without the bucket, when it begins with that bucket's name: it would be addressed twice."""
    url = url.rstrip("/")
    if bucket:
        scheme, _, rest = url.partition("://")
        if rest.lower().startswith(f"{bucket.lower()}.") and "." in rest[len(bucket) + 1 :]:
            return f"{scheme}://{rest[len(bucket) + 1 :]}"
    return url


_REGIONS = (
    r"(?:^|\.)s3[.-](?:dualstack\.)?([a-z]{2,}(?:-[a-z]+)+-\d+)\.",  # Amazon, Backblaze, Wasabi
    r"(?:^|\.)([a-z]+\d+)\.digitaloceanspaces\.com$",
    r"^s3\.([a-z]{2}-[a-z]{3})\.scw\.cloud$",
    r"^s3api-([a-z]+-[a-z]+-\d+)\.runpod\.io$",
)


def region_of(endpoint_url: str) -> str:
    """Return the region in the common providers' addresses; "auto" for R2, us-east-1 where none is named."""
    host = urlsplit(endpoint_url).hostname or ""
    if host.endswith(".r2.cloudflarestorage.com"):
        return "auto"
    for pattern in _REGIONS:
        if found := re.search(pattern, host):
            # RunPod writes its data centers, which are its regions, in capitals.
            return found[1].upper() if host.endswith(".runpod.io") else found[1]
    return "us-east-1"


def bucket_problem(name: str) -> str | None:
    """Return why no bucket can have this name. Generous: old buckets have capitals, some servers have underscores."""
    return None if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}", name) else "is not a bucket's name"


def normal_endpoint(url: str) -> str:
    """Return the endpoint put together from its parts, so that every later parser finds the same host.

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
    """Return why no host and port can be read from an endpoint, the operator's own or a caller's."""
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


def callers_endpoint(url: str, bucket: str) -> str:
    """Return what is connected to for an s3Config. Raises ValueError with what is wrong with its endpointUrl."""
    return normal_endpoint(plain_endpoint(normal_endpoint(url), bucket))


def endpoint_problem(url: str, bucket: str = "", *, may_be_private: bool = False) -> str | None:
    """Return why a caller's endpoint may not be used. Looks the host up, unless it may be private."""
    try:
        host = urlsplit(callers_endpoint(url, bucket)).hostname or ""
        if not may_be_private:
            public_addresses(host)
    except ValueError as error:
        return str(error)
    except NotPublic:
        return NOT_PUBLIC
    except OSError:
        return "has a host that cannot be found"
    return None
