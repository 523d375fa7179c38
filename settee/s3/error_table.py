"""The meaning of every S3 failure, in one table: which setting to look at, and whether a later request may succeed.

Nothing here names a host, a key or a secret.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import Enum

from settee.base.errors import SetteeError
from settee.net.addresses import NotPublic
from settee.net.retry import is_transient as is_transient_status
from settee.s3.target import NOT_PUBLIC, Target

_WRONG_KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "AuthFailure")
#: Answers to a look at a bucket that no upload will change.
CERTAIN = (*_WRONG_KEYS, "NoSuchBucket", "InvalidBucketName")
_OTHER_REGION = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException")
_DAMAGED = ("BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch")
_LATER = ("SlowDown", "InternalError", "RequestTimeout", "ServiceUnavailable")


class Kind(Enum):
    """Kinds of failure, for doors that have errors of their own for them."""

    NO_BUCKET = "no_bucket"
    NO_OBJECT = "no_object"
    WRONG_KEYS = "wrong_keys"
    FORBIDDEN = "forbidden"
    #: S3 failed, took damaged bytes or cannot be reached: another try may succeed.
    LATER = "later"
    #: The endpoint, its certificate, region or clock; or an answer without a row in this table.
    OTHER = "other"


class S3Error(SetteeError):
    """S3 refused a request, or did not answer it."""

    def __init__(
        self,
        message: str | None = None,
        kind: Kind = Kind.OTHER,
        *,
        settings: tuple[str, ...] = (),
        code: str = "",
        status: int = 0,
    ) -> None:
        details = {"settings": list(settings), **({"s3_code": code} if code else {})}
        super().__init__(message, details=details, retryable=kind is Kind.LATER)
        self.kind = kind
        self.status = status


def status_of(error: BaseException) -> int:
    """Return the HTTP status of a ClientError; 0 for any other error."""
    response = getattr(error, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)


def code_of(error: BaseException) -> str:
    """Return the S3 error code of a ClientError, such as NoSuchBucket; at most 80 characters: a server's words."""
    return str((getattr(error, "response", None) or {}).get("Error", {}).get("Code", ""))[:80]


def is_transient(error: Exception) -> bool:
    """Return True if the same request may succeed in a moment."""
    from botocore import exceptions as boto

    if isinstance(error, boto.ClientError):
        return is_transient_status(status_of(error)) or code_of(error) in (*_LATER, *_DAMAGED)
    if isinstance(error, boto.SSLError) or is_not_public(error):
        return False
    return isinstance(error, (boto.ConnectionError, boto.HTTPClientError))


def is_not_public(error: Exception) -> bool:
    """Return True if a connection was not made because of the address. botocore wraps what it does not know."""
    return isinstance(getattr(error, "kwargs", {}).get("error"), NotPublic)


def was_refused(error: Exception) -> bool:
    """Return True if S3 surely stored nothing: it refused the request, or never received it."""
    from botocore import exceptions as boto

    if isinstance(error, boto.ClientError):
        return status_of(error) < 500
    return is_not_public(error) or isinstance(
        error, (boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.SSLError)
    )


@contextlib.contextmanager
def explained(target: Target, *, reads: bool = False) -> Iterator[None]:
    """Turn errors of S3 and of the way to it into S3Error; ``reads``: objects are read here, not written."""
    try:
        yield
    except Exception as error:
        # Some errors of botocore have no base class of its own.
        kinds = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
        # Of a read an OSError is the socket's; around an upload it may be the disk's.
        if kinds.isdisjoint(("botocore", "boto3", "urllib3")) and not (reads and isinstance(error, OSError)):
            raise
        raise explain(error, target, reads=reads) from error


def explain(error: Exception, target: Target, *, reads: bool = False) -> S3Error:
    """Return what a failure means, and which setting of the target's owner to look at."""
    from botocore import exceptions as boto

    endpoint = target.setting("ENDPOINT_URL")
    if isinstance(error, S3Error):
        return error
    if isinstance(error, boto.ClientError):
        return _of_answer(code_of(error), status_of(error), target, reads)
    if isinstance(error, boto.SSLError):
        return S3Error(f"S3's certificate is not accepted: look at {endpoint}", settings=(endpoint,))
    if is_not_public(error):
        return S3Error(f"{endpoint} {NOT_PUBLIC}", settings=(endpoint,))
    if isinstance(error, (boto.ConnectionError, boto.HTTPClientError, OSError)):
        return S3Error(
            f"S3 cannot be reached, or drops the connection again and again: look at {endpoint}",
            Kind.LATER,
            settings=(endpoint,),
        )
    if "Parse" in type(error).__name__:  # ResponseParserError, in botocore.parsers
        return S3Error(f"{endpoint} does not answer as S3 does: is it the address of the S3 API?", settings=(endpoint,))
    what = "S3 does not serve it" if reads else "the upload to S3 failed"
    return S3Error(f"{what} ({type(error).__name__}): look at {endpoint} and its keys", settings=(endpoint,))


def _of_answer(code: str, status: int, target: Target, reads: bool) -> S3Error:
    keys = (target.setting("ACCESS_KEY_ID"), target.setting("SECRET_ACCESS_KEY"))
    name, endpoint, region = target.setting("NAME"), target.setting("ENDPOINT_URL"), target.setting("REGION")

    def found(message: str, kind: Kind = Kind.OTHER, *settings: str) -> S3Error:
        return S3Error(message, kind, settings=settings, code=code, status=status)

    if code in ("NoSuchBucket", "InvalidBucketName") or (not reads and status == 404 and code != "NoSuchUpload"):
        if reads:  # the address names the bucket, not a setting
            return found(f"S3 has no bucket {target.bucket!r}", Kind.NO_BUCKET)
        why = " (the month and year: BUCKET_NAME is not set)" if target.by_month else ""
        return found(f"S3 has no bucket {target.bucket!r}{why}: create it, or set {name}", Kind.NO_BUCKET, name)
    if reads and (status == 404 or code in ("NoSuchKey", "NotFound")):
        return found("no such object exists", Kind.NO_OBJECT)
    if code in _WRONG_KEYS:
        return found(f"S3 does not accept the keys: look at {' and '.join(keys)}", Kind.WRONG_KEYS, *keys)
    if code == "RequestTimeTooSkewed":
        return found("S3 finds that this machine's clock is wrong")
    if code in _OTHER_REGION or status in (301, 307):
        return found(f"the bucket is in another region: set {region}", Kind.OTHER, region, endpoint)
    if status in (401, 403) and reads:
        what = "S3 does not let these keys read it, or no such object exists"
        return found(f"{what}: look at {' and '.join(keys)}", Kind.FORBIDDEN, *keys)
    if status in (401, 403):
        what = f"S3 does not allow these keys to write to the bucket {target.bucket!r}"
        return found(f"{what}: look at {', '.join((*keys, name))}", Kind.FORBIDDEN, *keys, name)
    if code in _DAMAGED:
        return found("a file reached S3 damaged, and S3 refused it", Kind.LATER)
    if is_transient_status(status) or code in _LATER:
        # botocore calls a web page a 500 as well.
        reason = f"{status} {code}" if code != str(status) else f"{status}, or a web page"
        return found(f"S3 failed again and again ({reason}): if it goes on, look at {endpoint}", Kind.LATER, endpoint)
    if reads:
        return found(f"S3 does not serve it ({status} {code}): look at {endpoint}", Kind.OTHER, endpoint)
    return found(f"S3 refused the upload ({status} {code}): look at {endpoint} and {name}", Kind.OTHER, endpoint, name)
