"""Asking RunPod for a job: what the SDK's get_job does, but no job that was handed out goes unanswered.

The SDK drops a job that has no `input` with a log line; RunPod then holds it in progress until it times out.
"""

from __future__ import annotations

import json
import logging
import re
import time
from dataclasses import dataclass
from typing import Any

import aiohttp

from settee.doors.runpod.door import Unreadable

log = logging.getLogger(__name__)

#: Seconds to leave RunPod alone after 429, as the SDK does.
TOO_MANY_S = 5.0


#: A text or a bracket of JSON, and the value of a key that is a text or a whole number.
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]', re.DOTALL)
_VALUE = re.compile(r'\s*:\s*("[^"\\]{1,1000}"|\d{1,100}\b)')


class TooMany(Exception):
    """RunPod says 429: too many requests."""


@dataclass
class Taken:
    """How far a request for a job has come, for whoever may want to give it up."""

    #: Its headers say 200: RunPod counts the job as ours.
    answered: bool = False


async def take(session: aiohttp.ClientSession, url: str, state: Taken) -> dict[str, Any] | None:
    """One long poll. None when there is no job (204, or 400, which FlashBoot makes usual).

    A job that is not JSON for Python (nested too deeply, numbers of thousands of digits, text that is not UTF-8)
    comes as its id with an :class:`Unreadable` for its input. Raises TooMany, aiohttp.ClientError, TimeoutError,
    or ValueError (not a job).
    """
    async with session.get(url) as response:
        if response.status in (204, 400):
            return None
        if response.status == 429:
            raise TooMany
        response.raise_for_status()
        state.answered = response.status == 200
        if response.status != 200 or response.content_length == 0:
            return None
        body = await response.read()
    return as_job(body)


def as_job(body: bytes) -> dict[str, Any] | None:
    """The job in an answer of RunPod's, None when there is none. Raises ValueError when it is something else."""
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
    """What can be told of a job that does not parse: not even an id, perhaps."""
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
    SHORTEST, LONGEST, LONGEST_FAILING = 0.1, 1.0, 10.0

    def __init__(self) -> None:
        self._delay = 0.0
        self._next = 0.0
        self._asked = time.monotonic()

    def took(self, job: bool) -> None:
        """RunPod answered, with a job or without."""
        held = time.monotonic() - self._asked
        if job or held >= self.LONGEST:
            self._delay = self._next = 0.0
        else:
            self._delay = self._next = min(self.LONGEST, max(self.SHORTEST, self._delay * 2))

    def failed(self) -> None:
        """The request failed."""
        self._delay = self._next = min(self.LONGEST_FAILING, max(self.LONGEST, self._delay * 2))

    def too_many(self) -> None:
        """RunPod said 429."""
        self._next = TOO_MANY_S

    def delay_s(self) -> float:
        """The wait that is due now; the next request is taken to follow it."""
        delay, self._next = self._next, 0.0
        self._asked = time.monotonic() + delay
        return delay
