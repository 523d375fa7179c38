"""How a callback reaches its receiver: TLS, proxies, lookups of names, credentials."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from settee.service.webhooks import WebhookSender
from tests.support.certificates import own_certificate
from tests.support.outbox import ask, post
from tests.support.receiver import Receiver
from tests.support.waiting import eventually


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    """With a certificate that nobody trusts."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a receiver")])
    now = datetime.now(timezone.utc)
    hour = timedelta(hours=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - hour, now + hour)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    (tmp_path / "both.pem").write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    return context


def test_a_certificate_is_checked(tls: ssl.SSLContext) -> None:
    """An operator may renew it, so the callback waits for that."""
    with Receiver(tls=tls) as receiver:
        answer = ask(WebhookSender(), post(receiver.url()), 5)
    assert (answer.status, answer.is_refused) == (None, False)
    assert "TLS" in answer.why
    assert receiver.calls == []


def test_unless_the_operator_says_no(tls: ssl.SSLContext) -> None:
    with Receiver(tls=tls) as receiver:
        assert ask(WebhookSender(verify_tls=False), post(receiver.url()), 5).is_delivered


def test_what_is_not_checked_needs_no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/a file that is missing.pem")
    assert WebhookSender(verify_tls=False)._connections(urlsplit("https://receiver.example/"))


@pytest.mark.parametrize(
    "url",
    [
        "http://exa mple/",
        "nonsense://host/",
        "httpx://host/",
        "/relative",
        "http://[::1/",
        "http://host:99999/",
        "http://host:port/",
        f"http://{'a' * 300}.example/",
        "http://.example/",
        "http://a..example/",
    ],
)
def test_an_address_that_cannot_be_used_is_given_up(url: str) -> None:
    answer = ask(WebhookSender(), post(url), 5)
    assert answer.is_refused
    assert "address" in answer.why


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets the environment's; the machine's own is not used."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return lambda address: monkeypatch.setenv("http_proxy", address)


@pytest.mark.parametrize(
    "address", ["socks5://127.0.0.1:9", "nonsense://127.0.0.1:9", "http:///proxy", "http://127.0.0.1:99999", "http://"]
)
def test_a_proxy_that_is_set_wrongly_is_put_right_some_day(address: str, proxy: Callable[[str], None]) -> None:
    proxy(address)
    answer = ask(WebhookSender(), post("http://dispatcher.example/callbacks"), 5)
    assert (answer.status, answer.is_refused) == (None, False)
    assert "dispatcher" not in answer.why


def test_a_proxy_is_used(proxy: Callable[[str], None]) -> None:
    with Receiver() as receiver:
        proxy(f"http://127.0.0.1:{receiver.port}")
        assert ask(WebhookSender(), post("http://dispatcher.example/callbacks"), 5).is_delivered
    assert receiver.calls[0].path == "http://dispatcher.example/callbacks"


def test_a_proxy_is_told_an_ipv6_address_in_brackets(proxy: Callable[[str], None]) -> None:
    with Receiver() as receiver:
        proxy(f"http://127.0.0.1:{receiver.port}")
        assert ask(WebhookSender(), post("http://[2001:db8::1]:81/callbacks"), 5).is_delivered
    assert receiver.calls[0].path == "http://[2001:db8::1]:81/callbacks"


@pytest.mark.usefixtures("proxy")
def test_an_ipv6_address_over_tls_through_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy is asked for it in brackets; its certificate is for the address itself."""
    tls = own_certificate(tmp_path / "both.pem")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "both.pem"))
    asked, sent = [], post("https://[2001:db8::1]/callbacks")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                asked.append(connection.recv(65536).partition(b" HTTP/")[0])
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                with contextlib.suppress(OSError), tls.wrap_socket(connection, server_side=True) as secured:
                    received = b""
                    # Its head and its body are two writes; what is closed with a rest unread is reset.
                    while not received.endswith(sent.body) and (piece := secured.recv(65536)):
                        received += piece
                    secured.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.getsockname()[1]}")
        answer = ask(WebhookSender(), sent, 30)
        thread.join()
    assert (asked, answer.status) == ([b"CONNECT [2001:db8::1]:443"], 204)


class SlowLookup:
    """Of one name, for which it has this machine's address once ``released`` is set."""

    NAME = "slow.example"

    def __init__(self) -> None:
        self.released = threading.Event()
        self.answered = 0
        self._lookup = socket.getaddrinfo

    def __call__(self, host: str, *args: Any, **kwargs: Any) -> Any:
        if host == self.NAME:
            self.released.wait(20)
            self.answered += 1
            host = "127.0.0.1"
        return self._lookup(host, *args, **kwargs)


@pytest.fixture
def lookup(monkeypatch: pytest.MonkeyPatch) -> SlowLookup:
    slow = SlowLookup()
    monkeypatch.setattr(socket, "getaddrinfo", slow)
    return slow


@pytest.mark.parametrize("way", ["plain", "TLS", "proxy"])
def test_what_was_given_up_is_not_written_later(
    way: str, lookup: SlowLookup, tls: ssl.SSLContext, proxy: Callable[[str], None]
) -> None:
    """The name is looked up for longer than the request may take."""
    with Receiver(tls=tls if way == "TLS" else None) as receiver:
        url = receiver.url().replace("127.0.0.1", lookup.NAME)
        if way == "proxy":
            proxy(f"http://{lookup.NAME}:{receiver.port}")
            url = "http://dispatcher.example/callbacks"
        sender = WebhookSender(verify_tls=False)
        assert ask(sender, post(url), 0.1).status is None
        assert sender.lookups.running
        lookup.released.set()
        eventually(lambda: not sender.lookups.running)  # that thread is through
        assert lookup.answered == 1
        assert receiver.calls == []
        assert ask(sender, post(url), 5).is_delivered
        assert len(receiver.calls) == 1


@pytest.mark.usefixtures("proxy")
def test_lookups_that_were_given_up_are_few(lookup: SlowLookup) -> None:
    """Each has a thread. Credentials make no other host of it, and none of them is kept."""
    sender = WebhookSender()
    for number in range(6):
        assert ask(sender, post(f"http://me-{number}:secret@{lookup.NAME}:80/"), 0.02).status is None
    assert dict(sender.lookups.running) == {lookup.NAME: 4}
    why = ask(sender, post(f"http://{lookup.NAME.upper()}/"), 0.02).why
    assert why == "earlier lookups of this host are still not answered"
    lookup.released.set()
    eventually(lambda: not sender.lookups.running)


@pytest.mark.usefixtures("proxy")
def test_a_machine_without_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    sender = WebhookSender()
    with Receiver() as receiver:
        named = receiver.url().replace("127.0.0.1", "localhost")
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            answer = ask(sender, post(named), 5)
        assert (answer.status, answer.is_refused, "thread" in answer.why) == (None, False, True)
        assert not sender.lookups.running
        assert ask(sender, post(named), 5).is_delivered


def test_credentials_are_those_of_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with Receiver() as receiver:
        ask(WebhookSender(), post(receiver.url()), 5)
        ask(WebhookSender(), post(receiver.url().replace("http://", "http://me:p%40ss@")), 5)
    assert "authorization" not in receiver.calls[0].headers
    assert receiver.calls[1].headers["authorization"] == f"Basic {base64.b64encode(b'me:p@ss').decode()}"


def test_the_environments_proxy_is_not_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Receiver() as receiver:
        assert ask(WebhookSender(), post(receiver.url()), 5).is_delivered
