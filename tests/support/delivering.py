"""Jobs and artifacts to deliver, and a call of ``deliver`` with everything that a test does not care about."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from settee.base.job import Artifact, Cancel, Job, Kind, Limits, Output
from settee.base.sealing import Sealer
from settee.base.settings import Settings, load
from settee.comfyui.media import kind_of
from settee.delivery import Delivered, Delivery
from settee.engine.request import JobRequest

WORKFLOW = {"9": {"class_type": "SaveImage", "inputs": {}}}


def make_job(delivery: Any = None, *, id: str = "job-1", sealed_by: str | None = None, **fields: Any) -> Job:
    """A job that asks for this delivery. ``fields`` of Job, and ``bucket`` of the request."""
    request = JobRequest.model_validate(
        {"workflow": WORKFLOW, "delivery": delivery, "bucket": fields.pop("bucket", None)}
    )
    return Job(id=id, request=request, sealer=Sealer(sealed_by) if sealed_by else None, **fields)


def make_settings(**changes: Any) -> Settings:
    """Settings as a worker without any variable has them, but for the changes."""
    changes.setdefault("result_volume_dir", Path("/nonexistent/settee-results"))
    return load(**changes)


def bucket_settings(server: Any, bucket: str | None, **changes: Any) -> Settings:
    """Settings for an S3 server (anything with endpoint_url, access_key, secret_key)."""
    return make_settings(
        **{
            "bucket_endpoint_url": server.endpoint_url,
            "bucket_access_key_id": server.access_key,
            "bucket_secret_access_key": server.secret_key,
            "bucket_name": bucket,
            **changes,
        }
    )


def file_artifact(path: Path, /, **changes: Any) -> Artifact:
    """A file on disk, described as the engine describes it."""
    kind, media_type = kind_of(path.name)
    fields: dict[str, Any] = {
        "node_id": "9",
        "kind": kind,
        "filename": path.name,
        "subfolder": "",
        "media_type": media_type,
        "size": path.stat().st_size if path.exists() else 0,
        "path": path,
    }
    return Artifact(**{**fields, **changes})


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def text_artifact(text: str, **changes: object) -> Artifact:
    content = text.encode("utf-8", "surrogatepass")
    artifact = Artifact(
        node_id="5",
        kind=Kind.TEXT,
        filename="5.txt",
        subfolder="",
        media_type="text/plain",
        size=len(content),
        content=content,
    )
    return dataclasses.replace(artifact, **changes)  # type: ignore[arg-type]


def no_fetch(artifact: Artifact) -> Iterator[bytes]:
    raise AssertionError(f"{artifact.filename} was fetched")


def run(
    artifacts: Sequence[Artifact],
    job: Job,
    settings: Settings,
    *,
    fetch: Callable[[Artifact], Iterator[bytes]] = no_fetch,
    cancel: Cancel | None = None,
    seconds: float = 60,
    notify: Callable[[int, int], None] | None = None,
) -> Delivered:
    """A delivery with a deadline ``seconds`` from now."""
    with ExitStack() as stack:
        delivery = Delivery(
            job,
            settings,
            fetch=fetch,
            limits=Limits(cancel=cancel or stack.enter_context(Cancel()), deadline=time.monotonic() + seconds),
            notify=notify or (lambda done, total: None),
        )
        return delivery.deliver(artifacts)


def only(delivered: Delivered) -> Output:
    """The output of a delivery that has one."""
    (output,) = delivered.outputs
    return output
