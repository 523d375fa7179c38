"""Hand a job's artifacts over: as base64 in the result, to S3, or (over the platform's cap) on the network volume.

All of a job's outputs are delivered or none: a failure takes back what was already uploaded. Files of a sealed job
leave the worker only encrypted, each as one Fernet token in a file named ``….sealed``.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from settee.base.errors import ConfigError, DeliveryError, InvalidRequest
from settee.base.files import sync_folder, write_whole
from settee.base.job import Artifact, Job, Limits, Output
from settee.base.settings import Settings
from settee.base.threads import Call, StillRunning
from settee.delivery import plan
from settee.delivery.blob import Digest, delivery_error
from settee.delivery.item import Item, encode
from settee.delivery.keys import Namer, prefix_problem, safe_id
from settee.s3.client import look
from settee.s3.error_table import S3Error
from settee.s3.target import Target, bucket_problem, callers_target, endpoint_problem, unreadable, workers_target

if TYPE_CHECKING:
    from settee.engine.request import JobRequest

log = logging.getLogger(__name__)

#: How long a job waits for the look at its bucket when all else is ready, seconds from the look's beginning.
LOOK_S = 5.0


class Delivered(NamedTuple):
    """Outputs in the order of the artifacts, and what the caller should know about them."""

    outputs: tuple[Output, ...]
    warnings: tuple[str, ...]


def check_request(request: JobRequest, settings: Settings) -> None:
    """Find what would make the delivery fail, before anything is computed.

    Raises InvalidRequest with all problems of the request, ConfigError for the worker's own settings.
    """
    wanted, bucket = request.delivery, request.bucket
    found: dict[str, str | None] = {}
    if wanted.mode == "s3" and bucket is None and not settings.has_bucket:
        found["delivery.mode"] = (
            "this worker has no S3: set BUCKET_ENDPOINT_URL, BUCKET_ACCESS_KEY_ID and "
            "BUCKET_SECRET_ACCESS_KEY, or send an s3Config with the job"
        )
    if wanted.prefix is not None:
        found["delivery.prefix"] = prefix_problem(wanted.prefix)
    if bucket is not None:
        found["s3Config.endpointUrl"] = endpoint_problem(
            bucket.endpoint_url, bucket.bucket_name, may_be_private=settings.allow_private_s3config
        )
        found["s3Config.bucketName"] = bucket_problem(bucket.bucket_name)
    if problems := [{"path": path, "problem": problem} for path, problem in found.items() if problem]:
        raise InvalidRequest.from_problems(problems)
    if settings.has_bucket and bucket is None:
        if problem := unreadable(settings.bucket_endpoint_url or ""):
            raise ConfigError(f"BUCKET_ENDPOINT_URL {problem}")
        if problem := prefix_problem(settings.bucket_prefix):
            raise ConfigError(f"BUCKET_PREFIX: {problem}")
        if settings.bucket_name and (problem := bucket_problem(settings.bucket_name)):
            raise ConfigError(f"BUCKET_NAME {problem}")


def target_for(job: Job, settings: Settings) -> Target | None:
    """Return the door's bucket if it named one, the caller's if the job brought one, else the worker's, else None.

    A door that names a bucket has the worker's endpoint. Raises DeliveryError.
    """
    wanted, callers = job.request.delivery, job.request.bucket
    try:
        target = workers_target(settings) if callers is None else callers_target(callers, settings)
    except ValueError as error:
        raise DeliveryError(str(error)) from error
    prefix = wanted.prefix or (settings.bucket_prefix if callers is None else "{job_id}")
    target = target and replace(target, prefix=prefix, expires_s=wanted.expires_s or settings.bucket_expires_s)
    if (destination := job.options.destination) is not None:
        assert target is not None
        return replace(target, bucket=destination.bucket, by_month=False)
    return target


class Delivery:
    """One job's outputs on their way out, from before its render on."""

    def __init__(
        self,
        job: Job,
        settings: Settings,
        *,
        fetch: Callable[[Artifact], Iterator[bytes]],
        limits: Limits,
        notify: Callable[[int, int], object] = lambda done, total: None,
    ) -> None:
        """Begin to look at the bucket: one that will take nothing is found while the job is prepared.

        ``fetch`` streams an artifact that has neither ``path`` nor ``content``. Its ``size`` is checked then; below 1
        it is unknown. ``notify`` is called with ``(outputs delivered, all outputs)``. Both are only called in the
        thread of :meth:`deliver`. Raises DeliveryError.
        """
        self.job, self.settings, self.fetch, self.check = job, settings, fetch, limits.check
        self.wanted = job.request.delivery
        self.target = target = target_for(job, settings)
        self._notify, self._done, self._total = notify, 0, 0
        #: It is looked at once for each bucket and keys; a later job pays nothing.
        self._look: Call[S3Error | None] | None = None
        self._look_until = time.monotonic() + LOOK_S
        if target is not None and (job.options.destination or (self.wanted.mode or settings.delivery) != "base64"):
            self._look = Call(lambda: look(target), name="settee-s3")

    def check_bucket(self) -> None:
        """Raise DeliveryError where S3 is certain to take nothing; a server that does not answer may yet."""
        with contextlib.suppress(StillRunning):
            left_s = max(0.0, self._look_until - time.monotonic())
            if self._look is not None and (error := self._look.result(left_s, self.check)):
                raise delivery_error(error) from error

    def notify(self) -> None:
        """Count an output that has been delivered."""
        self._done += 1
        self._notify(self._done, self._total)

    def deliver(self, artifacts: Sequence[Artifact]) -> Delivered:
        """Deliver all artifacts where the request, the settings and the platform's cap say.

        Raises OutputMissing, OutputTooLarge, DeliveryError, JobCanceled, JobTimeout, and what ``fetch`` raises. Nothing
        of the job is left in the bucket or on the volume then.
        """
        self.check()
        self._total = len(artifacts)
        items = [Item(index, artifact, self) for index, artifact in enumerate(artifacts)]
        places, warnings = plan.choose(items, self)
        outputs: dict[int, Output] = {}
        for place, send in (("inline", _inline), ("s3", _to_s3), ("volume", _to_volume)):
            chosen = [item for item, at in zip(items, places, strict=True) if at == place]
            if chosen:
                outputs.update(zip((item.index for item in chosen), send(chosen, self), strict=True))
                if self.job.sealer and place != "inline":
                    warnings.append(_sealed_warning(len(chosen)))
        if self.wanted.quality and self.wanted.image_format not in ("jpeg", "webp"):
            warnings.append('quality has no effect without "image_format": "jpeg" or "webp"')
        warnings += [warning for item in items for warning in item.warnings]
        return Delivered(tuple(outputs[index] for index in range(len(items))), tuple(warnings))


def _inline(items: Sequence[Item], delivery: Delivery) -> list[Output]:
    outputs = []
    for item in items:
        outputs.append(encode(item))
        delivery.notify()
    return outputs


def _to_s3(items: Sequence[Item], delivery: Delivery) -> list[Output]:
    from settee.delivery.to_s3 import Upload

    return Upload(delivery).run(items)


def _to_volume(items: Sequence[Item], delivery: Delivery) -> list[Output]:
    """Write the items on the network volume: the last resort. Their Outputs have type "path".

    Files are in ``RESULT_VOLUME_DIR/<job id>/``, readable by the worker's user only, on disk before the job ends. Only
    their owner removes them. Raises DeliveryError; what is new is removed then, and nothing that was there before: a
    platform may run a job twice, and an earlier attempt's files are a result.
    """
    job, sealer, root = delivery.job, delivery.job.sealer, delivery.settings.result_volume_dir
    folder = root / safe_id(job.id)
    namer = Namer("{job_id}", job)
    made: list[Path] = []
    outputs = []
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        for item in items:
            delivery.check()
            with item.prepare() as prepared:
                path = root / namer.key(item.artifact, f"{item.index:04d}.sealed" if sealer else prepared.filename)
                path.parent.mkdir(parents=True, exist_ok=True)
                digest = Digest(delivery.check)
                chunks = digest.through(prepared.content.chunks())
                # Whole or not at all, and over what an earlier attempt at this job left.
                if not path.exists():
                    made.append(path)
                part = path.with_name(f".{path.name}.part")
                write_whole(path, sealer.seal_chunks(chunks) if sealer else chunks, part=part)
                outputs.append(item.output(prepared, digest, "path", url=str(path)))
            delivery.notify()
        for parent in (root, root.parent):
            sync_folder(parent)
    except BaseException as error:
        for path in made:
            with contextlib.suppress(OSError):
                path.unlink()
        inner = {parent for path in made for parent in path.parents if folder in parent.parents}
        for parent in (*sorted(inner, reverse=True), folder):
            with contextlib.suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            # Not the error itself: it names the file.
            log.warning("job %s: the result volume failed: %s (errno %s)", job.id, type(error).__name__, error.errno)
            raise DeliveryError(
                f"the result cannot be written to the network volume ({error.strerror}): look at RESULT_VOLUME_DIR, "
                "its owner and its free space"
            ) from error
        raise
    return outputs


def _sealed_warning(count: int) -> str:
    files, are = ("file", "is") if count == 1 else ("files", "are")
    return f"{count} {files} {are} encrypted with the job's key: each url leads to one Fernet token"
