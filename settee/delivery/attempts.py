"""Requests to S3, tried again for as long as an outage of theirs is likely to last.

What is uploaded took GPU time to make, and botocore's own attempts are over within a second.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from settee.delivery.blob import Stopped
from settee.delivery.endpoint import NotPublic

#: No new attempt is made when this much time has passed since the first.
PATIENCE_S = 20.0
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 4.0
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
    """What ``call`` returns, at last. Raises what it raised last, and Stopped when ``stop`` is set meanwhile."""
    began = time.monotonic()
    pause = FIRST_PAUSE_S
    while True:
        try:
            return call()
        except Exception as error:
            if not is_transient(error) or time.monotonic() - began > PATIENCE_S:
                raise
        # Jitter: the other threads of this job failed at the same moment.
        if stop.wait(pause * random.uniform(0.5, 1)):  # noqa: S311 - no secret
            raise Stopped
        pause = min(2 * pause, LONGEST_PAUSE_S)
