"""Asking a server that answers badly, over real sockets: what is tried again, for how long, and when it is given up."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from settee.client.client_errors import NetworkError, StatusError, Unsure, UsageError
from settee.client.targets.json_http import Http, limited
from tests.support.asking import KEY, Sleeps, asking
from tests.support.public_api import PublicApi


def test_an_answer(http: Http, api: PublicApi) -> None:
    assert http.get("/health")["workers"]["ready"] == 1
    assert api.asked[0].headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 524])
def test_a_question_is_asked_again(http: Http, api: PublicApi, sleeps: Sleeps, status: int) -> None:
    api.fault("health", status=status, times=3)
    assert http.get("/health")["jobs"]
    assert sleeps == [0.5, 1.0, 2.0]
    assert api.count("health") == 4


@pytest.mark.parametrize(
    "fault",
    [
        {"cut_after": 0},
        {"cut_after": 10},
        {"truncate": 10},
        {"truncate": 0},
        {"body": b"no JSON"},
        {"body": b"[" * 100_000},
        {"body": b"\xff\xfe{}"},
    ],
    ids=str,
)
def test_an_answer_that_breaks_off_is_asked_for_again(http: Http, api: PublicApi, fault: dict[str, Any]) -> None:
    api.fault("health", times=2, **fault)
    assert http.get("/health")["jobs"]
    assert api.count("health") == 3


def test_a_silent_server_is_asked_again(api: PublicApi, sleeps: Sleeps) -> None:
    http = asking(api.url, sleeps, timeout_s=0.2)
    api.fault("health", delay_s=1.0)
    assert http.get("/health")["jobs"]
    http.close()


def test_a_server_that_drips_does_not_hold_anybody_up(api: PublicApi, sleeps: Sleeps) -> None:
    http = asking(api.url, sleeps, timeout_s=0.3)
    api.fault("health", drip_s=0.1)
    begun = time.monotonic()
    assert http.get("/health")["jobs"]
    assert time.monotonic() - begun < 5
    http.close()


def test_pauses_grow_to_ten_seconds_and_end_after_a_minute(http: Http, api: PublicApi, sleeps: Sleeps) -> None:
    api.fault("health", status=500, times=100)
    with pytest.raises(StatusError, match="endpoint e1: it answers with HTTP 500: a fault of the test's") as caught:
        http.get("/health")
    assert caught.value.status == 500
    assert sleeps == [0.5, 1, 2, 4, 8, 10, 10, 10, 10]
    assert sum(sleeps) <= 60


def test_pauses_differ_from_caller_to_caller(api: PublicApi, sleeps: Sleeps) -> None:
    http = Http(api.url, name="e", key=KEY, clock=sleeps.clock, sleep=sleeps, rand=lambda: 0.0)
    api.fault("health", status=500)
    http.get("/health")
    assert sleeps == [0.25]
    http.close()


def test_retry_after_is_honoured(http: Http, api: PublicApi, sleeps: Sleeps) -> None:
    api.fault("health", status=429, headers={"Retry-After": "7"})
    http.get("/health")
    assert sleeps == [7.5]


def test_retry_after_as_a_date(http: Http, api: PublicApi, sleeps: Sleeps) -> None:
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 20))
    api.fault("health", status=503, headers={"Retry-After": date})
    http.get("/health")
    assert 15 < sleeps[0] <= 21


@pytest.mark.parametrize("value", ["soon", "-5", "nan", "inf", "1e999", ""])
def test_retry_after_that_is_none(http: Http, api: PublicApi, sleeps: Sleeps, value: str) -> None:
    api.fault("health", status=503, headers={"Retry-After": value})
    http.get("/health")
    assert sleeps == [0.5]


def test_a_retry_after_beyond_the_limit_is_not_waited_for(http: Http, api: PublicApi, sleeps: Sleeps) -> None:
    api.fault("health", status=429, headers={"Retry-After": "3600"})
    with pytest.raises(StatusError, match=r"HTTP 429.*send fewer at once"):
        http.get("/health")
    assert sleeps == []


# --- what must not be done twice ----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
def test_a_submission_that_was_not_accepted_is_sent_again(http: Http, api: PublicApi, status: int) -> None:
    before = len(api.inputs())
    api.fault("run", status=status, times=2)
    assert http.post("/run", {"input": {}})["status"] == "IN_QUEUE"
    assert api.count("run") == 3
    assert len(api.inputs()) == before + 1


@pytest.mark.parametrize(
    "fault",
    [{"status": 500}, {"status": 502}, {"status": 504}, {"cut_after": 0}, {"cut_after": 5}, {"truncate": 20}],
    ids=str,
)
def test_one_that_may_have_been_accepted_is_not(http: Http, api: PublicApi, fault: dict[str, Any]) -> None:
    before = len(api.inputs())
    api.fault("run", **fault)
    with pytest.raises(Unsure, match="it may have been accepted"):
        http.post("/run", {"input": {}})
    assert api.count("run") == 1
    assert len(api.inputs()) <= before + 1


def test_a_submission_that_gets_no_answer_is_not_sent_again(api: PublicApi, sleeps: Sleeps) -> None:
    http = asking(api.url, sleeps, timeout_s=0.2)
    api.fault("run", delay_s=1.0)
    with pytest.raises(Unsure, match=r"the server fell silent"):
        http.post("/run", {"input": {}})
    http.close()


def test_a_post_that_may_be_repeated_is(http: Http, api: PublicApi) -> None:
    api.fault("cancel", status=500)
    with pytest.raises(StatusError) as caught:
        http.post("/cancel/unknown", repeatable=True)
    assert caught.value.status == 404
    assert api.count("cancel") == 2


def test_a_large_body_is_sent_whole(http: Http, api: PublicApi) -> None:
    text = "x" * 9_000_000
    http.post("/run", {"input": {"text": text}})
    assert api.inputs()[-1] == {"text": text}


def test_what_is_no_json_is_not_sent(http: Http, api: PublicApi) -> None:
    for value in (float("nan"), object(), {1, 2}):
        with pytest.raises(UsageError):
            http.post("/run", {"input": value})
    assert api.asked == []


# --- being told to stop -------------------------------------------------------------------------------------


def test_a_pause_ends_when_told_to_stop(api: PublicApi) -> None:
    http = Http(api.url, name="e", key=KEY)
    api.fault("health", status=429, headers={"Retry-After": "50"}, times=9)
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    begun = time.monotonic()
    with limited(stop, lambda: 600.0), pytest.raises(NetworkError):
        http.get("/health")
    assert 0.1 < time.monotonic() - begun < 10
    assert api.count("health") == 1
    http.close()


def test_no_request_outlasts_what_is_left(api: PublicApi) -> None:
    http = Http(api.url, name="e", key=KEY)
    api.fault("health", delay_s=5.0, times=9)
    begun = time.monotonic()
    with limited(threading.Event(), lambda: begun + 0.3 - time.monotonic()), pytest.raises(NetworkError):
        http.get("/health")
    assert time.monotonic() - begun < 4.5
    http.close()


@pytest.mark.parametrize("by", ["stop", "time"])
def test_an_answer_without_end_is_not_read_to_it(by: str) -> None:
    """One that comes fast enough, but outlasts who waits for it."""
    stop, is_over = threading.Event(), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n")
                while not is_over.wait(0.01):
                    connection.sendall(b" " * 1000)

        thread = threading.Thread(target=answer)
        thread.start()
        http = Http(f"http://127.0.0.1:{listener.getsockname()[1]}", name="e")
        deadline = time.monotonic() + (0.3 if by == "time" else 60)
        timer = threading.Timer(0.3, stop.set)
        timer.start()
        try:
            event = stop if by == "stop" else threading.Event()
            with (
                limited(event, lambda: deadline - time.monotonic()),
                pytest.raises(NetworkError, match="had not come whole"),
            ):
                http.get("/health")
        finally:
            is_over.set()
            thread.join(10)
            timer.join(10)
            http.close()


def test_patience_ends_with_its_block(http: Http, api: PublicApi) -> None:
    stop = threading.Event()
    stop.set()
    api.fault("health", status=500, times=2)
    with limited(stop, lambda: 60.0), pytest.raises(NetworkError):
        http.get("/health")
    assert http.get("/health")["jobs"]


def test_closing_wakes_who_waits(api: PublicApi) -> None:
    http = Http(api.url, name="e", key=KEY)
    api.fault("health", status=429, headers={"Retry-After": "50"})
    threading.Timer(0.2, http.close).start()
    begun = time.monotonic()
    with pytest.raises(NetworkError):
        http.get("/health")
    assert time.monotonic() - begun < 10


def test_many_threads_at_once(api: PublicApi, sleeps: Sleeps) -> None:
    api.fault(None, status=503, times=20)
    # Their one clock knows of every thread's pauses: no thread's own patience may run out by the others'.
    http = asking(api.url, sleeps, retry_s=1e6, first_s=1e6)
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(http.get("/health"))) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    http.close()
    assert len(answers) == 32


def test_nothing_heavy_is_imported_before_the_first_request() -> None:
    heavy = ("requests", "urllib3", "email", "ssl", "http.client")
    code = f"import sys, settee.client.follow, settee.client.targets.runpod; print({{*{heavy}}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "set()"
