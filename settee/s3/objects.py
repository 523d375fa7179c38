"""Objects of a bucket: read, or on their way into it, each request checked, tried again, and undone if need be."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

from settee.net.retry import Backoff, retried
from settee.s3.client import client_for, url_for
from settee.s3.error_table import Kind, S3Error, code_of, is_transient, status_of, was_refused
from settee.s3.target import Target

#: What is uploaded took GPU time to make, and botocore's own attempts are over within a second: no new attempt is made
#: when this much time has passed since the first.
PATIENCE_S = 20.0
_BACKOFF = Backoff(0.25, 4.0)
#: Read at a time for its hash, bytes: eight threads do so at once.
_CHUNK = 256 * 1024
#: Metadata of one object, names included, as Amazon limits it.
METADATA_BYTES = 2048
_PLAIN = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"

#: A file is read again from its beginning for every attempt.
Body = io.RawIOBase | bytearray | bytes


class UploadStopped(BaseException):
    """Ends an upload from within.

    Not an Exception: botocore takes any of those from a body for a lost connection, and would try again.
    """


@dataclass
class Object:
    """An object as it is described to S3, and how far it has come."""

    key: str
    media_type: str
    #: Text of any script.
    metadata: Mapping[str, str]
    #: Bytes sent so far.
    size: int = 0
    #: While it goes up in parts.
    upload_id: str | None = None
    parts: list[dict[str, Any]] = field(default_factory=list)
    #: True if S3 may hold (some of) it by now.
    doubtful: bool = False


class Bucket:
    """Requests to one bucket, made from many threads. Once ``stop`` is set they end early and store nothing.

    They raise botocore's errors (see :func:`settee.s3.error_table.explained`), S3Error, and UploadStopped.
    """

    def __init__(self, target: Target, stop: threading.Event, *, patience_s: float | None = None) -> None:
        self._target = target
        self._client = client_for(target)
        self._stop = stop
        self._patience_s = PATIENCE_S if patience_s is None else patience_s

    def put(self, thing: Object, body: Body) -> None:
        """Store an object in one request."""
        # A body that is a file costs a round trip (Expect: 100-continue): small ones are given as bytes.
        arguments = {**self._described(thing), "Body": body, "ContentMD5": _md5(body)}
        with _refusal_noted(thing):
            self._attempt(self._client.put_object, arguments)
        self._take_back_if_late(thing)

    def begin(self, thing: Object) -> None:
        """Start an object that comes in parts."""
        from botocore.exceptions import ClientError

        with _refusal_noted(thing):
            answer = self._attempt(self._client.create_multipart_upload, self._described(thing))
            thing.upload_id = answer["UploadId"]
        if self._stop.is_set():
            # The clearing up may have been here already, and knew of no upload.
            with contextlib.suppress(ClientError):  # or it was in time, and it is gone
                self._client.abort_multipart_upload(**self._place(thing), UploadId=thing.upload_id)
            raise UploadStopped

    def put_part(self, thing: Object, number: int, body: Body) -> None:
        """Send a part; they are numbered from 1."""
        place = {**self._place(thing), "UploadId": thing.upload_id, "PartNumber": number}
        answer = self._attempt(self._client.upload_part, {**place, "Body": body, "ContentMD5": _md5(body)})
        thing.parts.append({"PartNumber": number, "ETag": answer["ETag"]})

    def finish(self, thing: Object) -> None:
        """Put the parts together, and see that the object is as long as what was sent."""
        from botocore.exceptions import ClientError

        parts = sorted(thing.parts, key=lambda part: int(part["PartNumber"]))
        arguments = {**self._place(thing), "UploadId": thing.upload_id, "MultipartUpload": {"Parts": parts}}
        try:
            self._attempt(self._client.complete_multipart_upload, arguments)
        except ClientError as error:
            # A first attempt whose answer got lost may have completed it: then it exists, whole.
            if code_of(error) != "NoSuchUpload" or self._stored(thing) != thing.size:
                raise
        thing.upload_id = None
        self._take_back_if_late(thing)
        stored = self._stored(thing)
        if stored is not None and stored != thing.size:
            raise S3Error(f"S3 stored {stored} of the {thing.size} bytes of {thing.key}", Kind.LATER)

    def remove(self, thing: Object) -> None:
        """Delete what there is of an object, in one attempt."""
        from botocore.exceptions import ClientError

        if thing.upload_id is not None:
            try:
                self._client.abort_multipart_upload(**self._place(thing), UploadId=thing.upload_id)
                return
            except ClientError as error:
                if code_of(error) != "NoSuchUpload":
                    raise
            # It was completed, and only the answer got lost.
        self._client.delete_object(**self._place(thing))

    def url(self, thing: Object) -> str:
        """Return the address where the object can be fetched."""
        return url_for(self._target, thing.key)

    def _take_back_if_late(self, thing: Object) -> None:
        """Delete the object of a job that is over: the clearing up may have been here already."""
        if self._stop.is_set():
            self._client.delete_object(**self._place(thing))

    def _stored(self, thing: Object) -> int | None:
        """Return the bytes of an object, 0 if it does not exist; None where the keys may write but not read."""
        from botocore.exceptions import ClientError

        try:
            return int(self._attempt(self._client.head_object, self._place(thing))["ContentLength"])
        except ClientError as error:
            if status_of(error) in (401, 403):
                return None
            if status_of(error) == 404:
                return 0
            raise

    def _place(self, thing: Object) -> dict[str, Any]:
        return {"Bucket": self._target.bucket, "Key": thing.key}

    def _described(self, thing: Object) -> dict[str, Any]:
        return {**self._place(thing), "ContentType": thing.media_type, "Metadata": encode_metadata(thing.metadata)}

    def _attempt(self, call: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        def once() -> Any:
            body = arguments.get("Body")
            if isinstance(body, io.RawIOBase):
                body.seek(0)
            return call(**arguments)

        try:
            return retried(once, _BACKOFF, may_pass=is_transient, within_s=self._patience_s, stop=self._stop)
        except Exception:
            if self._stop.is_set():
                raise UploadStopped from None
            raise


def head(target: Target, key: str) -> dict[str, Any]:
    """Return S3's description of an object, by HEAD. Raises botocore's errors, with S3's own code for a refusal."""
    from botocore.exceptions import ClientError

    client, where = client_for(target), {"Bucket": target.bucket, "Key": key}
    found: dict[str, Any]
    try:
        try:
            found = client.head_object(**where, ChecksumMode="ENABLED")
        except ClientError as error:
            # Some servers answer so to headers that they do not know.
            if status_of(error) not in (400, 501):
                raise
            found = client.head_object(**where)
    except ClientError as error:
        if status_of(error) not in (400, 403, 404):
            raise
        # The same answer with a body, which names the reason; an object that exists after all costs one byte.
        client.get_object(**where, Range="bytes=0-0")["Body"].close()
        raise
    return found


def read(target: Target, key: str, limit: int) -> bytes:
    """Return the first ``limit`` bytes of an object. Raises botocore's errors, OSError."""
    with client_for(target).get_object(Bucket=target.bucket, Key=key)["Body"] as body:
        content: bytes = body.read(limit)
        return content


def encode_metadata(values: Mapping[str, str]) -> dict[str, str]:
    """Return object metadata for any text: percent-encoded UTF-8, so ``urllib.parse.unquote`` gives it back.

    S3 sends metadata as HTTP headers, which are ASCII. Spaces stay as they are inside a value. The whole keeps to
    Amazon's 2 KB: the longest values are cut, and end with "..." then.
    """
    encoded = {name: _percent(value) for name, value in values.items()}
    budget = METADATA_BYTES - sum(len(name) for name in encoded)
    shorten = sorted(encoded, key=lambda name: len(encoded[name]))
    for position, name in enumerate(shorten):
        share = max(0, budget) // (len(shorten) - position)
        if len(encoded[name]) > share:
            whole = re.sub(r"%.?$", "", encoded[name][: max(0, share - 3)])
            # Not within a character: what is left of one is dropped.
            encoded[name] = f"{_percent(unquote(whole, errors='ignore').rstrip())}..."[:share]
        budget -= len(encoded[name])
    return encoded


def _percent(text: str) -> str:
    """Return the text percent-encoded, its spaces at the ends as well: HTTP trims them."""
    return re.sub("^ +| +$", lambda spaces: "%20" * len(spaces[0]), quote(text, safe=_PLAIN, errors="replace"))


def _md5(body: Body) -> str:
    """Content-MD5: has the server itself refuse bytes that changed on their way.

    The one check that all S3 servers make. SeaweedFS takes no notice of the SHA-256 in the signature, some refuse
    Amazon's newer checksum headers, and an ETag is the file's MD5 only where nothing is encrypted. It costs a pass
    at 0.5 GB/s, in parallel.
    """
    md5 = hashlib.md5(usedforsecurity=False)
    if isinstance(body, io.RawIOBase):
        body.seek(0)
        while chunk := body.read(_CHUNK):
            md5.update(chunk)
    else:
        md5.update(body)
    return base64.b64encode(md5.digest()).decode()


@contextlib.contextmanager
def _refusal_noted(thing: Object) -> Iterator[None]:
    """Around a request that stores something: from here on S3 may hold it, unless S3 itself refused it."""
    before, thing.doubtful = thing.doubtful, True
    try:
        yield
    except Exception as error:
        if was_refused(error):
            thing.doubtful = before
        raise
