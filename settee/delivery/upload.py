"""Uploads the files of a job to S3: several at a time, never one of them whole in memory, all of them or none."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from settee.delivery import s3
from settee.delivery.blob import CHUNK, Blob, Digest, Window
from settee.delivery.item import Item, Prepared
from settee.delivery.keys import Namer
from settee.delivery.lanes import Lanes
from settee.delivery.metadata import encode_metadata
from settee.errors import DeliveryError
from settee.job import Job, Output
from settee.sealing import Sealer

log = logging.getLogger(__name__)

MIB = 1024 * 1024
#: Above this a file goes up in parts, as DESIGN.md measured.
MULTIPART_BYTES = 64 * MIB
#: A part of a file: read from it as it is sent.
PART_BYTES = 16 * MIB
#: A part of a stream: it must be held, because a part that failed is sent again.
STREAM_PART_BYTES = 8 * MIB
#: Parts of streams under way at a time; one more is being filled meanwhile.
STREAM_PARTS = 3
MAX_PARTS = 10_000
#: Up to here a file is read into memory: a body that is a file costs a round trip more (Expect: 100-continue).
SMALL_BYTES = MIB
#: How long the clearing up after a failure may take.
CLEAN_UP_S = 15.0


def upload(
    items: Sequence[Item],
    job: Job,
    target: s3.Target,
    *,
    sealer: Sealer | None,
    check: Callable[[], None],
    notify: Callable[[], None],
) -> list[Output]:
    """Upload the items; with ``sealer``, each as one Fernet token. Their Outputs have type "s3_url".

    Raises DeliveryError (also for what S3 says), OutputMissing, and what ``check`` and fetching raise. The files
    that were already up are deleted then, as far as S3 lets us.
    """
    return _Upload(job, target, sealer, check, notify).run(items)


@dataclass
class _File:
    """A file on its way."""

    item: Item
    prepared: Prepared
    key: str
    digest: Digest
    #: Bytes of the object; a sealed one is larger than its file.
    sent: int = 0
    #: While it goes up in parts.
    upload_id: str | None = None
    parts: list[dict[str, Any]] = field(default_factory=list)
    requests: list[Future[Any]] = field(default_factory=list)
    #: Whether S3 may hold (some of) it by now.
    stored: bool = False

    def close_if_sent(self) -> bool:
        """A file that a thread may still read closes when that thread lets go of it."""
        if all(request.done() for request in self.requests):
            self.prepared.content.close()
            return True
        return False


class _Upload:
    def __init__(
        self,
        job: Job,
        target: s3.Target,
        sealer: Sealer | None,
        check: Callable[[], None],
        notify: Callable[[], None],
    ) -> None:
        self._job = job
        self._target = target
        self._sealer = sealer
        self._check = check
        self._namer = Namer(target.prefix, job)
        self._lanes = Lanes(s3.LANES, check, notify)
        self._files: list[_File] = []
        self._open: list[_File] = []

    def run(self, items: Sequence[Item]) -> list[Output]:
        try:
            with _explained(self._target, self._job):
                self._client = s3.client_for(self._target)
                for item in items:
                    self._send(item)
                self._lanes.settle()
                for file in self._files:
                    if file.upload_id is not None:
                        self._submit(file, self._finish, last=True)
                self._lanes.settle()
                return [self._output(file) for file in self._files]
        except BaseException:
            self._undo()
            raise
        finally:
            self._lanes.close()
            self._close_sent()

    def _submit(
        self, file: _File, call: Callable[..., None], *args: Any, last: bool = False, width: int | None = None
    ) -> None:
        """Start one of a file's requests; with the ``last`` one the file is delivered."""
        file.requests.append(self._lanes.submit(call, file, *args, tell=last, width=width))

    # --- sending -------------------------------------------------------------------------------------

    def _send(self, item: Item) -> None:
        # What is converted or small is held in memory from here on: not before there is a lane for it.
        self._lanes.room()
        self._close_sent()
        prepared = item.prepare()
        name = f"{item.index:04d}.sealed" if self._sealer else prepared.filename
        file = _File(item, prepared, self._namer.key(item.artifact, name), Digest(self._check))
        self._files.append(file)
        self._open.append(file)
        chunks = file.digest.through(prepared.content.chunks())
        if self._sealer or not isinstance(prepared.content, Blob):
            self._send_stream(file, self._sealer.seal_chunks(chunks) if self._sealer else chunks)
        elif prepared.content.size <= SMALL_BYTES:
            self._send_stream(file, chunks)
        else:
            self._send_blob(file, prepared.content)
            for _ in chunks:
                pass  # hashed here while the threads send
        item.forget()

    def _close_sent(self) -> None:
        """A job may have more files than a process may have open."""
        self._open = [file for file in self._open if not file.close_if_sent()]

    def _send_blob(self, file: _File, blob: Blob) -> None:
        """A put, or parts: threads read them from the file as they go."""
        file.sent = blob.size
        if blob.size <= MULTIPART_BYTES:
            self._submit(file, self._put, Window(blob, stop=self._lanes.stop), last=True)
            return
        self._begin(file)
        step = _part_bytes(blob.size)
        for number, offset in enumerate(range(0, blob.size, step), 1):
            length = min(step, blob.size - offset)
            self._submit(file, self._put_part, number, Window(blob, offset, length, self._lanes.stop))

    def _send_stream(self, file: _File, chunks: Iterator[bytes] | Iterator[bytes | memoryview]) -> None:
        """Parts of equal size from chunks of any; a stream that ends within the first one needs no multipart."""
        part = bytearray()
        number = 0
        for chunk in chunks:
            part += chunk
            if len(part) < STREAM_PART_BYTES:
                continue
            if number == 0:
                self._begin(file)
            number += 1
            if number > MAX_PARTS:
                raise DeliveryError(f"{file.item.artifact.filename} is too large for S3 ({MAX_PARTS} parts)")
            self._send_part(file, number, part)
            part = bytearray()
        if number == 0:
            file.sent = len(part)
            self._submit(file, self._put, part, last=True)
        elif part:
            self._send_part(file, number + 1, part)

    def _send_part(self, file: _File, number: int, part: bytearray) -> None:
        file.sent += len(part)
        self._submit(file, self._put_part, number, part, width=STREAM_PARTS)

    # --- S3's requests, each in a thread of the pool -------------------------------------------------

    def _metadata(self, file: _File) -> dict[str, str]:
        """What a bucket's owner may want to know about an object. Nothing of a sealed job but its id."""
        values = {"settee-job": self._job.id}
        if not self._sealer:
            artifact = file.item.artifact
            values["settee-node"] = artifact.node_id
            values["settee-filename"] = file.prepared.filename
            if artifact.subfolder:
                values["settee-subfolder"] = artifact.subfolder
        return encode_metadata(values)

    def _object(self, file: _File) -> dict[str, Any]:
        return {
            "Bucket": self._target.bucket,
            "Key": file.key,
            "ContentType": "application/octet-stream" if self._sealer else file.prepared.media_type,
            "Metadata": self._metadata(file),
        }

    def _put(self, file: _File, body: Window | bytearray) -> None:
        md5 = self._md5(body)
        with _refusal_noted(file):
            # A body that is a file costs a round trip (Expect: 100-continue), so small ones are bytes.
            self._client.put_object(**self._object(file), Body=body, ContentMD5=md5)
        self._take_back_if_late(file)

    def _md5(self, body: Window | bytearray) -> str:
        """Content-MD5: has the server itself refuse bytes that changed on their way.

        The one check that all S3 servers make. SeaweedFS takes no notice of the SHA-256 in the signature, some
        refuse Amazon's newer checksum headers, and an ETag is the file's MD5 only where nothing is encrypted.
        It costs a pass at 0.5 GB/s, in parallel.
        """
        md5 = hashlib.md5(usedforsecurity=False)
        if isinstance(body, Window):
            while chunk := body.read(CHUNK):
                md5.update(chunk)
            body.seek(0)
        else:
            md5.update(body)
        return base64.b64encode(md5.digest()).decode()

    def _take_back_if_late(self, file: _File) -> None:
        """The job is over, and the clearing up may have been here already."""
        if self._lanes.stop.is_set():
            self._client.delete_object(Bucket=self._target.bucket, Key=file.key)

    def _begin(self, file: _File) -> None:
        """Start a multipart upload: its id is needed before anything else of the file can be sent."""

        def create(file: _File) -> None:
            with _refusal_noted(file):
                file.upload_id = self._client.create_multipart_upload(**self._object(file))["UploadId"]

        self._lanes.result(self._lanes.submit(create, file))

    def _put_part(self, file: _File, number: int, part: Window | bytearray) -> None:
        answer = self._client.upload_part(
            Bucket=self._target.bucket,
            Key=file.key,
            UploadId=file.upload_id,
            PartNumber=number,
            Body=part,
            ContentMD5=self._md5(part),
        )
        file.parts.append({"PartNumber": number, "ETag": answer["ETag"]})

    def _finish(self, file: _File) -> None:
        from botocore.exceptions import ClientError

        parts = sorted(file.parts, key=lambda part: int(part["PartNumber"]))
        place = {"Bucket": self._target.bucket, "Key": file.key}
        try:
            self._client.complete_multipart_upload(**place, UploadId=file.upload_id, MultipartUpload={"Parts": parts})
        except ClientError as error:
            # A first attempt whose answer got lost may have completed it: then it is there, whole.
            if error.response.get("Error", {}).get("Code") != "NoSuchUpload" or self._stored(place) != file.sent:
                raise
        file.upload_id = None
        self._take_back_if_late(file)
        stored = self._stored(place)
        if stored is not None and stored != file.sent:
            raise DeliveryError(
                f"S3 stored {stored} of the {file.sent} bytes of {file.item.artifact.filename}", retryable=True
            )

    def _stored(self, place: dict[str, str]) -> int | None:
        """Bytes of an object; None where the keys may write but not read."""
        from botocore.exceptions import ClientError

        try:
            return int(self._client.head_object(**place)["ContentLength"])
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in (401, 403):
                return None
            raise

    def _output(self, file: _File) -> Output:
        url = s3.url_for(self._client, self._target, file.key)
        return file.item.output(file.prepared, file.digest, "s3_url", url=url)

    # --- after a failure -----------------------------------------------------------------------------

    def _undo(self) -> None:
        """Leave nothing behind: stop what is under way, abort, delete. Never raises."""
        self._lanes.halt()
        doubtful = [file for file in self._files if file.stored or file.upload_id is not None]
        if not doubtful:
            return
        pool = ThreadPoolExecutor(s3.LANES, thread_name_prefix="clean-up")
        futures = [pool.submit(self._remove, file) for file in doubtful]
        done, late = wait(futures, timeout=CLEAN_UP_S)
        pool.shutdown(wait=False, cancel_futures=True)
        failed = [future for future in done if not future.cancelled() and future.exception()]
        if failed or late:
            log.warning(
                "job %s: %d of %d uploaded files could not be deleted from S3 after its delivery failed: %s",
                self._job.id,
                len(failed) + len(late),
                len(futures),
                type(failed[0].exception()).__name__ if failed else "no answer",
            )

    def _remove(self, file: _File) -> None:
        from botocore.exceptions import ClientError

        place = {"Bucket": self._target.bucket, "Key": file.key}
        if file.upload_id is not None:
            try:
                self._client.abort_multipart_upload(**place, UploadId=file.upload_id)
                return
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") != "NoSuchUpload":
                    raise
            # It was completed, and only the answer got lost.
        self._client.delete_object(**place)


def _part_bytes(size: int) -> int:
    """PART_BYTES, or more for files that would have too many parts."""
    least = -(-size // MAX_PARTS)
    return max(PART_BYTES, -(-least // MIB) * MIB)


@contextlib.contextmanager
def _refusal_noted(file: _File) -> Iterator[None]:
    """After a request that stores something S3 may hold it, unless S3 itself said no or was never reached."""
    from botocore.exceptions import ClientError, ConnectTimeoutError, EndpointConnectionError

    file.stored = True
    try:
        yield
    except (ClientError, EndpointConnectionError, ConnectTimeoutError):
        file.stored = False
        raise


@contextlib.contextmanager
def _explained(target: s3.Target, job: Job) -> Iterator[None]:
    """botocore's errors become ours; the log keeps theirs, which name hosts."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        log.warning("job %s: S3: %s", job.id, error)
        raise s3.explain(error, target) from error
