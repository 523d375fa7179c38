"""One attempt, at a real receiver that fails in every way."""

from __future__ import annotations

import base64
import socket
import ssl
import threading
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import pytest

from settee.doors.agent.callbacks.posting import Answer, Post, Poster, header_text, seconds
from tests.support.receiver import CUT, OK, SILENT, Receiver, Response
from tests.support.waiting import eventually


def post(url: str, key: str = "job-1-SUCCESS", body: bytes = b'{"state": "SUCCESS"}') -> Post:
    return Post(url, key, body)


def test_it_is_delivered() -> None:
    with Receiver() as receiver:
        answer = Poster()(post(receiver.url("completion")), 5)
    assert answer.is_delivered
    assert not answer.is_refused
    (call,) = receiver.calls
    assert call.raw == b'{"state": "SUCCESS"}'
    assert call.key == "job-1-SUCCESS"
    assert call.headers["content-type"] == "application/json"
    assert "authorization" not in call.headers


@pytest.mark.parametrize(
    ("status", "refused"),
    [
        (200, False),
        (204, False),
        (301, True),
        (400, True),
        (401, True),
        (404, True),
        (408, False),
        (409, True),
        (410, True),
        (413, True),
        (422, True),
        (429, False),
        (500, False),
        (502, False),
        (503, False),
    ],
)
def test_what_an_answer_means(status: int, refused: bool) -> None:
    headers = {"Content-Length": "0"} if status != 204 else {}
    with Receiver(lambda call: Response(status, headers)) as receiver:
        answer = Poster()(post(receiver.url()), 5)
    assert answer.status == status
    assert answer.is_delivered == (status < 300)
    assert answer.is_refused == refused


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    with Receiver() as private, Receiver(lambda call: Response(status, {"Location": private.url()})) as receiver:
        answer = Poster()(post(receiver.url()), 5)
    assert answer.is_refused
    assert "redirect" in answer.why
    assert private.calls == []


def test_a_receiver_that_is_down() -> None:
    with Receiver() as receiver:
        url = receiver.url()
    answer = Poster()(post(url), 5)
    assert answer.status is None
    assert not answer.is_delivered
    assert not answer.is_refused


def test_a_connection_that_is_cut() -> None:
    with Receiver(lambda call: CUT) as receiver:
        answer = Poster()(post(receiver.url()), 5)
    assert (answer.status, answer.is_refused) == (None, False)


@pytest.mark.parametrize("response", [SILENT, Response(delay_s=5), Response(drips_every_s=0.01)])
def test_a_slow_one_costs_its_time_limit(response: Response) -> None:
    """Also one that drips, which no socket timeout sees."""
    with Receiver(lambda call: response) as receiver:
        begun = time.monotonic()
        answer = Poster()(post(receiver.url()), 0.2)
        took = time.monotonic() - begun
    assert (answer.status, answer.is_refused) == (None, False)
    assert "0.2 s" in answer.why
    assert took < 2


def test_threads_that_wait_for_a_dripping_host_are_few() -> None:
    drip = Response(drips_every_s=0.01)
    with Receiver(lambda call: drip) as receiver, Receiver() as other:
        poster = Poster()
        for _ in range(8):
            assert poster(post(receiver.url()), 0.05).status is None
        assert len(receiver.calls) == 4
        assert poster(post(other.url()), 5).is_delivered
        receiver.released.set()
        receiver.rule = lambda call: OK
        eventually(lambda: poster(post(receiver.url()), 5).is_delivered)


def test_no_tls_where_some_is_expected() -> None:
    with Receiver() as receiver:
        answer = Poster()(post(receiver.url().replace("http://", "https://")), 5)
    assert (answer.status, answer.is_refused) == (None, False)
    assert "TLS" in answer.why


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
        answer = Poster()(post(receiver.url()), 5)
    assert (answer.status, answer.is_refused) == (None, False)
    assert "TLS" in answer.why
    assert receiver.calls == []


def test_unless_the_operator_says_no(tls: ssl.SSLContext) -> None:
    with Receiver(tls=tls) as receiver:
        assert Poster(verify_tls=False)(post(receiver.url()), 5).is_delivered


def test_an_address_that_cannot_be_used_is_given_up() -> None:
    for url in ("http://exa mple/", "nonsense://host/", "http://" + "a" * 300 + ".example/", "http://.example/"):
        assert Poster()(post(url), 5).is_refused or "connection" in Poster()(post(url), 5).why


def test_credentials_are_those_of_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with Receiver() as receiver:
        Poster()(post(receiver.url()), 5)
        Poster()(post(receiver.url().replace("http://", "http://me:p%40ss@")), 5)
    assert "authorization" not in receiver.calls[0].headers
    assert receiver.calls[1].headers["authorization"] == f"Basic {base64.b64encode(b'me:p@ss').decode()}"


def test_the_environments_proxy_is_not_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Receiver() as receiver:
        assert Poster()(post(receiver.url()), 5).is_delivered


def test_an_endless_answer_is_not_read() -> None:
    with Receiver(lambda call: Response(200, {"Content-Length": str(1 << 40)})) as receiver:
        assert Poster()(post(receiver.url()), 2).is_delivered


def test_an_answer_that_is_no_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"SSH-2.0-nonsense\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        answer = Poster()(post(f"http://127.0.0.1:{server.getsockname()[1]}/"), 5)
        thread.join(5)
    assert (answer.status, answer.is_refused) == (None, False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", 0), ("7", 7), (" 7 ", 7), ("-7", 0), ("1e9", 0), ("99999999", 3600), ("soon", 0), ("٣", 0), ("nan", 0)],
)
def test_retry_after(text: str, expected: float) -> None:
    assert seconds(text) == expected


def test_retry_after_as_a_date() -> None:
    later = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=100), usegmt=True)
    assert 95 < seconds(later) <= 100
    assert seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert seconds("Wed, 21 Oct 99999999 07:28:00 GMT") == 0


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("c7c4-RUNNING-1", "c7c4-RUNNING-1"),
        ("a b-SUCCESS", "a b-SUCCESS"),
        ("日本-SUCCESS", "%E6%97%A5%E6%9C%AC-SUCCESS"),
        ("a\r\nX: y-SUCCESS", "a%0D%0AX:%20y-SUCCESS"),
        ("50%-SUCCESS", "50%25-SUCCESS"),
    ],
)
def test_a_key_as_a_header_carries_it(key: str, expected: str) -> None:
    assert header_text(key) == expected
    with Receiver() as receiver:
        assert Poster()(post(receiver.url(), key), 5).is_delivered
    assert receiver.calls[0].key == expected


def test_nothing_secret_is_shown() -> None:
    assert "secret" not in repr(Post("http://me:secret@host/", "k", b"secret"))
    assert Answer(200).is_delivered
