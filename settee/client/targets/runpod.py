"""RunPod's API as a target: a serverless endpoint, the SDK's local API, any other worker with the same routes.

The SDK's local API has the routes but not their meaning: /run only notes a job, POST /status runs it and answers when
it has ended, and there is neither /cancel nor /health. It is known by its answer to GET /status, which is 405. There
a thread waits for each job, so that asking how it stands is as quick as elsewhere; and /runsync is not used, as nothing
could be told of the job meanwhile.
"""

from __future__ import annotations

import re
import threading
from typing import Any
from urllib.parse import quote, urlsplit

from settee.base.threads import Call
from settee.client.errors import ClientError, JobStopped, NetworkError, Rejected, UsageError
from settee.client.targets import envelope
from settee.client.targets.envelope import Unseal
from settee.client.targets.http import Http, StatusError, Unsure
from settee.client.targets.target import Answer, Status
from settee.comfyui.workflow import ObjectInfo

API = "https://api.runpod.ai/v2"
KEY_NAME = "RUNPOD_API_KEY"

#: What RunPod takes, bytes of JSON (its megabytes are taken for the small ones).
RUN_CAP, RUNSYNC_CAP = 10_000_000, 20_000_000
#: How long /runsync is asked to wait for the job's end, seconds; RunPod takes 1 to 300.
WAIT_S = 90.0
#: How much later than that it may answer, seconds.
_MARGIN_S = 30.0
#: The longest that a job may run under the SDK's local API, seconds.
LOCAL_JOB_S = 24 * 3600.0
#: How long one question after such a job waits for its end, seconds.
LOCAL_MOMENT_S = 0.5

GONE = (
    "{name} does not know job {job_id} (any more): RunPod keeps results for 30 minutes after /run and for 1 minute "
    "after /runsync"
)
LOCAL = "{name} is the RunPod SDK's local API, which cannot {what}"


def endpoint(
    endpoint_id: str,
    api_key: str | None,
    sync: bool = False,
    *,
    base_url: str = API,
    unseal: Unseal | None = None,
) -> RunPod:
    """The serverless endpoint with this id. Raises UsageError for what is no id, or without a key."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", endpoint_id):
        raise UsageError(
            f"{endpoint_id[:100]!r} is not an endpoint id: it is the word after /v2/ in the endpoint's address"
        )
    if not api_key:
        raise UsageError(f"endpoint {endpoint_id} wants an API key: set {KEY_NAME}")
    return RunPod(
        f"{base_url.rstrip('/')}/{endpoint_id}",
        name=f"endpoint {endpoint_id}",
        api_key=api_key,
        sync=sync,
        unseal=unseal,
    )


class RunPod:
    """A Target. ``sync``: /runsync instead of /run, which answers with the result when the job ends within ``wait_s``.

    ``unseal`` opens the results of sealed jobs; without it they stay as they came. ``request_cap``: RunPod's own at its
    own address, else none.
    """

    def __init__(
        self,
        base_url: str,
        *,
        name: str | None = None,
        api_key: str | None = None,
        sync: bool = False,
        wait_s: float = WAIT_S,
        unseal: Unseal | None = None,
    ) -> None:
        """Raises UsageError for an address or a key that cannot be one."""
        self.name = name or base_url.rstrip("/")
        self._http = Http(base_url, name=self.name, key=api_key, key_name=KEY_NAME)
        self._sync, self._wait_s, self._unseal = sync, min(300.0, max(1.0, wait_s)), unseal
        is_runpods_own = urlsplit(base_url).hostname == urlsplit(API).hostname
        self.request_cap: int | None = None
        if is_runpods_own:
            self.request_cap = RUNSYNC_CAP if sync else RUN_CAP
        #: None: not known yet.
        self._is_local: bool | None = False if is_runpods_own else None
        self._runs: dict[str, Call[Answer]] = {}
        self._lock = threading.Lock()

    def submit(self, payload: dict[str, Any]) -> Answer:
        """Begin a job. Raises Rejected when it is refused as it is, and NetworkError; with the words "not known" in
        it when the job may have been accepted all the same (see :mod:`settee.client.targets.http`)."""
        sync = self._sync and not self._probe()
        try:
            if sync:
                data = self._http.post(
                    "/runsync",
                    payload,
                    params={"wait": str(int(self._wait_s * 1000))},
                    timeout_s=self._wait_s + _MARGIN_S,
                )
            else:
                data = self._http.post("/run", payload)
        except Unsure as error:
            if (job_id := envelope.job_id_in(error.head)) is None:
                raise
            # Half an answer, but the half with the id in it: the rest can be asked for.
            return Answer(job_id, Status.IN_QUEUE)
        except StatusError as error:
            raise self._not_taken(error) from error
        return self._read(data)

    def status(self, job_id: str) -> Answer:
        """How the job stands. Raises JobStopped for a job that the target does not know (any more)."""
        if self._is_local:
            return self._local_status(job_id)
        try:
            data = self._http.get(_path("status", job_id))
        except StatusError as error:
            if error.status == 405:
                self._is_local = True
                return self._local_status(job_id)
            raise self._gone(error, job_id) from error
        self._is_local = False
        return self._read(data, job_id)

    def cancel(self, job_id: str) -> None:
        """Ask for the job's end. Raises UsageError with the SDK's local API, JobStopped for a job that is not known."""
        if not self._is_local:
            try:
                self._http.post(_path("cancel", job_id), repeatable=True, empty_ok=True)
                return
            except StatusError as error:
                if error.status not in (404, 405) or not self._probe():
                    raise self._gone(error, job_id) from error
        raise UsageError(LOCAL.format(name=self.name, what="cancel a job: stop the worker, or wait"), job_id=job_id)

    def keeps(self, job_id: str) -> bool:
        """Not one that the SDK's local API has begun: it cannot be ended, its result goes to who had it begun, and who
        asks for it again begins it again."""
        with self._lock:
            return job_id not in self._runs

    def health(self) -> dict[str, Any]:
        """``{"jobs": {…}, "workers": {…}}``: how many in which state. Raises UsageError with the SDK's local API."""
        if not self._is_local:
            try:
                data = self._http.get("/health")
                if not isinstance(data, dict):
                    raise NetworkError(f"{self.name}: the answer to /health is not an object: check the address")
                return data
            except StatusError as error:
                if error.status not in (404, 405) or not self._probe():
                    raise self._absent(error) from error
        raise UsageError(LOCAL.format(name=self.name, what="tell its health; it answers, so it is up"))

    def object_info(self) -> ObjectInfo | None:
        """None: RunPod has no route to the worker's ComfyUI."""
        return None

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    # --- answers ------------------------------------------------------------------------------------------

    def _read(self, data: Any, job_id: str | None = None) -> Answer:
        return envelope.read(data, name=self.name, job_id=job_id, unseal=self._unseal)

    def _not_taken(self, error: StatusError) -> ClientError:
        words = f": {error.words}" if error.words else ""
        if error.status == 413:
            return Rejected(f"{self.name} refuses the request as too large (HTTP 413){words}", code="payload_too_large")
        if error.status in (400, 422):
            return Rejected(f"{self.name} refuses the request (HTTP {error.status}){words}")
        return self._absent(error)

    def _absent(self, error: StatusError) -> ClientError:
        if error.status in (404, 405):
            return NetworkError(f"{self.name}: no RunPod API is there (HTTP {error.status}): check the id or address")
        return error

    def _gone(self, error: StatusError, job_id: str) -> ClientError:
        if error.status == 404:
            return JobStopped(GONE.format(name=self.name, job_id=job_id), job_id=job_id)
        error.job_id = job_id
        return error

    # --- the SDK's local API --------------------------------------------------------------------------------

    def _probe(self) -> bool:
        """Whether this is the SDK's local API; asked once."""
        if self._is_local is None:
            try:
                self._http.get("/status/settee-probe")
                self._is_local = False
            except StatusError as error:
                if error.status == 429 or error.status >= 500:
                    raise
                self._is_local = error.status == 405
        return self._is_local

    def _local_status(self, job_id: str) -> Answer:
        with self._lock:
            run = self._runs.get(job_id)
            if run is None:
                run = self._runs[job_id] = Call(lambda: self._run_local(job_id), name="local-job")
        # Nothing can be told of it before its end, so that is worth a moment.
        if not run.ended.wait(LOCAL_MOMENT_S):
            return Answer(job_id, Status.IN_PROGRESS)
        with self._lock:
            # Its result may be large, and is not wanted twice.
            self._runs.pop(job_id, None)
        try:
            return run.result()
        except ClientError:
            raise
        except Exception as error:
            raise NetworkError(f"reading the answer failed: {type(error).__name__}") from error

    def _run_local(self, job_id: str) -> Answer:
        data = self._http.post(_path("status", job_id), timeout_s=LOCAL_JOB_S)
        if isinstance(data, dict) and data.get("error") == "Job ID not found":
            raise JobStopped(
                f"{self.name} does not know job {job_id}: the SDK's local API forgets a job with its answer",
                job_id=job_id,
            )
        return self._read(data, job_id)


def _path(route: str, job_id: str) -> str:
    if not envelope.JOB_ID.fullmatch(job_id):
        raise UsageError(f"{job_id[:100]!r} is not a job id")
    return f"/{route}/{quote(job_id, safe='')}"
