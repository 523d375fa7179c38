"""What a worker says to RunPod: one POST to the job-done URL, with the headers the SDK sends.

The SDK turns a result into text, logs it, encodes it and hands it to a transport that copies it again: 6.6
times the size of a file, measured. Here a result is serialised in pieces while it is sent.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson

from settee.net.retry import Backoff, is_transient

log = logging.getLogger(__name__)

HEADERS = {"charset": "utf-8", "Content-Type": "application/x-www-form-urlencoded"}

#: Attempts at a result, over some 20 s. The SDK gives up after three within 2 s, and the job is lost.
TRIES, BACKOFF = 7, Backoff(1.0, 8.0)

#: How long one attempt may take, seconds, and the bytes a second that a large body is given on top. The SDK's
#: session allows 600 s: a RunPod that does not answer would hold the slot for more than an hour.
ATTEMPT_S, SLOWEST = 30.0, 1_000_000

#: Characters of a long string that are encoded at a time.
_PIECE = 1 << 18

#: Answers to a result that mean "not like this", not "not now" (RunPod refuses one over its cap with 400).
REFUSED = frozenset({400, 413, 422})


class Refused(Exception):
    """RunPod will not take this body, now or later."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"HTTP {status}")


class Undelivered(Exception):
    """RunPod could not be reached, or not be made to take a body, in all attempts."""


def message(answer: dict[str, Any]) -> dict[str, Any]:
    """A handler's answer as the SDK posts it: ``{"output", "error"?, "stopPod"?}``."""
    output = dict(answer)
    error, refresh = output.pop("error", None), output.pop("refresh_worker", None)
    posted: dict[str, Any] = {"output": output} if output else {}
    if error:
        posted["error"] = error
    if refresh:
        posted["stopPod"] = True
    return posted


def encode(value: Any) -> bytes:
    """JSON in UTF-8. orjson takes no integer beyond 64 bits, which a caller's own values may contain."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return json.dumps(value, default=str, ensure_ascii=False).encode("utf-8", "replace")


class Body:
    """A value as the JSON that :func:`encode` makes, of whose long strings no more than a piece is held at a time.

    An answer's base64 is there as text already; as one body it would be there twice. ``len()`` is the size in bytes.
    """

    def __init__(self, value: Any) -> None:
        self._long: list[str] = []
        mark = uuid.uuid4().hex

        def cut(part: Any) -> Any:
            if isinstance(part, str) and len(part) > _PIECE:
                self._long.append(part)
                return mark
            if isinstance(part, dict):
                return {key: cut(entry) for key, entry in part.items()}
            return [cut(entry) for entry in part] if isinstance(part, list) else part

        #: What stands around the long strings, in their order.
        self._around = encode(cut(value)).split(mark.encode())
        self._size = sum(map(len, self.pieces()))

    def __len__(self) -> int:
        return self._size

    def pieces(self) -> Iterator[bytes]:
        yield self._around[0]
        for text, after in zip(self._long, self._around[1:], strict=True):
            for at in range(0, len(text), _PIECE):
                yield encode(text[at : at + _PIECE])[1:-1]
            yield after


def done_url(template: str, job_id: str) -> str:
    """The job-done URL of one job, as the SDK builds it."""
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
            raise Refused(response.status)
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
