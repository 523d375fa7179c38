"""Hand a job's artifacts over: as base64 in the result, to S3, or (over the platform's cap) on the network volume.

All of a job's outputs are delivered or none: a failure takes back what was already uploaded. Files of a sealed job
leave the worker only encrypted, each as one Fernet token in a file named ``….sealed``.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from settee.base.errors import ConfigError, DeliveryError, InvalidRequest, JobCanceled, JobTimeout
from settee.base.job import Artifact, Cancel, Job, Output
from settee.base.settings import Settings
from settee.base.threads import TICK_S, Call
from settee.delivery import plan
from settee.delivery.blob import delivery_error
from settee.delivery.item import Item, encode
from settee.delivery.keys import prefix_problem
from settee.delivery.plan import Place
from settee.s3.client import is_seen, look
from settee.s3.error_table import S3Error
from settee.s3.target import (
    Target,
    bucket_problem,
    callers_endpoint,
    callers_target,
    endpoint_problem,
    unreadable,
    workers_target,
)

if TYPE_CHECKING:
    from settee.engine.request import JobRequest

__all__ = ["BucketLook", "Delivered", "check_request", "deliver"]

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
    problems: list[dict[str, Any]] = []
    wanted = request.delivery
    if wanted.mode == "s3" and request.bucket is None and not settings.has_bucket:
        problems.append(
            {
                "path": "delivery.mode",
                "problem": "this worker has no S3: set BUCKET_ENDPOINT_URL, BUCKET_ACCESS_KEY_ID and "
                "BUCKET_SECRET_ACCESS_KEY, or send an s3Config with the job",
            }
        )
    if wanted.prefix is not None and (problem := prefix_problem(wanted.prefix)):
        problems.append({"path": "delivery.prefix", "problem": problem})
    if request.bucket is not None:
        if problem := _endpoint_problem(request, settings):
            problems.append({"path": "s3Config.endpointUrl", "problem": problem})
        if problem := bucket_problem(request.bucket.bucket_name):
            problems.append({"path": "s3Config.bucketName", "problem": problem})
    if problems:
        raise InvalidRequest.from_problems(problems)
    if settings.has_bucket and request.bucket is None:
        if problem := unreadable(settings.bucket_endpoint_url or ""):
            raise ConfigError(f"BUCKET_ENDPOINT_URL {problem}")
        if problem := prefix_problem(settings.bucket_prefix):
            raise ConfigError(f"BUCKET_PREFIX: {problem}")
        if settings.bucket_name and (problem := bucket_problem(settings.bucket_name)):
            raise ConfigError(f"BUCKET_NAME {problem}")


class BucketLook:
    """Finds a bucket that will take nothing while the job is prepared, not after its render.

    It is looked at once for each bucket and keys; a later job pays nothing.
    """

    def __init__(self, job: Job, settings: Settings) -> None:
        self._asked: Call[S3Error | None] | None = None
        self._until = time.monotonic() + LOOK_S
        mode = job.request.delivery.mode or settings.delivery
        target = target_for(job, settings) if job.options.destination or mode != "base64" else None
        if target is not None and not is_seen(target):
            self._asked = Call(lambda: look(target), name="settee-s3")

    def check(self, cancel: Cancel) -> None:
        """Raise DeliveryError where S3 is certain to take nothing; a server that does not answer may yet."""
        if self._asked is None:
            return
        while not self._asked.ended.wait(TICK_S):
            if cancel.is_set() or time.monotonic() > self._until:
                return
        if error := self._asked.result():
            raise delivery_error(error) from error


def target_for(job: Job, settings: Settings) -> Target | None:
    """Return the door's bucket if it named one, the caller's if the job brought one, else the worker's, else None."""
    request, wanted = job.request, job.request.delivery
    expires_s = wanted.expires_s or settings.bucket_expires_s
    if job.options.destination is not None:
        own = workers_target(settings)
        if own is None:
            raise DeliveryError("there is no S3 endpoint to put the outputs at: set BUCKET_ENDPOINT_URL")
        return replace(own, bucket=job.options.destination.bucket, by_month=False, expires_s=expires_s)
    if request.bucket is not None:
        try:
            target = callers_target(request.bucket, settings)
        except ValueError as error:
            raise DeliveryError(str(error)) from error
        return replace(target, prefix=wanted.prefix or "{job_id}", expires_s=expires_s)
    own = workers_target(settings)
    return own and replace(own, prefix=wanted.prefix or settings.bucket_prefix, expires_s=expires_s)


def deliver(
    artifacts: Sequence[Artifact],
    job: Job,
    settings: Settings,
    *,
    fetch: Callable[[Artifact], Iterator[bytes]],
    cancel: Cancel,
    deadline: float,
    notify: Callable[[int, int], None] | None = None,
) -> Delivered:
    """Deliver all artifacts where the request, the settings and the platform's cap say.

    ``fetch`` streams an artifact that has neither ``path`` nor ``content``; it is only called in this thread. Its
    ``size`` is checked then; below 1 it is unknown. ``deadline`` is on ``time.monotonic()``'s clock. ``notify`` is
    called with ``(outputs delivered, all outputs)`` in this thread.

    Raises OutputMissing, OutputTooLarge, DeliveryError, JobCanceled, JobTimeout, and what ``fetch`` raises. Nothing
    of the job is left in the bucket or on the volume then.
    """

    def check() -> None:
        if cancel.is_set():
            raise JobCanceled
        if time.monotonic() > deadline:
            raise JobTimeout("the job ran into its time limit while its outputs were being delivered")

    check()
    delivered = itertools.count(1)

    def tell() -> None:
        if notify is not None:
            notify(next(delivered), len(items))

    sealer = _sealer(job, settings)
    target = target_for(job, settings)
    items = [Item(index, artifact, job, settings, fetch) for index, artifact in enumerate(artifacts)]
    places, warnings = plan.choose(items, job, settings, has_s3=target is not None, check=check)
    by_place: dict[Place, list[Item]] = {}
    for item, place in zip(items, places, strict=True):
        by_place.setdefault(place, []).append(item)
    outputs: dict[int, Output] = {}
    for item in by_place.get(Place.INLINE, ()):
        outputs[item.index] = encode(item, check)
        tell()
    for place in (Place.S3, Place.VOLUME):
        chosen = by_place.get(place, [])
        if chosen:
            send = _to_s3 if place is Place.S3 else _to_volume
            sent = send(chosen, job, settings, sealer=sealer, check=check, notify=tell)
            outputs.update(zip((item.index for item in chosen), sent, strict=True))
            if sealer:
                warnings.append(_sealed_warning(len(chosen)))
    wanted = job.request.delivery
    if wanted.quality and wanted.image_format not in ("jpeg", "webp"):
        warnings.append('quality has no effect without "image_format": "jpeg" or "webp"')
    warnings += [warning for item in items for warning in item.warnings]
    return Delivered(tuple(outputs[index] for index in range(len(items))), tuple(warnings))


def _to_s3(items: Sequence[Item], job: Job, settings: Settings, **options: Any) -> list[Output]:
    from settee.delivery.to_s3 import upload

    target = target_for(job, settings)
    assert target is not None
    # Again: the name may have been pointed elsewhere while the job ran.
    if problem := _endpoint_problem(job.request, settings):
        raise DeliveryError(f"s3Config.endpointUrl {problem}")
    return upload(items, job, target, **options)


def _to_volume(items: Sequence[Item], job: Job, settings: Settings, **options: Any) -> list[Output]:
    from settee.delivery.to_volume import store

    return store(items, job, settings.result_volume_dir, **options)


def _sealed_warning(count: int) -> str:
    files, are = ("file", "is") if count == 1 else ("files", "are")
    return f"{count} {files} {are} encrypted with the job's key: each url leads to one Fernet token"


def _endpoint_problem(request: JobRequest, settings: Settings) -> str | None:
    if request.bucket is None:
        return None
    try:
        endpoint = callers_endpoint(request.bucket)
    except ValueError as error:
        return str(error)
    return None if settings.allow_private_s3config else endpoint_problem(endpoint)


def _sealer(job: Job, settings: Settings) -> Any:
    if not job.sealed:
        return None
    if settings.encryption_key is None:
        raise ConfigError("the job is sealed, but ENCRYPTION_KEY is not set")
    from settee.base.sealing import Sealer

    return Sealer(settings.encryption_key.get_secret_value())
