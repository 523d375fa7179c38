"""Input files that are too large for a request: to the caller's S3 bucket, and by presigned URL to the worker.

The worker fetches what is on the public Internet only, so the bucket must be there too.
"""

from __future__ import annotations

import functools
import io
import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from settee.client.environment import Environment
from settee.client.errors import AuthError, ClientError, JobStopped, NetworkError, UsageError

log = logging.getLogger(__name__)

#: How long the worker's URL lives: a job may wait in the queue that long (RunPod's ttl).
EXPIRES_S = 24 * 3600
PREFIX = "settee-inputs"
#: Characters of a presigned URL, at most: the endpoint, the key and the signature.
URL_SIZE = 2000
_CONNECT_S = 10
_READ_S = 60
_ATTEMPTS = 3

_KEYS = "BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY"
_REFUSED_KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "AuthFailure")
_OTHER_REGION = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException")


@dataclass(frozen=True, kw_only=True)
class _Bucket:
    """What a client is made of, and where it puts things."""

    endpoint_url: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    region: str
    path_style: bool
    name: str
    #: Before every key, with a slash.
    prefix: str


class Uploader:
    """The input files of one job in the bucket of BUCKET_ENDPOINT_URL. Its methods may be called from any thread.

    Nothing is asked of S3 until the first file, nor is the environment looked at: half a bucket in it is nobody's
    trouble while every file fits into its request. ``stop`` gives up an upload under way, with JobStopped.
    """

    def __init__(self, environment: Environment, *, stop: threading.Event | None = None) -> None:
        self._environment = environment
        self._stop = stop or threading.Event()
        self._lock = threading.Lock()
        self._keys: list[str] = []

    @functools.cached_property
    def _bucket(self) -> _Bucket:
        return _bucket(self._environment)

    def check(self) -> None:
        """Raise the UsageError that :meth:`put` would for an environment that names half a bucket, or none rightly."""
        _ = self._bucket

    def put(self, name: str, content: Path | bytes) -> str:
        """Put a file under ``settee-inputs/<uuid>/<name>``; returns a URL that opens it for 24 hours.

        Raises UsageError for half a bucket; UsageError and AuthError where S3 refuses, NetworkError where it cannot be
        reached, and JobStopped.
        """
        client = _client(self._bucket)
        key = f"{self._bucket.prefix}{uuid.uuid4()}/{name}"
        with self._lock:
            # Noted before it is there: what an interrupted upload leaves is removed too.
            self._keys.append(key)
        self._go_on()
        with _explained(self._bucket):
            try:
                if isinstance(content, Path):
                    with _Watched(content, self._go_on) as body:
                        client.put_object(Bucket=self._bucket.name, Key=key, Body=body)
                else:
                    client.put_object(Bucket=self._bucket.name, Key=key, Body=content)
            except Exception:
                self._go_on()  # botocore calls what our stop has raised in it a failure to connect
                raise
            url: str = client.generate_presigned_url(
                "get_object", Params={"Bucket": self._bucket.name, "Key": key}, ExpiresIn=EXPIRES_S
            )
        return url

    def remove(self) -> list[str]:
        """Delete what was put there, when the job has ended. Returns the keys that S3 did not let go."""
        with self._lock:
            keys, self._keys = self._keys, []
        left = []
        for key in keys:
            try:
                with _explained(self._bucket):
                    _client(self._bucket).delete_object(Bucket=self._bucket.name, Key=key)
            except ClientError as error:
                log.warning("an input file stays in the bucket: %s", error)
                left.append(key)
        with self._lock:
            self._keys = left + self._keys
        return left

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise JobStopped("the upload of the input files was given up; no job was sent")


class _Watched(io.FileIO):
    """A file that asks, at every piece of it that is read, whether to go on.

    It is sent as one object: no worker takes a file of S3's 5 GB, and one connection fills a caller's line. (boto3's
    upload_file would send parts, but leaves the file open when it is stopped.)
    """

    def __init__(self, path: Path, go_on: Callable[[], None]) -> None:
        super().__init__(path)
        self._go_on = go_on

    def read(self, size: int | None = -1, /) -> bytes:
        self._go_on()
        return super().read(-1 if size is None else size) or b""


def uploader_for(environment: Environment, *, stop: threading.Event | None = None) -> Uploader | None:
    """The uploader for one job; None where the environment names no bucket."""
    return Uploader(environment, stop=stop) if environment.bucket_endpoint_url else None


def _bucket(environment: Environment) -> _Bucket:
    from settee.buckets import bucket_problem, plain_endpoint, region_of

    given = {
        "BUCKET_ENDPOINT_URL": environment.bucket_endpoint_url,
        "BUCKET_ACCESS_KEY_ID": environment.bucket_access_key_id,
        "BUCKET_SECRET_ACCESS_KEY": environment.bucket_secret_access_key,
    }
    missing = [name for name, value in given.items() if not value]
    if missing:
        raise UsageError(f"to send files by S3, set {', '.join(missing)}")
    url, name = str(environment.bucket_endpoint_url), environment.bucket_name
    if not url.startswith(("https://", "http://")):
        raise UsageError("BUCKET_ENDPOINT_URL must begin with https:// or http://")
    if name and (problem := bucket_problem(name)):
        raise UsageError(f"BUCKET_NAME {problem}")
    endpoint = plain_endpoint(url, name)
    return _Bucket(
        endpoint_url=endpoint,
        access_key=str(environment.bucket_access_key_id),
        secret_key=str(environment.bucket_secret_access_key),
        region=environment.bucket_region or region_of(endpoint),
        # Without a name the address must hold it (https://name.s3.region.amazonaws.com): what would be the bucket's
        # name is then the first folder in it.
        path_style=environment.bucket_path_style if name else True,
        name=name or PREFIX,
        prefix=f"{PREFIX}/" if name else "",
    )


@functools.lru_cache(maxsize=4)
def _client(bucket: _Bucket) -> Any:
    """A boto3 client, kept for the next job of a batch: making one takes a tenth of a second."""
    try:
        import boto3.session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise UsageError("sending files by S3 needs one more package: pip install 'settee[s3]'") from error
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path" if bucket.path_style else "virtual"},
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        connect_timeout=_CONNECT_S,
        read_timeout=_READ_S,
        # botocore's default sends checksums as aws-chunked trailers, which many S3-compatible servers refuse.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        user_agent_extra="settee-client",
    )
    try:
        return boto3.session.Session().client(
            "s3",
            endpoint_url=bucket.endpoint_url,
            aws_access_key_id=bucket.access_key,
            aws_secret_access_key=bucket.secret_key,
            region_name=bucket.region,
            config=config,
        )
    except ValueError as error:
        raise UsageError("BUCKET_ENDPOINT_URL is not the address of an S3 API") from error
    except BotoCoreError as error:
        # It reads the machine's AWS_* variables and files too: AWS_PROFILE may name what is not there.
        raise UsageError(f"S3 cannot be used as AWS_* variables of this machine say: {type(error).__name__}") from error


@contextmanager
def _explained(bucket: _Bucket) -> Iterator[None]:
    """Turns what boto3 raises into an error that says which setting to look at, and names no host and no key."""
    from botocore.exceptions import BotoCoreError
    from botocore.exceptions import ClientError as Refusal

    try:
        yield
    except Refusal as error:
        raise _refused(error, bucket) from error
    except BotoCoreError as error:
        raise _unreachable(error) from error
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be read: {error.strerror}") from error


def _unreachable(error: Exception) -> ClientError:
    return NetworkError(f"S3 cannot be reached ({type(error).__name__}): look at BUCKET_ENDPOINT_URL")


def _refused(error: Any, bucket: _Bucket) -> ClientError:
    code = str(error.response.get("Error", {}).get("Code", ""))[:80]
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)
    if code in _REFUSED_KEYS:
        return AuthError(f"S3 does not accept the keys: look at {_KEYS}")
    if code in ("NoSuchBucket", "InvalidBucketName") or status == 404:
        if not bucket.prefix:
            return UsageError("S3 finds no bucket: BUCKET_ENDPOINT_URL names none, so set BUCKET_NAME")
        return UsageError(f"S3 has no bucket {bucket.name!r}: create it, or set BUCKET_NAME")
    if code in _OTHER_REGION or status in (301, 307):
        return UsageError("the bucket is in another region: set BUCKET_REGION")
    if status in (401, 403):
        where = f" {bucket.name!r}" if bucket.prefix else ""
        return AuthError(f"S3 does not allow these keys to write to the bucket{where}: look at {_KEYS}, BUCKET_NAME")
    if status >= 500 or status == 429:
        return NetworkError(f"S3 failed again and again ({status} {code}): try later, or look at BUCKET_ENDPOINT_URL")
    return UsageError(f"S3 refused the upload ({status} {code}): look at BUCKET_ENDPOINT_URL and BUCKET_NAME")
