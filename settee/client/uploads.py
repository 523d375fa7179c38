"""Input files that are too large for a request: to the caller's S3 bucket, and by presigned URL to the worker.

The worker fetches what is on the public Internet only, so the bucket must be there too.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from settee.client.arguments import Environment
from settee.client.client_errors import AuthError, ClientError, JobStopped, NetworkError, UsageError
from settee.s3.client import url_for
from settee.s3.error_table import Kind, S3Error, explained
from settee.s3.objects import Bucket, Object, UploadStopped
from settee.s3.target import Target, bucket_problem, plain_endpoint, region_of

log = logging.getLogger(__name__)

#: How long the worker's URL lives: a job may wait in the queue that long (RunPod's ttl).
EXPIRES_S = 24 * 3600
PREFIX = "settee-inputs"
#: Characters of a presigned URL, at most: the endpoint, the key and the signature.
URL_SIZE = 2000
#: No new attempt is made when this many seconds have passed since the first.
_PATIENCE_S = 10.0


class Uploader:
    """The input files of one job in the bucket of BUCKET_ENDPOINT_URL. Its methods may be called from any thread.

    No request is made and the environment is not checked before the first file: half a bucket in it does no harm
    while every file fits into its request. ``stop`` gives up an upload under way, with JobStopped.
    """

    def __init__(self, environment: Environment, *, stop: threading.Event | None = None) -> None:
        self._environment = environment
        self._stop = stop or threading.Event()
        self._keys: list[str] = []

    @functools.cached_property
    def target(self) -> Target:
        """The bucket. Raises UsageError for an environment that names half a bucket, or an invalid one."""
        given = self._environment
        needed = ("bucket_endpoint_url", "bucket_access_key_id", "bucket_secret_access_key")
        if missing := [name.upper() for name in needed if not getattr(given, name)]:
            raise UsageError(f"to send files by S3, set {', '.join(missing)}")
        url, name = str(given.bucket_endpoint_url), given.bucket_name
        if not url.startswith(("https://", "http://")):
            raise UsageError("BUCKET_ENDPOINT_URL must begin with https:// or http://")
        if name and (problem := bucket_problem(name)):
            raise UsageError(f"BUCKET_NAME {problem}")
        endpoint = plain_endpoint(url, name)
        return Target(
            endpoint_url=endpoint,
            access_key=str(given.bucket_access_key_id),
            secret_key=str(given.bucket_secret_access_key),
            region=given.bucket_region or region_of(endpoint),
            # Without a name the address must hold it (https://name.s3.region.amazonaws.com): what would be the
            # bucket's name is then the first folder in it.
            path_style=given.bucket_path_style if name else True,
            bucket=name or PREFIX,
            prefix=f"{PREFIX}/" if name else "",
            expires_s=EXPIRES_S,
        )

    def put(self, name: str, content: Path | bytes) -> str:
        """Put a file under ``settee-inputs/<uuid>/<name>``; returns a URL that opens it for 24 hours.

        Raises UsageError for half a bucket; UsageError and AuthError where S3 refuses, NetworkError where it cannot be
        reached, and JobStopped.
        """
        key = f"{self.target.prefix}{uuid.uuid4()}/{name}"
        # Noted before it is there: what an interrupted upload leaves is removed too.
        self._keys.append(key)
        try:
            with self._bucket() as bucket, contextlib.ExitStack() as opened:
                if self._stop.is_set():
                    raise UploadStopped
                body = opened.enter_context(_File(content, self._stop)) if isinstance(content, Path) else content
                bucket.put(Object(key, "application/octet-stream", {}), body)
                return url_for(self.target, key)
        except UploadStopped:
            raise JobStopped("the upload of the input files was given up; no job was sent") from None

    def remove(self) -> list[str]:
        """Delete what was put there, when the job has ended. Returns the keys that S3 did not let go."""
        keys, self._keys = self._keys, []
        for key in keys:
            try:
                with self._bucket() as bucket:
                    bucket.remove(Object(key, "", {}))
            except ClientError as error:
                log.warning("an input file stays in the bucket: %s", error)
                self._keys.append(key)
        return self._keys

    @contextlib.contextmanager
    def _bucket(self) -> Iterator[Bucket]:
        """Give the bucket; what S3 answers to requests within becomes one of the client's errors."""
        try:
            with explained(self.target):
                yield Bucket(self.target, self._stop, patience_s=_PATIENCE_S)
        except ImportError as error:
            raise UsageError("sending files by S3 needs one more package: pip install 'settee[s3]'") from error
        except S3Error as error:
            raise self._failed(error) from error
        except OSError as error:
            raise UsageError(f"{error.filename} cannot be read: {error.strerror}") from error

    def _failed(self, error: S3Error) -> ClientError:
        if error.kind in (Kind.WRONG_KEYS, Kind.FORBIDDEN):
            return AuthError(error.message)
        if error.retryable:
            return NetworkError(error.message)
        if error.kind is Kind.NO_BUCKET and not self._environment.bucket_name:
            return UsageError("S3 finds no bucket: BUCKET_ENDPOINT_URL names none, so set BUCKET_NAME")
        return UsageError(error.message)


class _File(io.FileIO):
    """A file whose upload ends when ``stop`` is set.

    It is sent as one object: no worker takes a file of S3's 5 GB, and one connection fills a caller's line.
    """

    def __init__(self, path: Path, stop: threading.Event) -> None:
        super().__init__(path)
        self._stop = stop

    def read(self, size: int | None = -1, /) -> bytes:
        if self._stop.is_set():
            raise UploadStopped
        return super().read(-1 if size is None else size) or b""
