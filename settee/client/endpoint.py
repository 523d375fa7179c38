"""The client for Python: :class:`Endpoint`, a place that runs workflows, and :class:`Job`, one that was sent there."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from settee.client.arguments import (
    Environment,
    Files,
    JobOptions,
    WorkflowLike,
    files_from,
    parameters_from,
    sets_from,
)
from settee.client.client_errors import JobStopped, Unsure, UsageError
from settee.client.prepared import Prepared, Wishes, prepared
from settee.client.saving import Result
from settee.client.targets import Answer, Target
from settee.client.targets.json_http import limited
from settee.comfyui.node_registry import UNKNOWN, NodeRegistry
from settee.comfyui.workflow import EXPORT_HINT, Workflow

if TYPE_CHECKING:
    from settee.client.payload import Request
    from settee.client.sealed_jobs import Sealer
    from settee.client.uploads import Uploader

#: Where jobs go when nothing says where: the SDK's local API, as `rp_handler.py --rp_serve_api` starts it.
LOCAL_URL = "http://127.0.0.1:8000"
#: How long a job is waited for, seconds.
WAIT_S = 3600.0


@dataclass
class Job:
    """A job that was sent."""

    endpoint: Endpoint = field(repr=False)
    answer: Answer
    seeds: dict[str, int] = field(default_factory=dict)
    workflow: Workflow = field(default_factory=dict, repr=False)
    _uploader: Uploader | None = field(default=None, repr=False)

    @property
    def id(self) -> str:
        return self.answer.job_id

    def status(self) -> Answer:
        """Ask for its status now."""
        if not self.answer.status.is_terminal:
            self.answer = self.endpoint.target.status(self.id)
        if self.answer.status.is_terminal:
            self._drop_uploads()
        return self.answer

    def cancel(self) -> None:
        """Ask the target to cancel it."""
        self.endpoint.target.cancel(self.id)
        self._drop_uploads()

    def wait(
        self,
        timeout_s: float = WAIT_S,
        *,
        on_update: Callable[[Answer], None] = lambda _: None,
        stop: threading.Event | None = None,
    ) -> Result:
        """Wait for its end. Raises Rejected, JobFailed, NetworkError; JobStopped, also when ``stop`` is set."""
        from settee.client.follow import follow, result_of

        self.answer = follow(self.endpoint.target, self.answer, timeout_s=timeout_s, on_update=on_update, stop=stop)
        self._drop_uploads()
        result = result_of(self.answer, seeds=self.seeds, workflow=self.workflow)
        sealer = None if self.endpoint.is_comfy else self.endpoint.sealer
        return replace(result, unseal=sealer.unseal) if sealer is not None else result

    def _drop_uploads(self) -> None:
        """Remove its input files from the bucket; they are not fetched any more."""
        if self._uploader is not None:
            self._uploader.remove()


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


class Endpoint:
    """A place that runs workflows.

    ``where``: a RunPod endpoint's id, the base URL of a worker's API, or of a bare ComfyUI (``comfy=True``). Without
    one RUNPOD_ENDPOINT_ID, and without that a worker on this machine. ``api_key``: RunPod's, or RUNPOD_API_KEY.
    ``encryption_key``, ``key_file`` (or ENCRYPTION_KEY) seals jobs and results. ``registry``: a ComfyUI's URL, or a
    file with its /object_info, to convert the editor's format with. No request is made before the first call. Its
    methods may be called from any thread. Raises UsageError for an invalid address, or without a key.
    """

    def __init__(
        self,
        where: str | None = None,
        *,
        comfy: bool = False,
        sync: bool = False,
        api_key: str | None = None,
        encryption_key: str | None = None,
        key_file: str | PathLike[str] | None = None,
        registry: str | PathLike[str] | None = None,
        environment: Environment | None = None,
    ) -> None:
        self.environment = environment or Environment.read()
        #: Whether an address was given, or it is the default, a worker on this machine.
        self.is_named = bool(where or self.environment.endpoint_id)
        self.is_comfy = comfy
        self._encryption_key, self._key_file = encryption_key, key_file
        self._registry = registry
        self._where = where or self.environment.endpoint_id or LOCAL_URL
        #: One for all threads: it remembers its jobs.
        self.target = self._to_comfy(sync) if comfy else self._to_worker(api_key, sync)

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self.target.close()

    # --- what it is made of -----------------------------------------------------------------------------------

    def _to_comfy(self, sync: bool) -> Target:
        from settee.client.targets.comfy import Comfy

        if not _is_url(self._where):
            raise UsageError(f"{self._where!r} is not the address of a ComfyUI: give one such as http://127.0.0.1:8188")
        if sync:
            raise UsageError("--sync is for workers: ComfyUI has no /runsync")
        if self._encryption_key is not None or self._key_file is not None:
            raise UsageError(
                "a bare ComfyUI cannot open sealed jobs: leave the key (--key-file) out, or send to a worker"
            )
        return Comfy(self._where, api_key=self.environment.comfy_org_api_key)

    def _to_worker(self, given_key: str | None, sync: bool) -> Target:
        from settee.client.targets import runpod

        api_key = given_key or self.environment.api_key
        if not _is_url(self._where):
            base_url = self.environment.endpoint_base_url or runpod.API
            return runpod.endpoint(self._where, api_key, sync, base_url=base_url, unseal=self._unsealed)
        # RunPod's key goes to RunPod only, and to an address it was given for.
        host = (urlsplit(self._where).hostname or "").lower()
        is_runpod = host == "runpod.ai" or host.endswith((".runpod.ai", ".runpod.net"))
        return runpod.RunPod(self._where, api_key=api_key if is_runpod else given_key, sync=sync, unseal=self._unsealed)

    @cached_property
    def sealer(self) -> Sealer | None:
        """Return what seals jobs, if a key is given. Raises UsageError for an invalid key."""
        from settee.client.sealed_jobs import Sealer, read_key

        if self._encryption_key is not None:
            return Sealer(self._encryption_key, origin="encryption_key")
        if self._key_file is not None:
            return Sealer(read_key(Path(self._key_file)), origin=str(self._key_file))
        return Sealer(self.environment.encryption_key) if self.environment.encryption_key else None

    def _unsealed(self, output: Mapping[str, Any]) -> dict[str, Any]:
        if self.sealer is None:
            key = "with the key that the job was sealed with"
            raise UsageError(f"the answer is sealed: set ENCRYPTION_KEY, or give --key-file, {key}")
        return self.sealer.opened(output)

    @cached_property
    def node_registry(self) -> NodeRegistry | None:
        """ComfyUI's node registry, where it can be asked: the target's, or the one named for it."""
        if self._registry is None:
            return self.target.node_registry()
        from settee.client.targets import comfy_api

        return comfy_api.read_registry(self._registry)

    # --- jobs -------------------------------------------------------------------------------------------------

    def prepare(self, workflow: WorkflowLike, wishes: Wishes | None = None) -> Prepared:
        """Return the workflow as it would be sent, and every change made for it. Raises UsageError (Ambiguous)."""
        from settee.client import workflow_files

        data, shown = workflow_files.read(workflow)
        is_editors = isinstance(data.get("nodes"), list)  # no node of API format is a list
        graph = self._converted(data, shown) if is_editors else data
        # A registry that has been asked for, or costs one quiet call, helps with nodes that are not known by name.
        known = self.node_registry if self.is_comfy or self._registry is not None else None
        return replace(prepared(graph, wishes or Wishes(), known or UNKNOWN), editor=data if is_editors else None)

    def _converted(self, data: Mapping[str, Any], shown: str) -> Workflow:
        """Return the workflow of the editor's file in API format, by the node registry. Raises UsageError."""
        from settee.client import convert
        from settee.client.targets import comfy_api

        if self.node_registry is None:
            raise UsageError(
                f"{shown}: {EXPORT_HINT}. Or name a ComfyUI that knows its nodes with --registry URL, to convert it"
            )
        where = self._registry or (self._where if self.is_comfy else None)
        scripts = comfy_api.extensions_of(where) if where is not None else None
        return convert.converted(data, self.node_registry, extensions=scripts)

    def check_size(self, ready: Prepared, options: JobOptions | None = None) -> None:
        """Check that the job's files can be read and would fit into a request; nothing is sent. Raises UsageError."""
        self._request(ready, options or JobOptions(), self._uploader()).check()

    def _request(self, ready: Prepared, options: JobOptions, upload: Uploader | None) -> Request:
        from settee.client.payload import Request

        # As the editor itself sends its graph: some savers read it, and all write it into the picture's metadata.
        editors = {"extra_data": {"extra_pnginfo": {"workflow": ready.editor}}} if ready.editor is not None else {}
        return Request(
            ready.workflow,
            ready.files,
            options={**options.as_input(self.environment), **editors},
            cap=self.target.request_cap,
            max_side=options.max_side,
            jpeg=options.jpeg,
            upload=upload,
            seal=None if self.is_comfy else self.sealer,
        )

    def _uploader(self, stop: threading.Event | None = None) -> Uploader | None:
        """Return what takes a job's large files to S3; None where the environment names no bucket."""
        from settee.client.uploads import Uploader

        has_bucket = self.environment.bucket_endpoint_url is not None and not self.is_comfy
        return Uploader(self.environment, stop=stop) if has_bucket else None

    def send(self, ready: Prepared, options: JobOptions | None = None, *, stop: threading.Event | None = None) -> Job:
        """Send what :meth:`prepare` made. ``stop``, set from any thread before it is under way, gives it up.

        Raises Rejected, NetworkError; JobStopped when it was given up.
        """
        stop = stop or threading.Event()
        bucket = self._uploader(stop)
        try:
            request = self._request(ready, options or JobOptions(), bucket).build()
            if stop.is_set():
                raise JobStopped("given up; no job was sent")
            with limited(stop, lambda: math.inf):
                answer = self.target.submit(request)
        except BaseException as error:
            # A job that was taken all the same needs its files.
            if bucket is not None and not isinstance(error, Unsure):
                bucket.remove()
            raise
        return Job(self, answer, ready.seeds, ready.workflow, bucket)

    def submit(
        self,
        workflow: WorkflowLike,
        *,
        images: Files = (),
        masks: Files = (),
        videos: Files = (),
        audio: Files = (),
        prompt: str | None = None,
        negative: str | None = None,
        seed: int | None = None,
        keep_seed: bool = False,
        set: Mapping[str, Any] | Sequence[str] = (),
        options: JobOptions | None = None,
        **parameters: Any,
    ) -> Job:
        """Send a workflow with all this put in, and return at once.

        ``set``: ``{"6.inputs.text": "a fox"}`` or the command line's texts. ``parameters``: ``steps``, ``cfg``,
        ``width``, ``height``, ``denoise``, ``sampler``, ``scheduler``, ``ckpt``, ``lora``. Raises UsageError
        (Ambiguous) before anything is sent; Rejected, NetworkError.
        """
        wishes = Wishes(
            images=files_from(images),
            masks=files_from(masks),
            videos=files_from(videos),
            audio=files_from(audio),
            prompt=prompt,
            negative=negative,
            seed=seed,
            keep_seed=keep_seed,
            parameters=parameters_from(parameters),
            sets=sets_from(set),
        )
        return self.send(self.prepare(workflow, wishes), options)

    def run(
        self,
        workflow: WorkflowLike,
        *,
        wait_s: float = WAIT_S,
        on_update: Callable[[Answer], None] = lambda _: None,
        **wishes: Any,
    ) -> Result:
        """Call :meth:`submit` and wait for the result. Raises what it raises; JobFailed, JobStopped."""
        return self.submit(workflow, **wishes).wait(wait_s, on_update=on_update)

    def job(self, job_id: str) -> Job:
        """Return a job that was sent before."""
        return Job(self, self.target.status(job_id))

    def status(self, job_id: str) -> Answer:
        return self.target.status(job_id)

    def cancel(self, job_id: str) -> None:
        self.target.cancel(job_id)

    def health(self) -> dict[str, Any]:
        return self.target.health()
