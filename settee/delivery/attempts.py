"""Requests to S3, tried again for as long as an outage of theirs is likely to last.

What is uploaded took GPU time to make, and botocore's own attempts are over within a second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from settee.delivery.blob import Stopped
from settee.net.addresses import NotPublic
from settee.net.retry import Backoff, retried

#: No new attempt is made when this much time has passed since the first.
PATIENCE_S = 20.0
BACKOFF = Backoff(0.25, 4.0)
#: What botocore makes of one of ours. It knows best what to send again at once.
BOTOCORE_ATTEMPTS = 2

_DAMAGED = ("BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch")
_LATER = ("SlowDown", "InternalError", "RequestTimeout", "ServiceUnavailable", *_DAMAGED)

T = TypeVar("T")


def is_transient(error: Exception) -> bool:
    """Whether the same request may well succeed in a moment."""
    from botocore import exceptions as boto

    if isinstance(error, boto.ClientError):
        return status_of(error) >= 500 or status_of(error) == 429 or code_of(error) in _LATER
    if isinstance(error, boto.SSLError) or is_not_public(error):
        return False
    return isinstance(error, (boto.ConnectionError, boto.HTTPClientError))


def is_not_public(error: Exception) -> bool:
    """Whether a connection was not made because of the address. botocore wraps what it does not know."""
    return isinstance(getattr(error, "kwargs", {}).get("error"), NotPublic)


def was_refused(error: Exception) -> bool:
    """Whether S3 surely stored nothing: it said no, or never heard of it."""
    from botocore import exceptions as boto

    if isinstance(error, boto.ClientError):
        return status_of(error) < 500
    return is_not_public(error) or isinstance(
        error, (boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.SSLError)
    )


def status_of(error: Exception) -> int:
    """The HTTP status of a ClientError; 0 where there is none."""
    response = getattr(error, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)


def code_of(error: Exception) -> str:
    """The S3 error code of a ClientError, such as NoSuchBucket."""
    return str((getattr(error, "response", None) or {}).get("Error", {}).get("Code", ""))


def attempt(call: Callable[[], T], stop: threading.Event) -> T:
    """Return what ``call`` returns, in the end. Raises its last error, and Stopped when ``stop`` is set meanwhile."""
    try:
        return retried(call, BACKOFF, may_pass=is_transient, within_s=PATIENCE_S, stop=stop)
    except Exception:
        if stop.is_set():
            raise Stopped from None
        raise
