"""RunPod's API as a target: a serverless endpoint, the SDK's local API, any other worker with the same routes.

The SDK's local API has the routes but not their meaning: /run only notes a job, POST /status runs it and answers when
it has ended, and there is neither /cancel nor /health. It is known by its answer to GET /status, which is 405. There
a thread waits for each job, so that asking how it stands is as quick as elsewhere; and /runsync is not used, as nothing
could be reported about the job meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from settee.base import errors
from settee.base.threads import Call
from settee.client.client_errors import JobStopped, NetworkError, Rejected, StatusError, Unsure, UsageError
from settee.client.targets import Answer, Status
from settee.client.targets.json_http import Http, awaited
from settee.comfyui.node_registry import NodeRegistry

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
    """Return the serverless endpoint with this id. Raises UsageError for an invalid id, or without a key."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", endpoint_id):
        raise UsageError(
            f"{endpoint_id[:100]!r} is not an endpoint id: it is the word after /v2/ in the endpoint's address"
        )
    if not api_key:
        raise UsageError(f"endpoint {endpoint_id} requires an API key: set {KEY_NAME}")
    return RunPod(
        f"{base_url.rstrip('/')}/{endpoint_id}",
        name=f"endpoint {endpoint_id}",
        api_key=api_key,
        sync=sync,
        unseal=unseal,
    )


class RunPod:
    """A Target. ``sync``: /runsync instead of /run, which answers with the result when the job ends within WAIT_S.

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
        unseal: Unseal | None = None,
    ) -> None:
        """Raises UsageError for an invalid address or key."""
        self.name = name or base_url.rstrip("/")
        self._http = Http(base_url, name=self.name, key=api_key, key_name=KEY_NAME)
        self._sync, self._unseal = sync, unseal
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
        it when the job may have been accepted all the same (see :mod:`settee.client.targets.json_http`)."""
        try:
            with self._asking():
                if self._sync and not self._probe():
                    path = f"/runsync?wait={int(WAIT_S * 1000)}"
                    return self._read(self._http.post(path, payload, timeout_s=WAIT_S + _MARGIN_S))
                return self._read(self._http.post("/run", payload))
        except Unsure as error:
            if (job_id := job_id_in(error.head)) is None:
                raise
            # Half an answer, but the half with the id in it: the rest can be asked for.
            return Answer(job_id, Status.IN_QUEUE)

    def status(self, job_id: str) -> Answer:
        """Ask for the job's status. Raises JobStopped for a job that the target does not know (any more)."""
        path = _path("status", job_id)
        if self._probe():
            return self._local_status(job_id)
        with self._asking(job_id):
            return self._read(self._http.get(path), job_id)

    def cancel(self, job_id: str) -> None:
        """Ask for the job's end. Raises UsageError with the SDK's local API, JobStopped for a job that is not known."""
        path = _path("cancel", job_id)
        if self._probe():
            raise UsageError(LOCAL.format(name=self.name, what="cancel a job: stop the worker, or wait"), job_id=job_id)
        with self._asking(job_id):
            self._http.post(path, repeatable=True)

    def keeps(self, job_id: str) -> bool:
        """Return False for a job that the SDK's local API has begun: it cannot be canceled, its result is returned to
        the request that began it, and asking for it again would begin it again."""
        with self._lock:
            return job_id not in self._runs

    def health(self) -> dict[str, Any]:
        """Return ``{"jobs": {…}, "workers": {…}}``: how many in which state. Raises UsageError with the SDK's local
        API."""
        if self._probe():
            raise UsageError(LOCAL.format(name=self.name, what="report its health; it answers, so it is up"))
        with self._asking():
            data = self._http.get("/health")
        if not isinstance(data, dict):
            raise NetworkError(f"{self.name}: the answer to /health is not an object: check the address")
        return data

    def node_registry(self) -> NodeRegistry | None:
        """Return None: RunPod has no route to the worker's ComfyUI."""
        return None

    def close(self) -> None:
        self._http.close()

    # --- answers ------------------------------------------------------------------------------------------

    def _read(self, data: Any, job_id: str | None = None) -> Answer:
        return read_envelope(data, name=self.name, job_id=job_id, unseal=self._unseal)

    @contextlib.contextmanager
    def _asking(self, job_id: str | None = None) -> Iterator[None]:
        """Raise what a status means for a submission, or for a question about a job."""
        try:
            yield
        except StatusError as error:
            status, words = error.status, f": {error.words}" if error.words else ""
            if job_id is None and status == 413:
                line = f"{self.name} refuses the request as too large (HTTP 413){words}"
                raise Rejected(line, code="payload_too_large") from error
            if job_id is None and status in (400, 422):
                raise Rejected(f"{self.name} refuses the request (HTTP {status}){words}") from error
            if job_id is not None and status == 404:
                raise JobStopped(GONE.format(name=self.name, job_id=job_id), job_id=job_id) from error
            if status in (404, 405):
                line = f"{self.name}: not a RunPod API (HTTP {status}): check the id or address"
                raise NetworkError(line) from error
            error.job_id = job_id
            raise

    # --- the SDK's local API --------------------------------------------------------------------------------

    def _probe(self) -> bool:
        """Return True if this is the SDK's local API; asked once."""
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
        # Nothing is known about it before its end, so that is worth a moment.
        if not awaited(run.ended, LOCAL_MOMENT_S):
            return Answer(job_id, Status.IN_PROGRESS)
        with self._lock:
            # Its result may be large, and is not wanted twice.
            self._runs.pop(job_id, None)
        return run.result()

    def _run_local(self, job_id: str) -> Answer:
        data = self._http.post(_path("status", job_id), timeout_s=LOCAL_JOB_S)
        if isinstance(data, dict) and data.get("error") == "Job ID not found":
            raise JobStopped(
                f"{self.name} does not know job {job_id}: the SDK's local API forgets a job with its answer",
                job_id=job_id,
            )
        return self._read(data, job_id)


def _path(route: str, job_id: str) -> str:
    if not JOB_ID.fullmatch(job_id):
        raise UsageError(f"{job_id[:100]!r} is not a job id")
    return f"/{route}/{quote(job_id, safe='')}"


#: Opens a sealed result: ``{"encrypted_output": token, …}`` to what the token holds. Raises ClientError.
Unseal = Callable[[Mapping[str, Any]], dict[str, Any]]

#: Codes of settee's workers: the last word of an error line is one of these, in brackets.
CODES = frozenset(
    kind.code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.SetteeError)
)
#: The longest error line and progress text that is kept, characters.
MAX_LINE, MAX_TEXT = 4000, 500

_STATUSES = {status.value: status for status in Status} | {"CANCELED": Status.CANCELLED}
#: Where the line of an error may be.
_LINES = ("error", "error_message", "message", "errors")
_CODE = re.compile(r"\s*\[([a-z_]+)\]$")
_ID = re.compile(rb'^\s*\{[^{}\[\]]*"id"\s*:\s*"([\w.-]{1,200})"')
#: A job's id: it is printed, and put into addresses and commands.
JOB_ID = re.compile(r"(?=.*[A-Za-z0-9])[\w.:-]{1,200}", re.ASCII)

LOST = (
    "RunPod reports the job as completed, without a result: it was over RunPod's limit (10 MB for /run, 20 MB for "
    "/runsync) or has expired; let the worker deliver to S3, or ask for less"
)
NO_WORKER = "the job completed, but its result is not an object with outputs: is a settee worker behind this address?"
TIMED_OUT = (
    "RunPod ended the job: it ran longer than the endpoint's execution timeout (10 minutes unless set), or waited in "
    "the queue beyond its time to live"
)


def job_id_in(head: bytes) -> str | None:
    """Return the job's id in the first bytes of an answer that broke off; None unless it is certainly the envelope's
    own."""
    match = _ID.match(head)
    return match[1].decode("ascii", "replace") if match else None


def read_envelope(data: Any, *, name: str, job_id: str | None = None, unseal: Unseal | None = None) -> Answer:
    """Return a job's state. ``name`` is the target's, for errors; ``job_id`` is the one asked for, None for a new job.

    Raises NetworkError for anything but such an envelope, and what ``unseal`` raises.
    """
    if not isinstance(data, dict):
        raise NetworkError(f"{name}: the answer is not RunPod's: check the address", job_id=job_id)
    given = data.get("id")
    job_id = job_id or (given if isinstance(given, str) and JOB_ID.fullmatch(given) else None)
    if job_id is None:
        raise NetworkError(f"{name}: the answer has no job id: check the address")
    status = _STATUSES.get(str(data.get("status")).upper())
    if status is None:
        raise NetworkError(f"{name}: the answer has no status that RunPod has: check the address", job_id=job_id)
    timings = {key: float(data[key]) for key in ("delayTime", "executionTime") if _is_number(data.get(key))}
    output = data.get("output")
    if unseal is not None and status.is_terminal and isinstance(output, dict) and "encrypted_output" in output:
        try:
            output = {**output, **unseal(output)}
        except UsageError as error:
            # Of a failure, what stands outside the seal is enough: with another key, the worker could not open the job.
            if status is not Status.FAILED:
                error.job_id = job_id
                raise
        for key in ("encrypted_output", "is_encrypted"):
            output.pop(key, None)
        if status is Status.FAILED and isinstance(output.get("error"), str):
            # The line outside the seal has less detail.
            data = {**data, "error": output["error"]}
    if not status.is_terminal:
        return Answer(job_id, status, progress=_progress(output), timings=timings)
    if status is Status.COMPLETED:
        if isinstance(output, dict) and output and not output.get("error"):
            return Answer(job_id, status, output=output, timings=timings)
        # A worker that returned its error under a key that RunPod does not read, or a result that got lost.
        if isinstance(output, dict) and output:
            data = {**data, "error": output["error"]}
        else:
            words = LOST if output is None or output == {} else NO_WORKER
            return Answer(job_id, Status.FAILED, error=words, timings=timings)
        status = Status.FAILED
    line, code, details = _failure(data.get("error"), output)
    if status is Status.TIMED_OUT and not line:
        line = TIMED_OUT
    return Answer(job_id, status, error=line, code=code, details=details, timings=timings)


def _failure(error: Any, output: Any) -> tuple[str | None, str | None, dict[str, Any]]:
    """Return line, code and details of a job that ended badly, wherever its worker put them: the error may be an
    object, or a JSON string of one, twice."""
    detail: dict[str, Any] = dict(output) if isinstance(output, dict) else {}
    for _ in range(2):
        if isinstance(error, str) and error.lstrip().startswith("{"):
            with contextlib.suppress(ValueError, RecursionError):
                error = json.loads(error)
        if isinstance(error, dict):
            detail, error = {**detail, **error}, None
        # The SDK reports an exception of the handler as error_type, error_message and error_traceback.
        error = error or next((detail.pop(key) for key in _LINES if detail.get(key)), None)
    if isinstance(error, list):
        error = "; ".join(str(part) for part in error if isinstance(part, (str, int, float)))
    line = error.strip()[:MAX_LINE] if isinstance(error, str) else ""
    code = detail["code"] if isinstance(detail.get("code"), str) else None
    match = _CODE.search(line)
    if match and (match[1] in CODES or match[1] == code):
        line, code = line[: match.start()], code or match[1]
    return line or None, code, detail["details"] if isinstance(detail.get("details"), dict) else {}


def _progress(output: Any) -> dict[str, Any]:
    """Return a worker's last progress report of a running job, as far as it is valid."""
    if isinstance(output, str):
        return {"message": output[:MAX_TEXT]} if output else {}
    if not isinstance(output, dict):
        return {}
    texts = ("phase", "node", "node_type", "message")
    found = {key: str(output[key])[:MAX_TEXT] for key in texts if type(output.get(key)) in (str, int)}
    return found | {key: output[key] for key in ("percent", "step", "max") if _is_number(output.get(key))}


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e15
