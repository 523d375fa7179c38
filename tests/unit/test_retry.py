"""Pauses between tries, and what a server asks for with Retry-After."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest

from settee.base.errors import DownloadFailed
from settee.net.retry import Backoff, is_transient, retried, retry_after_s


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((text, None) for text in ("", None, "soon", "-7", "1e9", "\u0663", "nan", "inf", "1e999")),
        *((("7", 7), (" 7 ", 7), ("1.5", 1.5), ("99999999", 3600), ("9" * 400, 3600))),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 21 Oct 99999999 07:28:00 GMT", None),
    ],
)
def test_retry_after(text: str | None, expected: float | None) -> None:
    assert retry_after_s(text, 3600) == expected


def test_retry_after_as_a_date() -> None:
    later = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=100), usegmt=True)
    assert 95 < (retry_after_s(later) or 0) <= 100


def test_pauses_double_up_to_the_longest() -> None:
    backoff = Backoff(0.5, 3.0)
    assert [backoff.pause_s(n, rand=lambda: 1.0) for n in (1, 2, 3, 4, 9999)] == [0.5, 1, 2, 3, 3]
    assert [backoff.pause_s(n, rand=lambda: 0.0) for n in (1, 2, 3, 4)] == [0.25, 0.5, 1, 1.5]
    assert Backoff(0.5, 3.0, jitter=1.0).pause_s(1, rand=lambda: 0.0) == 0


def test_what_the_server_asked_for_is_waited_for() -> None:
    assert Backoff(0.5, 3.0).pause_s(1, 7.0, rand=lambda: 0.0) == 7
    assert 7 <= Backoff(0.5, 3.0).pause_s(9, 7.0) <= 8
    assert Backoff(8.0, 8.0).pause_s(1, 0.0, rand=lambda: 1.0) == 8


def test_what_may_pass_is_called_again() -> None:
    errors = [DownloadFailed("later"), DownloadFailed("later")]

    def call() -> str:
        if errors:
            raise errors.pop()
        return "there"

    assert retried(call, Backoff(0.001, 0.001), tries=3) == "there"


@pytest.mark.parametrize(
    ("error", "options", "calls"),
    [(DownloadFailed("no", retryable=False), {}, 1), (DownloadFailed("later"), {"tries": 3}, 3)],
)
def test_the_last_error_is_raised(error: Exception, options: dict[str, int], calls: int) -> None:
    made = []

    def call() -> None:
        made.append(1)
        raise error

    with pytest.raises(DownloadFailed):
        retried(call, Backoff(0.001, 0.001), tries=options.get("tries"))
    assert len(made) == calls


def test_stop_and_time_end_the_waiting() -> None:
    def call() -> None:
        raise DownloadFailed("later")

    stop = threading.Event()
    stop.set()
    with pytest.raises(DownloadFailed):
        retried(call, Backoff(60.0, 60.0), stop=stop)
    with pytest.raises(DownloadFailed):
        retried(call, Backoff(0.01, 0.01), within_s=0.05)


@pytest.mark.parametrize(
    ("status", "expected"),
    [(400, False), (404, False), (408, True), (429, True), (500, True), (501, False), (530, True)],
)
def test_statuses_that_may_pass(status: int, expected: bool) -> None:
    assert is_transient(status) == expected
