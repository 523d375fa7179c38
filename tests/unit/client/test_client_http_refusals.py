"""Asking where there is nobody, no API, or a key that is not accepted: what is said, and what must never be."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
from typing import Any

import pytest

from settee.backends.comfy.process import free_port
from settee.client.client_errors import AuthError, NetworkError, StatusError, UsageError
from settee.client.targets.json_http import Http
from tests.support.asking import KEY, Sleeps, asking
from tests.support.public_api import PublicApi

# --- nobody there -------------------------------------------------------------------------------------------


def test_a_server_that_never_answered_is_given_a_few_seconds(sleeps: Sleeps) -> None:
    port = free_port()
    http = asking(f"http://127.0.0.1:{port}", sleeps)
    words = "the server cannot be reached: is it running"
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
    with pytest.raises(NetworkError, match=r"its host name cannot be resolved"):
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
    with pytest.raises(NetworkError, match=r"larger than 0\.001 MB"):
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
        with pytest.raises(NetworkError, match="the connection broke off"):
            http.get("/health")
        http.close()


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


# --- keys ---------------------------------------------------------------------------------------------------


def test_a_key_that_is_refused(api: PublicApi, sleeps: Sleeps) -> None:
    http = asking(api.url, sleeps, key="rpa_OTHER")
    with pytest.raises(AuthError, match="does not accept the key in RUNPOD_API_KEY"):
        http.get("/health")
    assert sleeps == []
    http.close()


def test_a_key_that_may_not(http: Http, api: PublicApi) -> None:
    api.fault("health", status=403)
    with pytest.raises(AuthError, match="the key in RUNPOD_API_KEY has no access to endpoint e1"):
        http.get("/health")


def test_a_key_that_is_missing(api: PublicApi, sleeps: Sleeps, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password something\n")
    monkeypatch.setenv("NETRC", str(netrc))
    http = asking(api.url.replace("127.0.0.1", "localhost"), sleeps, key=None)
    with pytest.raises(AuthError, match="endpoint e1 requires a key: set RUNPOD_API_KEY"):
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


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_the_client_has_no_key_for(api: PublicApi, status: int) -> None:
    api.fault("health", status=status)
    with (
        contextlib.closing(Http(api.url, name="ComfyUI at x", key_name=None)) as http,
        pytest.raises(AuthError, match="requires a login, which no option provides"),
    ):
        http.get("/health")
