"""Addresses that an input file may come from: http(s) URLs, and s3:// as URLs signed here.

Nothing is asked of anybody here. Which address may be reached is decided when it is fetched
(:mod:`settee.staging.fetch`): a caller's only when it is public.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from settee.base.errors import DownloadFailed
from settee.base.settings import Settings
from settee.base.text import shown
from settee.net.failures import Refused
from settee.net.http import origin, split_login
from settee.s3.client import url_for
from settee.s3.error_table import S3Error
from settee.s3.target import Target, bucket_problem, callers_target, workers_target

if TYPE_CHECKING:
    from settee.engine.request import Bucket

#: How long a signed S3 URL lives: longer than any download that DOWNLOAD_TIMEOUT_S would sensibly allow.
_SIGNED_S = 6 * 3600


@dataclass(frozen=True)
class Remote:
    """A file that is to be downloaded. ``where`` is the part of its address that may be shown."""

    name: str
    url: str = field(repr=False)
    where: str
    #: The address is the operator's own: it may be private, and does not redirect.
    trusted: bool = False
    #: RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS: a caller's address may be private as well.
    may_be_private: bool = False
    #: Whether the server's certificate is checked: BUCKET_VERIFY_TLS, of the operator's own endpoint.
    verify_tls: bool = True

    def failed(self, why: str, *, retryable: bool = True) -> DownloadFailed:
        return DownloadFailed(
            f"the input file {shown(self.name)} cannot be downloaded from {self.where}: {why}", retryable=retryable
        )


def web(name: str, url: str, settings: Settings) -> Remote:
    """A caller's http(s) URL. Raises ValueError for what is not one."""
    try:
        _, host, _ = origin(split_login(url)[0])
    except (Refused, ValueError):
        host = ""
    if not host or re.search(r"[\x00-\x20\x7f]", url):
        raise ValueError("this is not a valid http(s) URL")
    return Remote(name, url, shown(host), may_be_private=settings.runpod_allow_private_download_urls)


def s3(name: str, uri: str, settings: Settings, bucket: Bucket | None) -> Remote:
    """``s3://bucket/key`` as a signed URL, with the caller's credentials or else the worker's.

    Signing asks nobody. Raises ValueError with what is wrong with the address, or what to set.
    """
    match = re.fullmatch(r"(?i:s3)://([^/]+)/(.+)", uri, re.DOTALL)
    if match is None:
        raise ValueError("an S3 address is s3://bucket/key")
    if problem := bucket_problem(match[1]):
        raise ValueError(f"the bucket of this S3 address {problem}")
    target = _target(match[1], settings, bucket)
    from botocore.exceptions import BotoCoreError

    try:
        url = url_for(target, match[2])
    except (BotoCoreError, S3Error, ValueError) as error:
        raise ValueError("this S3 address, or the endpoint that it belongs to, is not valid") from error
    trusted = target.own or settings.allow_private_s3config
    return Remote(
        name,
        url,
        shown(f"s3://{match[1]}/{match[2]}"),
        trusted=trusted,
        may_be_private=settings.runpod_allow_private_download_urls,
        verify_tls=target.verify_tls,
    )


def _target(name: str, settings: Settings, bucket: Bucket | None) -> Target:
    """The bucket ``name`` at the caller's endpoint, or else the worker's.

    The endpoint is never cut by the name in the address, which is a caller's: only by the bucket set beside it.
    """
    target = workers_target(settings) if bucket is None else callers_target(bucket, settings)
    if target is None:
        raise ValueError(
            "the worker has no S3 credentials: send s3Config with the job, or set BUCKET_ENDPOINT_URL, "
            "BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY on the worker"
        )
    return replace(target, bucket=name, expires_s=_SIGNED_S, public_url=None, by_month=False)
