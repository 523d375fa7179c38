"""URLs, what an entry says against what its source says, and asking again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from settee.base.errors import IntegrityError
from settee.base.settings import load
from settee.models.entry import HubFile, ModelEntry, Source, WebFile
from settee.models.sources import addresses
from settee.models.transfer.address import Address
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
