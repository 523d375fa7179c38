"""Asking a server that answers badly, over real sockets: what is tried again, for how long, and what is said."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from settee.client.errors import AuthError, NetworkError, UsageError
from settee.client.targets.http import Http, StatusError, Unsure, patience
from settee.comfy.process import free_port
from tests.support.public_api import PublicApi

KEY = "rpa_SECRET"


class Sleeps(list[float]):
    """Pauses that take no time, and a clock that knows of them."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)

    def clock(self) -> float:
        return sum(self)


@pytest.fixture(scope="module")
def server() -> Iterator[PublicApi]:
    with PublicApi(key=KEY) as server:
        yield server


@pytest.fixture
def api(server: PublicApi) -> PublicApi:
    server.clear()
    return server


@pytest.fixture
def sleeps() -> Sleeps:
    return Sleeps()


@pytest.fixture
def http(api: PublicApi, sleeps: Sleeps) -> Iterator[Http]:
    http = asking(api.url, sleeps)
    yield http
    http.close()


def asking(url: str, sleeps: Sleeps, key: str | None = KEY, **options: Any) -> Http:
    return Http(
        url,
        name="endpoint e1",
        key=key,
        key_name="RUNPOD_API_KEY",
        clock=sleeps.clock,
        sleep=sleeps,
        rand=lambda: 1.0,
        **options,
    )


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
    assert sleeps == [7.0]


def test_retry_after_as_a_date(http: Http, api: PublicApi, sleeps: Sleeps) -> None:
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 20))
    api.fault("health", status=503, headers={"Retry-After": date})
    http.get("/health")
    assert 15 < sleeps[0] <= 20


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
    with pytest.raises(Unsure, match="whether it was accepted is not known"):
        http.post("/run", {"input": {}})
    assert api.count("run") == 1
    assert len(api.inputs()) <= before + 1


def test_a_submission_that_gets_no_answer_is_not_sent_again(api: PublicApi, sleeps: Sleeps) -> None:
    http = asking(api.url, sleeps, timeout_s=0.2)
    api.fault("run", delay_s=1.0)
    with pytest.raises(Unsure, match=r"no answer within 0\.2 s"):
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


# --- nobody there -------------------------------------------------------------------------------------------


def test_a_server_that_never_answered_is_given_a_few_seconds(sleeps: Sleeps) -> None:
    port = free_port()
    http = asking(f"http://127.0.0.1:{port}", sleeps)
    words = f"nothing answers at 127.0.0.1:{port}: is it running"
    with pytest.raises(NetworkError, match=words):
        http.get("/health")
    assert sleeps == [0.5, 1.0, 2.0]
    with pytest.raises(NetworkError, match=words):
        http.post("/run", {})
    assert sleeps == [0.5, 1.0, 2.0] * 2


def test_a_server_that_comes_up_meanwhile_gets_the_submission(sleeps: Sleeps) -> None:
    port = free_port()
    with contextlib.ExitStack() as stack:
        late: list[PublicApi] = []

        def come_up(seconds: float) -> None:
            if not late:
                late.append(stack.enter_context(PublicApi(port=port, key=KEY)))

        http = Http(f"http://127.0.0.1:{port}/v2/endpoint1", name="e", key=KEY, clock=sleeps.clock, sleep=come_up)
        assert http.post("/run", {"input": {}})["status"] == "IN_QUEUE"
        assert late[0].count("run") == 1
        http.close()


def test_a_name_that_is_none(sleeps: Sleeps) -> None:
    with pytest.raises(NetworkError, match=r"no host is named settee\.invalid, or there is no network"):
        asking("http://settee.invalid", sleeps).get("/health")


@pytest.mark.parametrize(
    "url",
    ["", "x", "ftp://a/b", "http://", "http://a:b", "http://a:99999", "http://u:p@a", "http://a?x=1", "http://a/#b", "http://[::1"],
)  # fmt: skip
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UsageError, match="the address must") as caught:
        Http(url, name="e")
    assert "u:p" not in caught.value.message


@pytest.mark.parametrize("host", ["a" * 300, ".", "a..b", "xn--a"])
def test_hosts_that_cannot_be(host: str, sleeps: Sleeps) -> None:
    with pytest.raises((UsageError, NetworkError)):
        asking(f"http://{host}", sleeps).get("/health")


def test_a_web_page_is_no_api(http: Http, api: PublicApi, sleeps: Sleeps) -> None:
    api.fault("health", body=b"<html>", headers={"Content-Type": "text/html; charset=utf-8"})
    with pytest.raises(NetworkError, match="a web page answers there"):
        http.get("/health")
    assert sleeps == []


def test_a_redirect_is_not_followed(http: Http, api: PublicApi) -> None:
    api.fault("health", status=301, headers={"Location": "http://127.0.0.1:1/"})
    with pytest.raises(StatusError, match="HTTP 301: it redirects to another address"):
        http.get("/health")


def test_an_answer_that_is_too_long(api: PublicApi, sleeps: Sleeps) -> None:
    http = asking(api.url, sleeps, max_bytes=1000)
    api.fault("health", body=b'"' + b"x" * 10_000 + b'"')
    with pytest.raises(NetworkError, match=r"over 0\.001 MB"):
        http.get("/health")
    http.close()


def test_a_port_of_something_that_is_no_web_server(sleeps: Sleeps) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")

        threading.Thread(target=answer, daemon=True).start()
        http = asking(f"http://127.0.0.1:{listener.getsockname()[1]}", sleeps, retry_s=0.6, first_s=0.6)
        with pytest.raises(NetworkError, match="the connection was lost"):
            http.get("/health")
        http.close()


# --- keys ---------------------------------------------------------------------------------------------------


def test_a_key_that_is_refused(api: PublicApi, sleeps: Sleeps) -> None:
    http = asking(api.url, sleeps, key="rpa_OTHER")
    with pytest.raises(AuthError, match="does not accept the key in RUNPOD_API_KEY"):
        http.get("/health")
    assert sleeps == []
    http.close()


def test_a_key_that_may_not(http: Http, api: PublicApi) -> None:
    api.fault("health", status=403)
    with pytest.raises(AuthError, match="the key in RUNPOD_API_KEY may not use endpoint e1"):
        http.get("/health")


def test_a_key_that_is_missing(api: PublicApi, sleeps: Sleeps, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password something\n")
    monkeypatch.setenv("NETRC", str(netrc))
    http = asking(api.url.replace("127.0.0.1", "localhost"), sleeps, key=None)
    with pytest.raises(AuthError, match="endpoint e1 wants a key: set RUNPOD_API_KEY"):
        http.get("/health")
    assert "Authorization" not in api.asked[-1].headers
    http.close()


@pytest.mark.parametrize("key", ["", "a b", "a\nb", "schlüssel", "a\x00"])
def test_keys_that_cannot_be(key: str) -> None:
    with pytest.raises(UsageError, match="RUNPOD_API_KEY holds characters") as caught:
        Http("http://127.0.0.1:1", name="e", key=key, key_name="RUNPOD_API_KEY")
    assert not key or key not in caught.value.message


@pytest.mark.parametrize(("key", "is_hidden"), [("rpa_" + "A1b2" * 6, True), ("error", False)])
def test_an_echo_of_the_key_goes_no_further(sleeps: Sleeps, key: str, is_hidden: bool) -> None:
    """Except a word that may be there by chance."""
    with PublicApi(key=key) as api:
        api.fault("health", body=json.dumps({"message": f"Bearer {key}", "list": [key]}).encode())
        with contextlib.closing(asking(api.url, sleeps, key=key)) as http:
            shown = "…" if is_hidden else key
            assert http.get("/health") == {"message": f"Bearer {shown}", "list": [shown]}


def test_neither_key_nor_bodies_are_told(
    http: Http, api: PublicApi, caplog: pytest.LogCaptureFixture, sleeps: Sleeps
) -> None:
    caplog.set_level(logging.DEBUG, logger="settee")
    told = []
    words = json.dumps({"error": f"bad\x1b[31m {KEY}\n" + "y" * 900, "echo": "PRIVATE"}).encode()
    for fault in ({"status": 400, "body": words}, {"status": 500, "body": words}, {"truncate": 5}):
        api.fault("run", **fault)
        with pytest.raises(NetworkError) as caught:
            http.post("/run", {"input": "PRIVATE"})
        told.append(caught.value.message)
    api.fault("health", status=500, body=words)
    http.get("/health")
    told += [record.getMessage() for record in caplog.records]
    assert len(told) >= 4
    for line in told:
        assert KEY not in line
        assert "PRIVATE" not in line
        assert line.isprintable()
        assert len(line) < 500
    assert "bad [31m …" in told[0]


# --- being told to stop -------------------------------------------------------------------------------------


def test_a_pause_ends_when_told_to_stop(api: PublicApi) -> None:
    http = Http(api.url, name="e", key=KEY)
    api.fault("health", status=429, headers={"Retry-After": "50"}, times=9)
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    begun = time.monotonic()
    with patience(stop, lambda: 600.0), pytest.raises(NetworkError):
        http.get("/health")
    assert 0.1 < time.monotonic() - begun < 10
    assert api.count("health") == 1
    http.close()


def test_no_request_outlasts_what_is_left(api: PublicApi) -> None:
    http = Http(api.url, name="e", key=KEY)
    api.fault("health", delay_s=5.0, times=9)
    begun = time.monotonic()
    with patience(threading.Event(), lambda: begun + 0.3 - time.monotonic()), pytest.raises(NetworkError):
        http.get("/health")
    assert time.monotonic() - begun < 3
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
                patience(event, lambda: deadline - time.monotonic()),
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
    with patience(stop, lambda: 60.0), pytest.raises(NetworkError):
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


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_the_client_has_no_key_for(api: PublicApi, status: int) -> None:
    api.fault("health", status=status)
    with (
        contextlib.closing(Http(api.url, name="ComfyUI at x", key_name=None)) as http,
        pytest.raises(AuthError, match="wants a login, which goes by no option"),
    ):
        http.get("/health")


def test_nothing_heavy_is_imported_before_the_first_request() -> None:
    heavy = ("requests", "urllib3", "email", "ssl", "http.client")
    code = f"import sys, settee.client.following, settee.client.targets.runpod; print({{*{heavy}}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "set()"


def test_the_environments_proxy_is_not_for_this_machine(
    http: Http, sleeps: Sleeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert http.get("/health")["jobs"]
    with pytest.raises(NetworkError, match="the proxy cannot be reached"):
        asking("http://settee.invalid", sleeps).get("/health")
