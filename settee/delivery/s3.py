"""Where S3 results go and how to talk to it: target, client, and what its errors mean for a person."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

from settee.buckets import bucket_problem as bucket_problem
from settee.buckets import plain_endpoint as plain_endpoint
from settee.buckets import region_of as region_of
from settee.delivery.attempts import BOTOCORE_ATTEMPTS, code_of, is_not_public, status_of
from settee.delivery.endpoint import NOT_PUBLIC, guard, normal_endpoint
from settee.delivery.endpoint import endpoint_problem as endpoint_problem
from settee.errors import DeliveryError
from settee.job import Job
from settee.request import Bucket
from settee.settings import Settings

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
#: Uploads at a time, and so connections kept.
LANES = 8
_CLIENTS = 4


@dataclass(frozen=True, kw_only=True)
class Target:
    """A bucket with all that reaching it takes. ``own`` is False for the caller's (RunPod's s3Config)."""

    endpoint_url: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    region: str
    bucket: str
    path_style: bool
    prefix: str
    expires_s: int
    public_url: str | None
    own: bool
    #: The bucket is the month's because nobody named one.
    by_month: bool = False
    #: Only connect to public addresses.
    guarded: bool = False
    #: Whether the server's certificate is checked.
    verify_tls: bool = True

    def setting(self, name: str) -> str:
        """How its owner calls a setting: BUCKET_NAME, or s3Config.bucketName."""
        return f"BUCKET_{name}" if self.own else f"s3Config.{_CALLERS_NAMES[name]}"


_CALLERS_NAMES = {
    "ENDPOINT_URL": "endpointUrl",
    "NAME": "bucketName",
    "ACCESS_KEY_ID": "accessId",
    "SECRET_ACCESS_KEY": "accessSecret",
    "REGION": "endpointUrl",
}


def target_for(job: Job, settings: Settings) -> Target | None:
    """The door's bucket if it named one, the caller's if the job brought one, else the worker's, else None."""
    request, wanted = job.request, job.request.delivery
    if job.options.destination is not None:
        own = workers_target(settings)
        if own is None:
            raise DeliveryError("there is no S3 endpoint to put the outputs at: set BUCKET_ENDPOINT_URL")
        expires_s = wanted.expires_s or settings.bucket_expires_s
        return replace(own, bucket=job.options.destination.bucket, by_month=False, expires_s=expires_s)
    if request.bucket is not None:
        try:
            target = callers_target(request.bucket, settings)
        except ValueError as error:
            raise DeliveryError(str(error)) from error
        prefix = wanted.prefix or "{job_id}"
    else:
        own = workers_target(settings)
        if own is None:
            return None
        target, prefix = own, wanted.prefix or settings.bucket_prefix
    return replace(target, prefix=prefix, expires_s=wanted.expires_s or settings.bucket_expires_s)


def callers_target(bucket: Bucket, settings: Settings) -> Target:
    """A job's s3Config, without a prefix. Raises ValueError with what is wrong with its endpoint, by name."""
    try:
        endpoint = callers_endpoint(bucket)
    except ValueError as error:
        raise ValueError(f"s3Config.endpointUrl {error}") from error
    return Target(
        endpoint_url=endpoint,
        access_key=bucket.access_id.get_secret_value(),
        secret_key=bucket.access_secret.get_secret_value(),
        region=region_of(endpoint),
        bucket=bucket.bucket_name,
        path_style=True,
        prefix="",
        expires_s=settings.bucket_expires_s,
        public_url=None,
        own=False,
        guarded=not settings.allow_private_s3config,
    )


def workers_target(settings: Settings) -> Target | None:
    """The bucket of BUCKET_ENDPOINT_URL, without a prefix; None when there is none."""
    if not settings.bucket_endpoint_url:
        return None
    assert settings.bucket_access_key_id is not None
    assert settings.bucket_secret_access_key is not None
    endpoint = plain_endpoint(settings.bucket_endpoint_url, settings.bucket_name)
    return Target(
        endpoint_url=endpoint,
        access_key=settings.bucket_access_key_id.get_secret_value(),
        secret_key=settings.bucket_secret_access_key.get_secret_value(),
        region=settings.bucket_region or region_of(endpoint),
        # RunPod's uploader: the month and year of the worker's clock. Behind an endpoint that names a bucket
        # itself (https://bucket.s3.region.amazonaws.com, as that worker's guide says) this is a folder in it.
        bucket=settings.bucket_name or time.strftime("%m-%y"),
        path_style=settings.bucket_path_style,
        prefix="",
        expires_s=settings.bucket_expires_s,
        public_url=settings.bucket_public_url,
        own=True,
        by_month=not settings.bucket_name,
        verify_tls=settings.bucket_verify_tls,
    )


def callers_endpoint(bucket: Bucket) -> str:
    """What is connected to for an s3Config. Raises ValueError with what is wrong with its endpointUrl."""
    return normal_endpoint(plain_endpoint(normal_endpoint(bucket.endpoint_url), bucket.bucket_name))


#: Answers that no upload will change; what else a server says of a look at a bucket need not hold for uploads.
_WRONG_KEYS = frozenset(("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "AuthFailure"))
_FINAL = _WRONG_KEYS | {"NoSuchBucket", "InvalidBucketName"}
#: Buckets that were there.
_seen: set[tuple[object, ...]] = set()


def is_seen(target: Target) -> bool:
    """Return True if the bucket needs no other look."""
    return (*_identity(target), target.bucket) in _seen


def refusal(target: Target) -> DeliveryError | None:
    """Look at the bucket before anything is made for it: why S3 takes nothing, where it states that for certain."""
    from botocore.exceptions import BotoCoreError, ClientError

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
        return explain(error, target) if code_of(error) in _FINAL else None
    except DeliveryError as error:
        return error
    except (BotoCoreError, OSError):
        return None  # the upload may find it better
    if len(_seen) > 100:  # callers' own
        _seen.clear()
    _seen.add((*_identity(target), target.bucket))
    return None


_clients: OrderedDict[tuple[object, ...], Any] = OrderedDict()
_clients_lock = threading.Lock()


def _identity(target: Target) -> tuple[object, ...]:
    told = (target.endpoint_url, target.access_key, target.secret_key, target.region, target.path_style)
    return (*told, target.guarded, target.verify_tls)


def forget(target: Target) -> None:
    """Have the next job make a client of its own."""
    with _clients_lock:
        _clients.pop(_identity(target), None)
    _seen.discard((*_identity(target), target.bucket))


def client_for(target: Target) -> Any:
    """A boto3 client, kept for the next job with the same keys: making one takes a tenth of a second."""
    key = _identity(target)
    with _clients_lock:
        client = _clients.pop(key, None)
        if client is None:
            try:
                client = _new_client(target)
            except ValueError as error:
                raise DeliveryError(
                    f"{target.setting('ENDPOINT_URL')} is not the address of an S3 API",
                    details={"settings": [target.setting("ENDPOINT_URL")]},
                ) from error
        _clients[key] = client
        # The oldest is dropped, not closed: another thread may still use it.
        while len(_clients) > _CLIENTS:
            _clients.popitem(last=False)
        return client


def _new_client(target: Target) -> Any:
    import boto3.session
    from botocore.config import Config

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
        # None means those of the environment; through a proxy nobody could check the address.
        proxies={} if target.guarded else None,
    )
    if not target.verify_tls:
        import urllib3

        # The operator knows; one warning for each request tells nothing new.
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
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
    if target.guarded:
        guard(client)
    return client


def url_for(client: Any, target: Target, key: str) -> str:
    """A presigned GET, or the public address. Signing is local: no request is made."""
    if target.public_url:
        return f"{target.public_url.rstrip('/')}/{quote(key)}"
    url: str = client.generate_presigned_url(
        "get_object", Params={"Bucket": target.bucket, "Key": key}, ExpiresIn=target.expires_s
    )
    return url


def is_upstream(error: Exception) -> bool:
    """Whether an error is botocore's or urllib3's. Some of botocore's have no base class of its own."""
    return any(kind.__module__.partition(".")[0] in ("botocore", "boto3", "urllib3") for kind in type(error).__mro__)


def explain(error: Exception, target: Target) -> DeliveryError:
    """What an S3 failure means and which setting to look at. Names no host, key or secret."""
    from botocore import exceptions as boto

    if isinstance(error, boto.ClientError):
        return _explain_answer(code_of(error), status_of(error), target)
    details = {"settings": [target.setting("ENDPOINT_URL")]}
    if isinstance(error, boto.SSLError):
        return DeliveryError(
            f"S3's certificate is not accepted: look at {target.setting('ENDPOINT_URL')}", details=details
        )
    if is_not_public(error):
        return DeliveryError(f"{target.setting('ENDPOINT_URL')} {NOT_PUBLIC}", details=details)
    if isinstance(error, (boto.ConnectionError, boto.HTTPClientError)):
        return DeliveryError(
            f"S3 cannot be reached, or drops the connection again and again: look at {target.setting('ENDPOINT_URL')}",
            details=details,
            retryable=True,
        )
    if "Parse" in type(error).__name__:  # ResponseParserError, in botocore.parsers
        return DeliveryError(
            f"{target.setting('ENDPOINT_URL')} does not answer as S3 does: is it the address of the S3 API?",
            details=details,
        )
    return DeliveryError(
        f"the upload to S3 failed ({type(error).__name__}): look at {target.setting('ENDPOINT_URL')} and its keys",
        details=details,
    )


def _explain_answer(code: str, status: int, target: Target) -> DeliveryError:
    code = code[:80]  # the server's words, and it may be the caller's server
    keys = [target.setting("ACCESS_KEY_ID"), target.setting("SECRET_ACCESS_KEY")]
    name = target.setting("NAME")
    retryable = False
    if code in ("NoSuchBucket", "InvalidBucketName") or (status == 404 and code != "NoSuchUpload"):
        why = " (the month and year: BUCKET_NAME is not set)" if target.by_month else ""
        settings, problem = [name], f"S3 has no bucket {target.bucket!r}{why}: create it, or set {name}"
    elif code in _WRONG_KEYS:
        settings, problem = keys, f"S3 does not accept the keys: look at {' and '.join(keys)}"
    elif code == "RequestTimeTooSkewed":
        settings, problem = [], "S3 says that the worker's clock is wrong"
    elif code in ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException") or (
        status in (301, 307)
    ):
        region = target.setting("REGION")
        settings, problem = [region, target.setting("ENDPOINT_URL")], f"the bucket is in another region: set {region}"
    elif status in (401, 403):
        settings = [*keys, name]
        problem = (
            f"S3 does not allow these keys to write to the bucket {target.bucket!r}: look at {', '.join(settings)}"
        )
    elif code in ("XAmzContentSHA256Mismatch", "BadDigest", "IncompleteBody"):
        settings, problem, retryable = [], "a file reached S3 damaged, and S3 refused it", True
    elif status >= 500 or status == 429 or code in ("SlowDown", "RequestTimeout"):
        endpoint = target.setting("ENDPOINT_URL")
        settings, retryable = [endpoint], True
        # botocore calls a web page a 500 as well.
        reason = f"{status} {code}" if code != str(status) else f"{status}, or a web page"
        problem = f"S3 failed again and again ({reason}): if it goes on, look at {endpoint}"
    else:
        settings = [target.setting("ENDPOINT_URL"), name]
        problem = f"S3 refused the upload ({status} {code}): look at {' and '.join(settings)}"
    return DeliveryError(problem, details={"settings": settings, "s3_code": code}, retryable=retryable)
