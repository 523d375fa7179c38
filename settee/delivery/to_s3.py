"""Upload the files of a job to S3: several at a time, never one of them whole in memory, all of them or none."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from settee.base.errors import DeliveryError
from settee.base.job import Output
from settee.base.settings import MIB
from settee.base.threads import Call, Pool
from settee.delivery.blob import Blob, Digest, Prepared, Stream, Window, delivery_error
from settee.delivery.item import Item
from settee.delivery.keys import Namer
from settee.s3.client import LANES, forget
from settee.s3.error_table import S3Error, explained
from settee.s3.objects import Body, Bucket, Object

if TYPE_CHECKING:
    from settee.delivery import Delivery

log = logging.getLogger(__name__)

#: Above this a file goes up in parts.
MULTIPART_BYTES = 64 * MIB
#: A part of a file: read from it as it is sent.
PART_BYTES = 16 * MIB
#: A part of a stream: it must be held, because a part that failed is sent again.
STREAM_PART_BYTES = 8 * MIB
#: Parts of streams under way at a time; one more is being filled meanwhile.
STREAM_PARTS = 3
#: S3's own limit.
MAX_PARTS = 10_000
#: Up to here a file is read into memory to be sent.
SMALL_BYTES = MIB
#: How long a job waits for the clearing up after a failure, seconds.
CLEAN_UP_S = 5.0
#: How long requests under way may take to notice that the job is over, seconds.
GRACE_S = 5.0


@dataclass
class _File:
    """A file on its way. ``prepared`` has no content any more: its descriptor is closed after the last request."""

    item: Item
    prepared: Prepared
    object: Object
    digest: Digest


class Upload:
    """One job's files on their way to its bucket."""

    def __init__(self, delivery: Delivery) -> None:
        assert delivery.target is not None
        self._delivery = delivery
        self._job = delivery.job
        self._target = delivery.target
        self._namer = Namer(self._target.prefix, self._job)
        self._stop = threading.Event()
        self._pool = Pool(LANES, delivery.check, name="settee-upload")
        self._files: list[_File] = []
        #: Contents whose descriptors may be open: a job may have more files than a process may have open.
        self._open: weakref.WeakSet[Blob | Stream] = weakref.WeakSet()

    def run(self, items: Sequence[Item]) -> list[Output]:
        """Upload the items; for a sealed job, each as one Fernet token. Their Outputs have type "s3_url".

        Raises DeliveryError (also for S3's errors), OutputMissing, and what checking and fetching raise. The files that
        were already up are deleted then, as far as S3 permits it.
        """
        try:
            with explained(self._target):
                self._bucket = Bucket(self._target, self._stop)
                for item in items:
                    self._send(item)
                self._pool.settle()
                for file in self._files:
                    if file.object.upload_id is not None:
                        self._submit(file, self._bucket.finish, last=True)
                self._pool.settle()
                return [
                    file.item.output(file.prepared, file.digest, "s3_url", url=self._bucket.url(file.object))
                    for file in self._files
                ]
        except BaseException as error:
            self._undo()
            if not isinstance(error, S3Error):
                raise
            # The log keeps the kind only: the text has the URL, and so names.
            cause, code = type(error.__cause__ or error).__name__, error.details.get("s3_code", "")
            log.warning("job %s: S3: %s (code %r, status %d)", self._job.id, cause, code, error.status)
            forget(self._target)  # and with it botocore's count of failures, which would cost the next job its retries
            raise delivery_error(error) from error
        finally:
            self._pool.close()

    def _submit(
        self, file: _File, call: Callable[..., None], *args: Any, last: bool = False, width: int | None = None
    ) -> None:
        """Start one of a file's requests; with the ``last`` one the file is delivered."""
        then = self._delivery.notify if last else lambda: None
        self._pool.submit(partial(call, file.object, *args), then=lambda _: then(), width=width)

    def _send(self, item: Item) -> None:
        # What is converted or small is held in memory from here on: not before a thread is free for it.
        self._pool.settle(LANES)
        self._delivery.check()  # preparing may be a conversion
        prepared, digest = item.prepare(), Digest(self._delivery.check)
        destination = self._job.options.destination
        if destination is None:
            file = _File(item, prepared, self._described(item, prepared), digest)
            chunks = digest.through(prepared.content.chunks())
        else:  # its metadata has the hash, and is sent ahead of the file
            if isinstance(prepared.content, Stream):
                prepared.content = prepared.content.spooled(self._delivery.settings.workspace_dir)
            for _ in digest.through(prepared.content.chunks()):
                pass
            metadata = destination.metadata(item.artifact, digest.sha256)
            thing = Object(destination.key(item.index, item.artifact), prepared.media_type, metadata)
            file = _File(item, prepared, thing, digest)
            chunks = iter(prepared.content.chunks())
        self._files.append(file)
        content, prepared.content = prepared.content, Blob()
        self._open.add(content)
        if sealer := self._job.sealer:
            self._send_parts(file, _held(file, sealer.seal_chunks(chunks)), STREAM_PARTS)
        elif not isinstance(content, Blob) or content.size <= SMALL_BYTES:
            self._send_parts(file, _held(file, chunks), STREAM_PARTS)
        else:
            self._send_parts(file, self._windows(file, content), LANES)
            for _ in chunks if destination is None else ():
                pass  # hashed here while the threads send
        item.forget()

    def _described(self, item: Item, prepared: Prepared) -> Object:
        """Return its key, and the metadata that a bucket's owner may want: of a sealed job nothing but the id."""
        artifact, values = item.artifact, {"settee-job": self._job.id}
        if self._job.sealer:
            key = self._namer.key(artifact, f"{item.index:04d}.sealed")
            return Object(key, "application/octet-stream", values)
        values |= {
            "settee-node": artifact.node_id,
            "settee-filename": prepared.filename,
            "settee-subfolder": artifact.subfolder,
        }
        metadata = {name: value for name, value in values.items() if value}
        return Object(self._namer.key(artifact, prepared.filename), prepared.media_type, metadata)

    def _send_parts(self, file: _File, parts: Iterator[tuple[Body, bool]], width: int) -> None:
        """Send parts, each with whether it is the last: one by itself needs no multipart upload."""
        for number, (part, is_last) in enumerate(parts, 1):
            if number == 1 and is_last:
                self._submit(file, self._bucket.put, part, last=True)
                return
            if number == 1:  # its id is needed before anything else of the file can be sent
                self._pool.result(self._pool.submit(partial(self._bucket.begin, file.object)))
            if number > MAX_PARTS:
                raise DeliveryError(f"{file.item.artifact.filename} is too large for S3 ({MAX_PARTS} parts)")
            self._submit(file, self._bucket.put_part, number, part, width=width)

    def _windows(self, file: _File, blob: Blob) -> Iterator[tuple[Body, bool]]:
        """Give the parts of a file that threads read as they go."""
        file.object.size, step = blob.size, blob.size
        if blob.size > MULTIPART_BYTES:
            # Larger parts for files that would have too many of them.
            step = max(PART_BYTES, -(-blob.size // (MAX_PARTS * MIB)) * MIB)
        for offset in range(0, blob.size, step):
            yield Window(blob, offset, min(step, blob.size - offset), self._stop), offset + step >= blob.size

    def _undo(self) -> None:
        """Leave nothing behind: stop what is under way, abort, delete. Never raises."""
        self._stop.set()
        if self._pool.close(GRACE_S):
            for content in self._open:  # their errors still refer to them
                content.close()
        doubtful = [file.object for file in self._files if file.object.doubtful]
        if not doubtful:
            return
        todo, failed = list(doubtful), []

        def clean_up() -> None:
            with contextlib.suppress(IndexError):
                while thing := todo.pop():
                    try:
                        self._bucket.remove(thing)
                    except Exception:
                        failed.append(thing)

        until = time.monotonic() + CLEAN_UP_S
        threads = [Call(clean_up, name="settee-clean-up") for _ in range(min(LANES, len(doubtful)))]
        # What is late goes on: no GPU waits for it.
        late = len(todo) + sum(not each.ended.wait(max(0.0, until - time.monotonic())) for each in threads)
        if failed or late:
            log.warning(
                "job %s: of %d uploaded files %d could not be deleted from S3 after its delivery failed%s",
                self._job.id,
                len(doubtful),
                len(failed),
                f", and {late} are still being deleted" if late else "",
            )


def _held(file: _File, chunks: Iterator[bytes] | Iterator[bytes | memoryview]) -> Iterator[tuple[Body, bool]]:
    """Give the parts of a stream, made from chunks of any size."""
    part = bytearray()
    for chunk in chunks:
        file.object.size += len(chunk)
        part += chunk
        # To the byte: Cloudflare's R2 wants all parts but the last to have one size.
        while len(part) > STREAM_PART_BYTES:
            rest = part[STREAM_PART_BYTES:]
            del part[STREAM_PART_BYTES:]
            yield part, False
            part = rest
    yield part, True
