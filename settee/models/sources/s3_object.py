"""Objects of S3: s3:// entries, and the mirror that an operator keeps of other sources (MODELS_MIRROR).

A job's s3:// entry is read with the job's s3Config when it brought one. Otherwise MODELS_S3_* are taken, else BUCKET_*.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from settee.base.errors import DownloadFailed, ModelMissing
from settee.base.settings import Settings
from settee.comfyui.problems import near_matches
from settee.models.entry import ModelEntry, S3Object
from settee.models.transfer.address import Address
from settee.s3.client import client_for, url_for
from settee.s3.error_table import Kind, S3Error, explained
from settee.s3.objects import head
from settee.s3.target import Target, bucket_problem, callers_target, models_target, workers_target

#: Life of a signed address, seconds. Longer than one range takes; a download that outlives it asks for another.
_SIGNED_S = 3600
_SHA256 = re.compile(r"[0-9a-f]{64}")


def address(entry: ModelEntry, found: S3Object, settings: Settings) -> Address:
    """Ask S3 about an object, unless that was done before (``version``), and sign an address for it.

    Raises ModelMissing when it does not exist, else DownloadFailed with what to look at.
    """
    if problem := bucket_problem(found.bucket):
        raise DownloadFailed(f"{found.where}: {found.bucket!r} {problem}", retryable=False)
    target = _target(found, settings)
    try:
        with explained(target, reads=True):
            if found.version is not None and entry.size is not None:
                # The agent has asked before, with the same request: the rest of its answer is the entry's sha256.
                described: dict[str, Any] = {"ContentLength": entry.size, "ETag": f'"{found.version}"'}
            else:
                described = head(target, found.key)
            url = url_for(target, found.key)
    except S3Error as error:
        message, details = f"{found.where}: {error.message}", dict(error.details)
        if error.kind is Kind.NO_OBJECT and (near := _near(target, found.key)):
            message += f"; did you mean {' or '.join(map(repr, near))}?"
            details["near"] = near
        if error.kind in (Kind.NO_BUCKET, Kind.NO_OBJECT):
            raise ModelMissing(message, details=details) from error
        raise DownloadFailed(message, details=details, retryable=error.retryable) from error
    return Address(
        url=url,
        where=found.where,
        size=described.get("ContentLength"),
        sha256=sha256_of(described),
        validator=described.get("ETag"),
        public_only=target.guarded,
        verify_tls=target.verify_tls,
        renew=lambda: address(entry, found, settings),
    )


def mirrored(entry: ModelEntry, mirror: str) -> S3Object:
    """Return where a mirror (``s3://bucket/prefix``) would have a model: ``prefix/Target/LocalName``."""
    bucket, _, prefix = mirror[len("s3://") :].partition("/")
    return S3Object(bucket, "/".join(part for part in (prefix.strip("/"), str(entry.path)) if part))


def _target(found: S3Object, settings: Settings) -> Target:
    """Return the object's bucket at the job's endpoint, the models' own, or the outputs'. Raises DownloadFailed."""
    try:
        target = (
            models_target(settings, _SIGNED_S) or workers_target(settings)
            if found.config is None
            else callers_target(found.config, settings)
        )
    except ValueError as error:
        raise DownloadFailed(f"{found.where}: {error}", retryable=False) from error
    if target is None:
        raise DownloadFailed(
            f"{found.where}: the worker has no S3 credentials: set MODELS_S3_ENDPOINT_URL, MODELS_S3_ACCESS_KEY_ID "
            "and MODELS_S3_SECRET_ACCESS_KEY (or BUCKET_ENDPOINT_URL and its keys)",
            retryable=False,
        )
    # A public address (a CDN's) is for readers of results: models are private unless their bucket says otherwise.
    return replace(target, bucket=found.bucket, expires_s=_SIGNED_S, public_url=None, by_month=False)


def _near(target: Target, key: str) -> list[str]:
    """Return keys of the bucket that may have been meant: in the key's own folder, else among the first of all."""
    from botocore import exceptions as boto

    folder = key.rpartition("/")[0]
    for prefix in dict.fromkeys((f"{folder}/" if folder else "", "")):
        try:
            listed = client_for(target).list_objects_v2(Bucket=target.bucket, Prefix=prefix, MaxKeys=1000)
        except (boto.BotoCoreError, boto.ClientError):
            return []  # these keys may not list it
        if near := near_matches(key, [item["Key"] for item in listed.get("Contents", ())]):
            return near
    return []


def sha256_of(head: Mapping[str, Any]) -> str | None:
    """Return an object's sha256 by its HEAD: its uploader's (metadata ``sha256``), or S3's over the whole object."""
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
