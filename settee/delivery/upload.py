"""Uploads the files of a job to S3: several at a time, never one of them whole in memory, all of them or none."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from settee.delivery import s3
from settee.delivery.blob import Blob, Digest, Stopped, Window
from settee.delivery.item import Item, Prepared
from settee.delivery.keys import Namer
from settee.errors import DeliveryError, SetteeError
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
#: Parts of streams in memory at a time, the one that fills included.
STREAM_PARTS = 3
MAX_PARTS = 10_000
#: Up to here a file is read into memory: a body that is a file costs a round trip more (Expect: 100-continue).
SMALL_BYTES = MIB
#: How often a cancel is looked for while requests are under way.
POLL_S = 0.1
#: How long requests under way may take to notice that the job is over, and how long clearing up may take.
GRACE_S = 5.0
CLEAN_UP_S = 15.0


def upload(
    items: Sequence[Item],
    job: Job,
    target: s3.Target,
    *,
    sealer: Sealer | None,
    check: Callable[[], None],
    notify: Callable[[int], None],
) -> list[Output]:
    """Upload the items; with ``sealer``, each as one Fernet token. Their Outputs have type "s3_url".

    Raises DeliveryError (also for what S3 says), OutputMissing, and what ``check`` and fetching raise. The files
    that were already up are deleted then, as far as S3 lets us.
    """
    return _Upload(job, target, sealer, check, notify).run(items)


@dataclass
class _File:
    """A file on its way: ``upload_id`` and ``parts`` when it goes in parts."""

    item: Item
    prepared: Prepared
    key: str
    sha256: str = ""
    size: int = 0
    sent: int = 0
    upload_id: str | None = None
    parts: list[Future[dict[str, Any]]] = field(default_factory=list)


class _Upload:
    def __init__(
        self,
        job: Job,
        target: s3.Target,
        sealer: Sealer | None,
        check: Callable[[], None],
        notify: Callable[[int], None],
    ) -> None:
        self._job = job
        self._target = target
        self._sealer = sealer
        self._check = check
        self._notify = notify
        self._namer = Namer(target.prefix, job)
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(s3.LANES, thread_name_prefix="upload")
        self._pending: dict[Future[Any], int] = {}
        self._files: list[_File] = []

    def run(self, items: Sequence[Item]) -> list[Output]:
        try:
            with _explained(self._target, self._job):
                self._client = s3.client_for(self._target)
                for item in items:
                    self._send(item)
                self._settle()
                self._complete()
                return [self._output(file) for file in self._files]
        except BaseException:
            self._undo()
            raise
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)
            for file in self._files:
                file.prepared.content.close()

    # --- requests in flight --------------------------------------------------------------------------

    def _submit(self, call: Callable[..., Any], *args: Any, weight: int = 0, lanes: int = s3.LANES) -> Future[Any]:
        """Run a request in a thread of its own, once fewer than ``lanes`` are under way."""
        self._settle(below=lanes)
        future = self._pool.submit(call, *args)
        self._pending[future] = weight
        return future

    def _settle(self, below: int = 1) -> None:
        """Wait until fewer than ``below`` requests are under way; raise what any of them raised."""
        while len(self._pending) >= below:
            # Two things are awaited, a request and a cancel, and only one can wake us.
            done, _ = wait(self._pending, timeout=POLL_S, return_when=FIRST_COMPLETED)
            self._check()
            for future in done:
                weight = self._pending.pop(future)
                future.result()
                if weight:
                    self._notify(weight)

    def _call(self, call: Callable[..., Any], *args: Any) -> Any:
        """A request whose answer is needed now, without becoming deaf to a cancel."""
        future = self._submit(call, *args)
        while not future.done():
            self._settle(below=len(self._pending))
        self._pending.pop(future, None)
        return future.result()

    # --- sending -------------------------------------------------------------------------------------

    def _send(self, item: Item) -> None:
        self._settle(below=s3.LANES)  # a converted image is held in memory from here on: not before it has a lane
        prepared = item.prepare()
        name = f"{item.index:04d}.sealed" if self._sealer else prepared.filename
        file = _File(item, prepared, self._namer.key(item.artifact, name))
        self._files.append(file)
        digest = Digest(self._check)
        content = prepared.content
        if isinstance(content, Blob) and not self._sealer:
            if content.size <= MULTIPART_BYTES:
                self._submit(self._put, file, content, weight=content.size)
            else:
                self._begin(file)
                size = _part_bytes(content.size)
                for number, offset in enumerate(range(0, content.size, size), 1):
                    length = min(size, content.size - offset)
                    part = Window(content, offset, length, self._stop)
                    file.parts.append(self._submit(self._put_part, file, number, part, weight=length))
            for _ in digest.through(content.chunks()):
                pass  # hashed here while the threads send
            file.sent = content.size
        else:
            chunks = digest.through(content.chunks())
            self._send_stream(file, self._sealer.seal_chunks(chunks) if self._sealer else chunks)
        file.size, file.sha256 = digest.size, digest.sha256
        item.forget()

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
            self._submit(self._put, file, Blob([bytes(part)]), weight=len(part))
        elif part:
            self._send_part(file, number + 1, part)

    def _send_part(self, file: _File, number: int, part: bytearray) -> None:
        file.sent += len(part)
        future = self._submit(self._put_part, file, number, part, weight=len(part), lanes=STREAM_PARTS)
        file.parts.append(future)

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
        return s3.encode_metadata(values)

    def _object(self, file: _File) -> dict[str, Any]:
        return {
            "Bucket": self._target.bucket,
            "Key": file.key,
            "ContentType": "application/octet-stream" if self._sealer else file.prepared.media_type,
            "Metadata": self._metadata(file),
        }

    def _put(self, file: _File, blob: Blob) -> None:
        small = blob.size <= SMALL_BYTES
        body: Any = blob.read_at(0, blob.size) if small else Window(blob, stop=self._stop)
        self._client.put_object(**self._object(file), Body=body)
        if self._stop.is_set():
            # Too late to be wanted, and perhaps too late for the clearing up to see.
            self._client.delete_object(Bucket=self._target.bucket, Key=file.key)

    def _begin(self, file: _File) -> None:
        def create() -> None:
            answer = self._client.create_multipart_upload(**self._object(file))
            file.upload_id = answer["UploadId"]

        self._call(create)

    def _put_part(self, file: _File, number: int, part: Window | bytearray) -> dict[str, Any]:
        answer = self._client.upload_part(
            Bucket=self._target.bucket, Key=file.key, UploadId=file.upload_id, PartNumber=number, Body=part
        )
        return {"PartNumber": number, "ETag": answer["ETag"]}

    def _complete(self) -> None:
        for file in self._files:
            if file.upload_id is not None:
                self._submit(self._finish, file)
        self._settle()

    def _finish(self, file: _File) -> None:
        from botocore.exceptions import ClientError

        parts = [part.result() for part in file.parts]
        place = {"Bucket": self._target.bucket, "Key": file.key}
        try:
            self._client.complete_multipart_upload(**place, UploadId=file.upload_id, MultipartUpload={"Parts": parts})
        except ClientError as error:
            # A first attempt whose answer got lost may have completed it: then it is there, whole.
            if error.response.get("Error", {}).get("Code") != "NoSuchUpload" or self._stored(place) != file.sent:
                raise
        file.upload_id = None
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
        return file.item.output(
            file.prepared,
            size=file.size,
            sha256=file.sha256,
            type="s3_url",
            url=s3.url_for(self._client, self._target, file.key),
        )

    # --- after a failure -----------------------------------------------------------------------------

    def _undo(self) -> None:
        """Leave nothing behind: stop what is under way, abort, delete. Never raises."""
        self._stop.set()
        for future in self._pending:
            future.cancel()
        wait(self._pending, timeout=GRACE_S)
        if not self._files or not hasattr(self, "_client"):
            return
        pool = ThreadPoolExecutor(s3.LANES, thread_name_prefix="clean-up")
        futures = [pool.submit(self._remove, file) for file in self._files]
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
        place = {"Bucket": self._target.bucket, "Key": file.key}
        if file.upload_id is not None:
            self._client.abort_multipart_upload(**place, UploadId=file.upload_id)
        else:
            self._client.delete_object(**place)


def _part_bytes(size: int) -> int:
    """PART_BYTES, or more for files that would have too many parts."""
    least = -(-size // MAX_PARTS)
    return max(PART_BYTES, -(-least // MIB) * MIB)


@contextlib.contextmanager
def _explained(target: s3.Target, job: Job) -> Iterator[None]:
    """botocore's errors become ours; the log keeps theirs, which name hosts."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        log.warning("job %s: S3: %s", job.id, error)
        raise s3.explain(error, target) from error
    except ValueError as error:
        # boto3's own for an endpoint that is no URL.
        log.warning("job %s: S3: %s", job.id, error)
        raise s3.explain(error, target) from error
    except Stopped as error:  # only seen when a thread stopped by itself, which none does
        raise SetteeError from error
