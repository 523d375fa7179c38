"""Upload the files of a job to S3: several at a time, never one of them whole in memory, all of them or none."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from settee.base.errors import DeliveryError
from settee.base.job import Job, Output
from settee.base.sealing import Sealer
from settee.base.settings import MIB
from settee.base.threads import TICK_S, Call
from settee.delivery.blob import Blob, Digest, Stream, Window, delivery_error
from settee.delivery.item import Item, Prepared
from settee.delivery.keys import Namer
from settee.s3.client import LANES, forget
from settee.s3.error_table import S3Error, explained
from settee.s3.objects import Bucket, Object
from settee.s3.target import Target

log = logging.getLogger(__name__)

#: Above this a file goes up in parts, as DESIGN.md measured.
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

T = TypeVar("T")


def upload(
    items: Sequence[Item],
    job: Job,
    target: Target,
    *,
    sealer: Sealer | None,
    check: Callable[[], None],
    notify: Callable[[], None],
) -> list[Output]:
    """Upload the items; with ``sealer``, each as one Fernet token. Their Outputs have type "s3_url".

    ``notify`` is called for each that has arrived. Raises DeliveryError (also for S3's errors), OutputMissing, and what
    ``check`` and fetching raise. The files that were already up are deleted then, as far as S3 permits it.
    """
    return _Upload(job, target, sealer, check, notify).run(items)


@dataclass
class _File:
    """A file on its way."""

    item: Item
    prepared: Prepared
    object: Object
    digest: Digest
    requests: list[Call[Any]] = field(default_factory=list)

    def close_if_sent(self) -> bool:
        """Close the file once no request reads it any more."""
        if all(request.ended.is_set() for request in self.requests):
            self.prepared.content.close()
            return True
        return False


class _Lanes:
    """At most ``width`` calls at a time, each in a thread. Used from one thread.

    ``check`` raises when the job is over; ``notify`` is called for each call started with ``tell`` once it has
    succeeded. Calls are asked to stop through ``stop``.
    """

    def __init__(self, width: int, check: Callable[[], None], notify: Callable[[], None]) -> None:
        self._width = width
        self._check = check
        self._notify = notify
        self._some_ended = threading.Event()
        #: With each, whether to notify of it.
        self._pending: dict[Call[Any], bool] = {}
        self.stop = threading.Event()

    def submit(self, call: Callable[..., T], *args: Any, tell: bool = False, width: int | None = None) -> Call[T]:
        """Start a call once there is a lane for it (of ``width``, if less). Raises what earlier calls raised."""
        self.settle(below=min(width or self._width, self._width))
        running = Call(partial(call, *args), name="settee-upload")
        self._pending[running] = tell
        running.when_ended(self._some_ended.set)
        return running

    def settle(self, below: int = 1) -> None:
        """Wait until fewer than ``below`` calls are under way. Raises what they raise, and what ``check`` raises."""
        while len(self._pending) >= below:
            self._some_ended.wait(TICK_S)
            self._some_ended.clear()
            self._check()
            for running in [each for each in self._pending if each.ended.is_set()]:
                tell = self._pending.pop(running)
                running.result()
                if tell:
                    self._notify()

    def room(self) -> None:
        """Wait until another call could start."""
        self.settle(below=self._width)

    def result(self, running: Call[T]) -> T:
        """Return what one of the calls returns, needed before anything else can go on."""
        while running in self._pending:
            self.settle(below=len(self._pending))
        return running.result()

    def halt(self) -> None:
        """Ask all calls to stop and give them GRACE_S to do so. Never raises."""
        self.stop.set()
        until = time.monotonic() + GRACE_S
        for running in self._pending:
            running.ended.wait(max(0.0, until - time.monotonic()))


class _Upload:
    def __init__(
        self,
        job: Job,
        target: Target,
        sealer: Sealer | None,
        check: Callable[[], None],
        notify: Callable[[], None],
    ) -> None:
        self._job = job
        self._target = target
        self._sealer = sealer
        self._check = check
        self._namer = Namer(target.prefix, job)
        self._lanes = _Lanes(LANES, check, notify)
        self._files: list[_File] = []
        self._open: list[_File] = []

    def run(self, items: Sequence[Item]) -> list[Output]:
        try:
            with _explained(self._target, self._job):
                self._bucket = Bucket(self._target, self._lanes.stop)
                for item in items:
                    self._send(item)
                self._lanes.settle()
                for file in self._files:
                    if file.object.upload_id is not None:
                        self._submit(file, self._bucket.finish, last=True)
                self._lanes.settle()
                return [
                    file.item.output(file.prepared, file.digest, "s3_url", url=self._bucket.url(file.object))
                    for file in self._files
                ]
        except BaseException:
            self._undo()
            raise
        finally:
            self._close_sent()

    def _submit(
        self, file: _File, call: Callable[..., None], *args: Any, last: bool = False, width: int | None = None
    ) -> None:
        """Start one of a file's requests; with the ``last`` one the file is delivered."""
        file.requests.append(self._lanes.submit(call, file.object, *args, tell=last, width=width))

    def _begin(self, file: _File) -> None:
        """Start a multipart upload: its id is needed before anything else of the file can be sent."""
        self._lanes.result(self._lanes.submit(self._bucket.begin, file.object))

    def _send(self, item: Item) -> None:
        # What is converted or small is held in memory from here on: not before there is a lane for it.
        self._lanes.room()
        self._close_sent()
        self._check()  # preparing may be a conversion
        prepared = item.prepare()
        file = _File(item, prepared, self._object(item, prepared), Digest(self._check))
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

    def _object(self, item: Item, prepared: Prepared) -> Object:
        """Return its key, and the metadata that a bucket's owner may want: of a sealed job nothing but the id."""
        artifact = item.artifact
        destination = self._job.options.destination
        if destination is not None:
            if isinstance(prepared.content, Stream):
                prepared.content = prepared.content.spooled(item.settings.workspace_dir)
            digest = Digest(self._check)
            for _ in digest.through(prepared.content.chunks()):
                pass  # its metadata has the hash, and goes ahead of it
            metadata = destination.metadata(artifact, digest.sha256)
            return Object(destination.key(item.index, artifact), prepared.media_type, metadata)
        if self._sealer:
            key = self._namer.key(artifact, f"{item.index:04d}.sealed")
            return Object(key, "application/octet-stream", {"settee-job": self._job.id})
        values = {
            "settee-job": self._job.id,
            "settee-node": artifact.node_id,
            "settee-filename": prepared.filename,
            "settee-subfolder": artifact.subfolder,
        }
        metadata = {name: value for name, value in values.items() if value}
        return Object(self._namer.key(artifact, prepared.filename), prepared.media_type, metadata)

    def _close_sent(self) -> None:
        """Close what was sent: a job may have more files than a process may have open."""
        self._open = [file for file in self._open if not file.close_if_sent()]

    def _send_blob(self, file: _File, blob: Blob) -> None:
        """Send a put, or parts: threads read them from the file as they go."""
        stop = self._lanes.stop
        file.object.size = blob.size
        if blob.size <= MULTIPART_BYTES:
            self._submit(file, self._bucket.put, Window(blob, stop=stop), last=True)
            return
        self._begin(file)
        step = _part_bytes(blob.size)
        for number, offset in enumerate(range(0, blob.size, step), 1):
            part = Window(blob, offset, min(step, blob.size - offset), stop)
            self._submit(file, self._bucket.put_part, number, part)

    def _send_stream(self, file: _File, chunks: Iterator[bytes] | Iterator[bytes | memoryview]) -> None:
        """Send parts made from chunks of any size; a stream within one part needs no multipart upload."""
        part = bytearray()
        number = 0
        for chunk in chunks:
            file.object.size += len(chunk)
            part += chunk
            # To the byte: Cloudflare's R2 wants all parts but the last to have one size.
            while len(part) > STREAM_PART_BYTES:
                if number == 0:
                    self._begin(file)
                number += 1
                if number == MAX_PARTS:
                    raise DeliveryError(f"{file.item.artifact.filename} is too large for S3 ({MAX_PARTS} parts)")
                rest = part[STREAM_PART_BYTES:]
                del part[STREAM_PART_BYTES:]
                self._submit(file, self._bucket.put_part, number, part, width=STREAM_PARTS)
                part = rest
        if number == 0:
            self._submit(file, self._bucket.put, part, last=True)
        else:
            self._submit(file, self._bucket.put_part, number + 1, part, width=STREAM_PARTS)

    def _undo(self) -> None:
        """Leave nothing behind: stop what is under way, abort, delete. Never raises."""
        self._lanes.halt()
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


def _part_bytes(size: int) -> int:
    """Return PART_BYTES, or more for files that would have too many parts."""
    least = -(-size // MAX_PARTS)
    return max(PART_BYTES, -(-least // MIB) * MIB)


@contextlib.contextmanager
def _explained(target: Target, job: Job) -> Iterator[None]:
    """Turn errors of S3 into ours. The log keeps their kind only: their text has the URL, and so names."""
    try:
        with explained(target):
            yield
    except S3Error as error:
        cause = type(error.__cause__ or error).__name__
        log.warning(
            "job %s: S3: %s (code %r, status %d)", job.id, cause, error.details.get("s3_code", ""), error.status
        )
        forget(target)  # and with it botocore's count of failures, which would cost the next job its retries
        raise delivery_error(error) from error
