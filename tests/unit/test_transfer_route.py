"""Where a download goes: redirects, credentials, public hosts alone, proxies, TLS."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from settee.base.errors import DownloadFailed, InvalidRequest
from settee.net import addresses
from tests.support.file_server import FileServer, Rule
from tests.support.http_double import Ask, Reply
from tests.support.transferring import SMALL, fetch, left, noise, sha256

DATA = noise(1_000_000)
SECRET = {"headers": {"Authorization": "Bearer hf_secret"}}


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer(DATA).running() as running:
        yield running


@pytest.fixture
def other() -> Iterator[FileServer]:
    with FileServer(DATA).running() as running:
        yield running


def to(place: str) -> Rule:
    def rule(ask: Ask, reply: Reply) -> None:
        if "moved" not in ask.path:
            reply.status, reply.body = 302, memoryview(b"")
            reply.headers = {"Location": place, "X-Linked-Size": str(len(DATA)), "X-Linked-Etag": f'"{sha256(DATA)}"'}

    return rule


def authorizations(server: FileServer) -> set[str | None]:
    return {ask.headers.get("Authorization") for ask in server.asked}


class TestRedirects:
    def test_credentials_stay_with_their_host(self, server: FileServer, other: FileServer, tmp_path: Path) -> None:
        server.rule = to(f"{other.url}?moved")
        fetched = fetch(server.url, tmp_path / "m", known=SECRET)
        assert (tmp_path / "m").read_bytes() == DATA
        assert fetched.sha256 == sha256(DATA)
        assert authorizations(server) == {"Bearer hf_secret"}
        assert authorizations(other) == {None}
        # Once HEAD and once GET: the rest goes where the redirect led.
        assert len(server.asked) == 2

    def test_within_a_host_they_are_kept(self, server: FileServer, tmp_path: Path) -> None:
        server.rule = to("/moved")
        fetch(server.url, tmp_path / "m", known=SECRET)
        assert authorizations(server) == {"Bearer hf_secret"}

    def test_a_place_that_expires_is_asked_for_again(
        self, server: FileServer, other: FileServer, tmp_path: Path
    ) -> None:
        server.rule = to(f"{other.url}?moved")

        def expires(ask: Ask, reply: Reply) -> None:
            if ask.number == 3:
                reply.status, reply.body = 403, memoryview(b"")

        other.rule = expires
        fetch(server.url, tmp_path / "m")
        assert (tmp_path / "m").read_bytes() == DATA
        # HEAD, GET, and again: by every stream that was about to ask just then.
        assert 3 <= len(server.asked) <= 2 + SMALL.streams

    @pytest.mark.parametrize(
        ("place", "why"), [("file:///etc/passwd", "not an http"), ("", "without stating"), ("/file.bin", "without end")]
    )
    def test_that_lead_nowhere(self, server: FileServer, tmp_path: Path, place: str, why: str) -> None:
        server.rule = to(place)
        with pytest.raises(DownloadFailed, match=why) as caught:
            fetch(server.url, tmp_path / "m")
        assert not caught.value.retryable


class TestPublicOnly:
    def test_a_private_address(self, server: FileServer, tmp_path: Path) -> None:
        with pytest.raises(InvalidRequest, match="public Internet"):
            fetch(server.url, tmp_path / "m", known={"public_only": True})
        assert server.asked == []
        assert left(tmp_path) == []

    def test_a_redirect_to_a_private_one(
        self, server: FileServer, other: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.rule = to(f"http://localhost:{other.port}/moved")
        real = addresses.public_addresses

        def pretend(host: str, port: int | None = None) -> list[str]:
            return ["127.0.0.1"] if host == "public.example" else real(host, port)

        monkeypatch.setattr(addresses, "public_addresses", pretend)
        url = f"http://public.example:{server.port}/file.bin"
        with pytest.raises(InvalidRequest, match="public Internet"):
            fetch(url, tmp_path / "m", known={"public_only": True})
        assert len(server.asked) == 1
        assert server.asked[0].headers["Host"] == f"public.example:{server.port}"
        assert other.asked == []

    def test_the_address_that_was_checked_is_the_one_connected_to(
        self, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The name cannot be looked up at all: only the checked address can have been used. No proxy either.
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        monkeypatch.setattr(addresses, "public_addresses", lambda host, port=None: ["127.0.0.1"])
        fetch(f"http://rebound.invalid:{server.port}/x", tmp_path / "m", known={"public_only": True})
        assert (tmp_path / "m").read_bytes() == DATA


class TestProxy:
    def test_is_used(self, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # A proxy for http is asked for whole URLs: this server answers them like any other.
        monkeypatch.setenv("HTTP_PROXY", f"http://us%40er:pass@127.0.0.1:{server.port}")
        monkeypatch.setenv("NO_PROXY", "")
        fetch("http://models.invalid/file.bin?key=1", tmp_path / "m")
        assert (tmp_path / "m").read_bytes() == DATA
        assert {ask.path for ask in server.asked} == {"http://models.invalid/file.bin?key=1"}
        login = f"Basic {base64.b64encode(b'us@er:pass').decode()}"
        assert {ask.headers["proxy-authorization"] for ask in server.asked} == {login}

    def test_is_left_out(self, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        fetch(server.url, tmp_path / "m")
        assert (tmp_path / "m").read_bytes() == DATA


class TestUnreachable:
    def test_nobody_listens(self, tmp_path: Path) -> None:
        with FileServer(DATA).running() as gone:
            url = gone.url
        with pytest.raises(DownloadFailed, match="cannot be reached, 6 times") as caught:
            fetch(f"{url}?secret", tmp_path / "m")
        assert caught.value.retryable
        assert "secret" not in caught.value.message

    def test_no_such_name(self, tmp_path: Path) -> None:
        with pytest.raises(DownloadFailed, match="cannot be resolved"):
            fetch("http://nobody.invalid/x", tmp_path / "m")

    @pytest.mark.parametrize("url", ["http://", "ftp://host/x", "http://[::1/x", "http://host:99999/x", "x"])
    def test_no_url(self, url: str, tmp_path: Path) -> None:
        with pytest.raises(DownloadFailed, match="not valid") as caught:
            fetch(url, tmp_path / "m")
        assert not caught.value.retryable


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and its own certificate for 127.0.0.1, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "settee test")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def secure(certificate: Path) -> Iterator[FileServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with FileServer(DATA, tls=context).running() as running:
        yield running


class TestTls:
    def test_a_certificate_that_nobody_knows(self, secure: FileServer, tmp_path: Path) -> None:
        with pytest.raises(DownloadFailed, match="REQUESTS_CA_BUNDLE") as caught:
            fetch(secure.url, tmp_path / "m")
        assert not caught.value.retryable

    def test_ones_own_authority(
        self, secure: FileServer, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        secure.rule = lambda ask, reply: setattr(reply, "cut_after", 1000 if ask.number == 2 else None)
        fetch(secure.url, tmp_path / "m", sha256=sha256(DATA))
        assert (tmp_path / "m").read_bytes() == DATA

    def test_another_hosts_certificate(
        self, secure: FileServer, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        with pytest.raises(DownloadFailed, match="not trusted"):
            fetch(secure.url.replace("127.0.0.1", "localhost"), tmp_path / "m")

    def test_no_tls_there(self, server: FileServer, tmp_path: Path) -> None:
        with pytest.raises(DownloadFailed, match="no TLS") as caught:
            fetch(server.url.replace("http:", "https:"), tmp_path / "m")
        assert not caught.value.retryable
