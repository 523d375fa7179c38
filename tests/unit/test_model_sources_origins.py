"""URLs, what an entry says against what its source says, and asking again."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from settee.base.errors import DownloadFailed, IntegrityError, ModelMissing
from settee.base.settings import load
from settee.models.entry import HubFile, ModelEntry, Source, WebFile
from settee.models.sources import Origin, addresses
from settee.models.transfer.address import Address
from settee.net.retry import Backoff
from tests.support.delivering import make_settings
from tests.support.hub import HubServer

BODY = b"weights" * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()


def entry_of(source: Source, **changes: Any) -> ModelEntry:
    return ModelEntry(source, "loras/styles", "m.safetensors", **changes)


def of_web(url: str, *, allowed: bool = False, **changes: Any) -> Address:
    settings = make_settings(runpod_allow_private_download_urls=allowed)
    (origin,) = addresses(entry_of(WebFile(url), **changes), settings)
    return origin.ask()


def test_a_url_is_taken_as_it_is() -> None:
    address = of_web("https://host.example:8443/a%20b/m.bin?sig=secret#part")
    assert address.url == "https://host.example:8443/a%20b/m.bin?sig=secret"
    assert address.where == "https://host.example:8443/a%20b/m.bin"
    assert (dict(address.headers), address.size, address.sha256) == ({}, None, None)
    assert "secret" not in repr(address)


def test_credentials_in_a_url_become_a_header() -> None:
    address = of_web("https://us%40er:p%3Ass@host.example/at@sign/m.bin")
    assert address.url == "https://host.example/at@sign/m.bin"
    assert address.where == "https://host.example/at@sign/m.bin"
    assert dict(address.headers) == {"Authorization": "Basic dXNAZXI6cDpzcw=="}
    for secret in ("us%40er", "us@er", "p%3Ass", "p:ss", "dXNA"):
        assert secret not in repr(address)


def test_a_token_is_a_bearers() -> None:
    address = of_web("https://user:pass@host.example/m.bin", token=SecretStr("t0ken"))
    assert dict(address.headers) == {"Authorization": "Bearer t0ken"}
    assert "t0ken" not in repr(address)


def test_a_jobs_url_is_held_to_public_hosts() -> None:
    url = "http://127.0.0.1:9/m.bin"
    assert of_web(url, from_job=True).public_only
    assert not of_web(url, from_job=True, allowed=True).public_only
    assert not of_web(url).public_only


def test_the_setting_is_the_sdks_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from runpod.serverless.utils import rp_ssrf

    for word, allowed in (("1", True), ("true", True), ("yes", True), ("0", False), ("false", False), ("", False)):
        monkeypatch.setenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS", word)
        assert load().runpod_allow_private_download_urls is allowed
        assert rp_ssrf._ssrf_protection_enabled() is not allowed


def test_what_an_entry_says_of_its_file_goes_first() -> None:
    address = of_web("https://host.example/m.bin", sha256=SHA256, size=5)
    assert (address.sha256, address.size) == (SHA256, 5)


def test_a_contradiction_is_named_before_any_byte(tmp_path: Path) -> None:
    with HubServer(tmp_path) as hub:
        hub.add("org/name", "m.safetensors", BODY, lfs=True)
        settings = make_settings(hf_endpoint=hub.endpoint)
        file = HubFile("org/name", "m.safetensors")

        def ask(**changes: Any) -> Address:
            (origin,) = addresses(entry_of(file, **changes), settings)
            return origin.ask()

        with pytest.raises(IntegrityError) as caught:
            ask(sha256="0" * 64)
        assert f"org/name:m.safetensors has the sha256 {SHA256} instead of {'0' * 64}" in str(caught.value)
        assert caught.value.details == {"expected_sha256": "0" * 64, "sha256": SHA256}
        with pytest.raises(IntegrityError, match=f"has {len(BODY):,} bytes instead of 1"):
            ask(size=1)
        hub.add("org/name", "m.safetensors", BODY, lfs=False)
        fine = ask(sha256=SHA256)
        assert fine.renew is not None
        # The Hub knows none of a file of git's: it is the entry's, here as well.
        assert fine.renew().sha256 == SHA256
        assert hub.served == 0


class Flaky:
    """A source that fails so often before it answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.asked = 0

    def __call__(self) -> Address:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return Address(url="https://host.example", where="there")


def test_what_may_pass_is_asked_again() -> None:
    source = Flaky(DownloadFailed("later"), DownloadFailed("later"))
    assert Origin("a", source, backoff=Backoff(0.001, 0.001)).ask().where == "there"
    assert source.asked == 3
    source = Flaky(*(DownloadFailed("later") for _ in range(9)))
    with pytest.raises(DownloadFailed):
        Origin("a", source, backoff=Backoff(0.001, 0.001)).ask()
    assert source.asked == 3


@pytest.mark.parametrize("error", [DownloadFailed("no", retryable=False), ModelMissing("no"), IntegrityError("no")])
def test_what_will_not_pass_is_asked_once(error: Exception) -> None:
    source = Flaky(error)
    with pytest.raises(type(error)):
        Origin("a", source).ask()
    assert source.asked == 1


def test_stop_ends_the_waiting() -> None:
    source, stop = Flaky(DownloadFailed("later")), threading.Event()
    stop.set()
    with pytest.raises(DownloadFailed):
        Origin("a", source, backoff=Backoff(60.0, 60.0)).ask(stop)
    assert source.asked == 1
