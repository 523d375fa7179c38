"""Objects of S3: s3:// entries, and the mirror that an operator keeps of other sources (MODELS_MIRROR).

A job's s3:// entry is read with the job's s3Config when it brought one. Otherwise MODELS_S3_* are taken, else BUCKET_*.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, replace
from typing import Any

from settee.comfyui.problems import near_matches
from settee.delivery.attempts import code_of, is_not_public, is_transient, status_of
from settee.delivery.endpoint import NOT_PUBLIC
from settee.delivery.s3 import (
    Target,
    bucket_problem,
    callers_target,
    client_for,
    plain_endpoint,
    region_of,
    url_for,
    workers_target,
)
from settee.errors import DeliveryError, DownloadFailed, ModelMissing, SetteeError
from settee.models.address import Address
from settee.models.entry import ModelEntry, S3Object
from settee.request import Bucket
from settee.settings import Settings

#: Life of a signed address, seconds. Longer than one range takes; a download that outlives it asks for another.
_SIGNED_S = 3600
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class _Store:
    """A bucket, and how its owner calls the settings that lead to it."""

    target: Target
    #: "MODELS_S3_" or "BUCKET_"; None for a job's s3Config.
    prefix: str | None

    def setting(self, name: str) -> str:
        return self.target.setting(name) if self.prefix is None else f"{self.prefix}{name}"


def address(entry: ModelEntry, found: S3Object, settings: Settings, bucket: Bucket | None = None) -> Address:
    """Ask S3 about an object, and sign an address for it.

    Raises ModelMissing when it is not there, else DownloadFailed with what to look at.
    """
    if problem := bucket_problem(found.bucket):
        raise DownloadFailed(f"{found.where}: {found.bucket!r} {problem}", retryable=False)
    store = _store(found, settings, bucket)
    from botocore import exceptions as boto

    try:
        client = client_for(store.target)
        head = _head(client, found)
        url = url_for(client, store.target, found.key)
    except DeliveryError as error:  # the endpoint is no URL
        endpoint = store.setting("ENDPOINT_URL")
        raise DownloadFailed(f"{found.where}: {endpoint} is not the address of an S3 API", retryable=False) from error
    except (boto.BotoCoreError, boto.ClientError, ValueError) as error:
        explained = _explained(error, found, store)
        if isinstance(explained, ModelMissing) and (near := _near(client, found)):
            message = f"{explained.message}; did you mean {' or '.join(map(repr, near))}?"
            raise ModelMissing(message, details={**explained.details, "near": near}) from error
        raise explained from error
    return Address(
        url=url,
        where=found.where,
        size=head.get("ContentLength"),
        sha256=_sha256(head),
        validator=head.get("ETag"),
        public_only=store.target.guarded,
        verify_tls=store.target.verify_tls,
        renew=lambda: address(entry, found, settings, bucket),
    )


def mirrored(entry: ModelEntry, mirror: str) -> S3Object:
    """Where a mirror (``s3://bucket/prefix``) would have a model: ``prefix/Target/LocalName``."""
    bucket, _, prefix = mirror[len("s3://") :].partition("/")
    return S3Object(bucket, "/".join(part for part in (prefix.strip("/"), str(entry.path)) if part))


def _store(found: S3Object, settings: Settings, bucket: Bucket | None) -> _Store:
    if bucket is not None:
        try:
            target, prefix = callers_target(bucket, settings), None
        except ValueError as error:
            raise DownloadFailed(f"{found.where}: {error}", retryable=False) from error
    elif settings.models_s3_endpoint_url:
        target, prefix = _models_target(settings.models_s3_endpoint_url, settings), "MODELS_S3_"
    elif (own := workers_target(settings)) is not None:
        target, prefix = own, "BUCKET_"
    else:
        raise DownloadFailed(
            f"{found.where}: the worker has no S3 credentials: set MODELS_S3_ENDPOINT_URL, MODELS_S3_ACCESS_KEY_ID "
            "and MODELS_S3_SECRET_ACCESS_KEY (or BUCKET_ENDPOINT_URL and its keys)",
            retryable=False,
        )
    # A public address (a CDN's) is for readers of results: models are private unless their bucket says otherwise.
    target = replace(target, bucket=found.bucket, expires_s=_SIGNED_S, public_url=None, by_month=False)
    return _Store(target, prefix)


def _models_target(endpoint: str, settings: Settings) -> Target:
    key, secret = settings.models_s3_access_key_id, settings.models_s3_secret_access_key
    assert key is not None  # settings.py: all three or none
    assert secret is not None
    mirror = (settings.models_mirror or "s3://")[len("s3://") :].partition("/")[0]
    endpoint = plain_endpoint(endpoint, mirror)
    return Target(
        endpoint_url=endpoint,
        access_key=key.get_secret_value(),
        secret_key=secret.get_secret_value(),
        region=settings.models_s3_region or region_of(endpoint),
        bucket="",
        path_style=settings.models_s3_path_style,
        prefix="",
        expires_s=_SIGNED_S,
        public_url=None,
        own=True,
    )


def _head(client: Any, found: S3Object) -> dict[str, Any]:
    """HEAD of the object. An error comes with S3's own word for it, which a HEAD does not carry."""
    from botocore import exceptions as boto

    where = {"Bucket": found.bucket, "Key": found.key}
    head: dict[str, Any]
    try:
        try:
            head = client.head_object(**where, ChecksumMode="ENABLED")
        except boto.ClientError as error:
            # Some servers answer so to headers that they do not know.
            if status_of(error) not in (400, 501):
                raise
            head = client.head_object(**where)
    except boto.ClientError as error:
        if status_of(error) not in (400, 403, 404):
            raise
        # The same answer with a body, which names the reason; an object that is there after all costs one byte.
        client.get_object(**where, Range="bytes=0-0")["Body"].close()
        raise
    return head


def _near(client: Any, found: S3Object) -> list[str]:
    """Return keys of the bucket that may have been meant: in the key's own folder, else among the first of all."""
    from botocore import exceptions as boto

    folder = found.key.rpartition("/")[0]
    for prefix in dict.fromkeys((f"{folder}/" if folder else "", "")):
        try:
            listed = client.list_objects_v2(Bucket=found.bucket, Prefix=prefix, MaxKeys=1000)
        except (boto.BotoCoreError, boto.ClientError):
            return []  # these keys may not list it
        if near := near_matches(found.key, [item["Key"] for item in listed.get("Contents", ())]):
            return near
    return []


def _sha256(head: dict[str, Any]) -> str | None:
    """Of the whole object, when its uploader said it (metadata ``sha256``) or S3 computed it over all of it."""
    given = str(head.get("Metadata", {}).get("sha256", "")).lower()
    if _SHA256.fullmatch(given):
        return given
    # Of a multipart upload it is a checksum of checksums, "…-7".
    text = head.get("ChecksumSHA256") or ""
    if head.get("ChecksumType", "FULL_OBJECT") != "FULL_OBJECT":
        return None
    try:
        digest = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return digest.hex() if len(digest) == 32 else None


def _explained(error: Exception, found: S3Object, store: _Store) -> SetteeError:
    """What an S3 failure means for a reader. Names no host, key or secret."""
    from botocore import exceptions as boto

    endpoint = store.setting("ENDPOINT_URL")
    keys = f"{store.setting('ACCESS_KEY_ID')} and {store.setting('SECRET_ACCESS_KEY')}"
    code, status = code_of(error)[:80], status_of(error)

    def failed(why: str, retryable: bool = False) -> DownloadFailed:
        details = {"s3_code": code} if code else {}
        return DownloadFailed(f"{found.where}: {why}", details=details, retryable=retryable)

    if code == "NoSuchBucket":
        return ModelMissing(f"{found.where}: S3 has no bucket {found.bucket!r}", details={"s3_code": code})
    if code in ("NoSuchKey", "404", "NotFound") or status == 404:
        return ModelMissing(f"{found.where}: there is no such object", details={"s3_code": code})
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "AuthFailure"):
        return failed(f"S3 does not accept the keys: look at {keys}")
    if code == "RequestTimeTooSkewed":
        return failed("S3 says that the worker's clock is wrong")
    if code in ("PermanentRedirect", "AuthorizationHeaderMalformed") or status in (301, 307):
        return failed(f"the bucket is in another region: set {store.setting('REGION')}")
    if status in (401, 403):
        return failed(f"S3 does not let these keys read it, or there is no such object: look at {keys}")
    if is_not_public(error):
        return failed(f"{endpoint} {NOT_PUBLIC}")
    if isinstance(error, boto.SSLError):
        return failed(f"S3's certificate is not accepted: look at {endpoint}")
    if is_transient(error):
        said = f"S3 says HTTP {status}" if status else "S3 cannot be reached"
        return failed(f"{said}: look at {endpoint}", retryable=True)
    return failed(f"S3 does not serve it ({code or type(error).__name__}): look at {endpoint}")
