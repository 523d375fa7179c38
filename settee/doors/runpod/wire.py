"""RunPod over HTTP: jobs asked for, and results posted, none of either lost.

What the SDK's get_job does, but it drops a job that has no `input` with a log line, which RunPod then holds in progress
until it times out. And what its send_result does, but that turns a result into text, logs it, encodes it and hands it
to a transport that copies it again: 6.6 times the size of a file, measured. Here it is serialised while it is sent.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import aiohttp

from settee.doors.runpod.render import Body, Unreadable
from settee.net.retry import Backoff, is_transient

log = logging.getLogger(__name__)

#: Seconds to leave RunPod alone after 429, as the SDK does.
TOO_MANY_S = 5.0
#: As the SDK sends them.
HEADERS = {"charset": "utf-8", "Content-Type": "application/x-www-form-urlencoded"}
#: Attempts at a result, over some 20 s. The SDK gives up after three within 2 s, and the job is lost.
TRIES, BACKOFF = 7, Backoff(1.0, 8.0)
#: How long one attempt may take, seconds, and the bytes a second that a large body is given on top. The SDK's
#: session allows 600 s: a RunPod that does not answer would hold the slot for more than an hour.
ATTEMPT_S, SLOWEST = 30.0, 1_000_000
#: Answers to a result that mean "not like this", not "not now" (RunPod refuses one over its cap with 400).
REFUSED = frozenset({400, 413, 422})
#: A text or a bracket of JSON, and the value of a key that is a text or a whole number.
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]', re.DOTALL)
_VALUE = re.compile(r'\s*:\s*("[^"\\]{1,1000}"|\d{1,100}\b)')


class Refused(Exception):
    """RunPod will not take this body, now or later."""


class Undelivered(Exception):
    """RunPod could not be reached, or not be made to take a body, in all attempts."""


# --- a job --------------------------------------------------------------------------------------------------------


async def take(session: aiohttp.ClientSession, url: str, answered: asyncio.Event) -> dict[str, Any] | None:
    """Return the job of one long poll; None when there is none (204, or 400, which FlashBoot makes usual).

    ``answered`` is set once the headers say 200: RunPod counts the job as ours, and the request may not be given up.
    A job that is not JSON for Python (nested too deeply, numbers of thousands of digits, text that is not UTF-8)
    comes as its id with an :class:`Unreadable` for its input. Raises aiohttp.ClientError, TimeoutError, or
    ValueError (not a job).
    """
    async with session.get(url) as response:
        if response.status in (204, 400):
            return None
        response.raise_for_status()
        if response.status != 200 or response.content_length == 0:
            return None
        answered.set()
        body = await response.read()
    return as_job(body)


def as_job(body: bytes) -> dict[str, Any] | None:
    """Return the job in an answer of RunPod's, None when there is none. Raises ValueError for anything else."""
    if not body.strip():
        return None
    try:
        job = json.loads(body)
    except (ValueError, RecursionError):
        job = _unreadable(body)
    if isinstance(job, list):  # the batch form, asked for one
        job = job[0] if job else None
    if job is None:
        return None
    if not isinstance(job, dict) or not job.get("id"):
        raise ValueError("RunPod's answer is not a job")
    return {**job, "id": str(job["id"])}


def _unreadable(body: bytes) -> dict[str, Any]:
    """Return what can be told of a job that does not parse: not even an id, perhaps."""
    text = body.decode("utf-8", "replace")
    inside = 2 if text.lstrip().startswith("[") else 1
    depth = 0
    for token in _TOKEN.finditer(text):
        word = token[0]
        if word in "{[":
            depth += 1
        elif word in "}]":
            depth -= 1
        elif depth == inside and word == '"id"' and (value := _VALUE.match(text, token.end())):
            return {"id": value[1].strip('"'), "input": Unreadable()}
    return {}


class Pace:
    """How long to wait before the next request, so that no answer of RunPod's can make the worker spin.

    RunPod holds a request open until there is a job; some answers (400, a proxy's 204) come at once. Those are
    asked again after 0.1 s, then ever later up to 1 s, and at once after one that was held for longer.
    """

    #: Seconds.
    MIN_S, MAX_S, MAX_FAILING_S = 0.1, 1.0, 10.0

    def __init__(self) -> None:
        self._delay = self._next = 0.0
        self._asked = time.monotonic()

    def took(self, job: bool) -> None:
        """RunPod answered, with a job or without."""
        is_quick = not job and time.monotonic() - self._asked < self.MAX_S
        self._delay = self._next = min(self.MAX_S, max(self.MIN_S, self._delay * 2)) if is_quick else 0.0

    def failed(self) -> None:
        self._delay = self._next = min(self.MAX_FAILING_S, max(self.MAX_S, self._delay * 2))

    def too_many(self) -> None:
        self._next = TOO_MANY_S

    def delay_s(self) -> float:
        """Return the wait that is due now; the next request is taken to follow it."""
        delay, self._next = self._next, 0.0
        self._asked = time.monotonic() + delay
        return delay


# --- its result ---------------------------------------------------------------------------------------------------


def done_url(template: str, job_id: str) -> str:
    """Return the job-done URL of one job, as the SDK builds it."""
    return template.replace("$ID", quote(job_id, safe="")) + "&isStream=false"


async def post(session: aiohttp.ClientSession, url: str, job_id: str, body: Body) -> None:
    """Send one body, once. Raises Refused, aiohttp.ClientError or TimeoutError."""
    request_id = job_id if job_id.isascii() and job_id.isprintable() else quote(job_id)

    async def pieces() -> AsyncIterator[bytes]:
        for piece in body.pieces():
            yield piece

    request = session.post(
        url,
        data=pieces(),
        headers={**HEADERS, "X-Request-ID": request_id, "Content-Length": str(len(body))},
        timeout=aiohttp.ClientTimeout(total=ATTEMPT_S + len(body) / SLOWEST),
    )
    async with request as response:
        await response.read()
        if response.status in REFUSED:
            raise Refused(f"HTTP {response.status}")
        response.raise_for_status()


async def deliver(session: aiohttp.ClientSession, url: str, job_id: str, body: Body) -> None:
    """Send a result until RunPod has it. Raises Refused or Undelivered."""
    for failures in range(1, TRIES + 1):
        try:
            return await post(session, url, job_id, body)
        except aiohttp.ClientResponseError as error:
            if not is_transient(error.status):
                raise Undelivered(f"HTTP {error.status}") from error
            reason = f"HTTP {error.status}"
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            reason = type(error).__name__
        if failures < TRIES:
            delay = BACKOFF.pause_s(failures)
            log.warning("RunPod did not take the result (%s); again in %.1f s", reason, delay)
            await asyncio.sleep(delay)
    raise Undelivered(reason)
