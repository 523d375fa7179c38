"""What the Hub says of a file, asked by the real huggingface_hub of a Hub of our own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from pydantic import SecretStr

from settee.base.errors import ConfigError, DownloadFailed, ModelMissing, SetteeError
from settee.base.settings import Settings
from settee.models.entry import HubFile, ModelEntry
from settee.models.sources.hugging_face import Hub
from settee.models.transfer.address import Address
from tests.support.delivering import make_settings
from tests.support.hub import HubServer

LARGE = os.urandom(200_000)
SMALL = b'{"a": 1}\n'


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        server.add("org/open", "unet/model.safetensors", LARGE, lfs=True)
        server.add("org/open", "config.json", SMALL)
        for name in ("org/gated", "org/private"):
            server.add(name, "model.bin", LARGE, lfs=True)
        server.repo("org/gated", gated=True)
        server.repo("org/private", private=True)
        server.tokens = {"hf_member": {"org/gated", "org/private"}, "hf_stranger": set()}
        yield server


def ask(hub: HubServer, repo: str, filename: str, revision: str = "main", **changes: Any) -> Address:
    file = HubFile(repo, filename, revision)
    own = changes.pop("token", None)
    entry = ModelEntry(file, "checkpoints", "m.bin", token=None if own is None else SecretStr(own))
    return Hub(entry, file, settings(hub, **changes)).address()


def settings(hub: HubServer, **changes: Any) -> Settings:
    return make_settings(**{"hf_endpoint": hub.endpoint, **changes})


def read(address: Address) -> bytes:
    with urlopen(Request(address.url, headers=dict(address.headers)), timeout=10) as answer:  # type: ignore[arg-type]
        body: bytes = answer.read()
        return body


def test_a_large_file_is_a_signed_link_elsewhere_without_the_token(hub: HubServer) -> None:
    blob = hub.repos["org/open"].commits[hub.commit("org/open")]["unet/model.safetensors"]
    address = ask(hub, "org/open", "unet/model.safetensors", hf_token="hf_member")
    assert address.url.startswith(hub.cdn)
    assert address.headers == {}
    assert (address.size, address.sha256) == (len(LARGE), blob.sha256)
    assert address.validator == blob.sha256
    assert not address.public_only
    assert address.by_library is None
    assert read(address) == LARGE
    assert hub.authorizations() == {"hub": {"Bearer hf_member"}, "cdn": {None}}
    assert "Signature" not in repr(address)
    assert hub.cdn not in address.where


def test_a_large_file_may_come_from_the_hub_itself(hub: HubServer) -> None:
    hub.redirects = False
    address = ask(hub, "org/private", "model.bin", hf_token="hf_member")
    assert address.url == f"{hub.endpoint}/org/private/resolve/{hub.commit('org/private')}/model.bin"
    assert address.headers == {"Authorization": "Bearer hf_member"}
    assert address.sha256 is not None
    assert "hf_member" not in repr(address)


def test_a_small_file_stays_the_one_that_was_asked_about(hub: HubServer) -> None:
    """Its address names the commit: what the branch becomes meanwhile is another file."""
    address = ask(hub, "org/open", "config.json")
    hub.add("org/open", "config.json", b"something else")
    assert read(address) == SMALL
    assert (address.size, address.sha256) == (len(SMALL), None)
    assert address.validator
    assert len(address.validator) == 40


def test_no_token_is_sent_when_there_is_none(hub: HubServer) -> None:
    address = ask(hub, "org/open", "config.json")
    assert read(address) == SMALL
    assert hub.authorizations()["hub"] == {None}


def test_the_entrys_own_token_goes_first(hub: HubServer) -> None:
    ask(hub, "org/private", "model.bin", token="hf_member", hf_token="hf_stranger")
    assert hub.authorizations()["hub"] == {"Bearer hf_member"}


def test_a_fresh_address_is_of_the_same_commit(hub: HubServer) -> None:
    address = ask(hub, "org/open", "unet/model.safetensors")
    hub.add("org/open", "unet/model.safetensors", b"new" * 1000, lfs=True)
    hub.expire()
    assert address.renew is not None
    fresh = address.renew()
    assert fresh.url != address.url
    assert fresh.sha256 == address.sha256
    assert read(fresh) == LARGE


@pytest.mark.parametrize("revision", ["feature/new-vae", "v1.0"])
def test_branches_and_tags(hub: HubServer, revision: str) -> None:
    hub.add("org/open", "unet/model.safetensors", b"other" * 500, revision=revision, lfs=True)
    assert read(ask(hub, "org/open", "unet/model.safetensors", revision)) == b"other" * 500
    commit = hub.commit("org/open", revision)
    assert read(ask(hub, "org/open", "unet/model.safetensors", commit)) == b"other" * 500


def test_a_repository_that_was_renamed(hub: HubServer) -> None:
    hub.moved["org/before"] = "org/open"
    assert read(ask(hub, "org/before", "config.json")) == SMALL


def test_names_that_urls_make_hard(hub: HubServer) -> None:
    name = "a b/ü#?%41+&.bin"
    hub.add("org/open", name, b"hard", lfs=True)
    assert read(ask(hub, "org/open", name)) == b"hard"
    hub.add("org/open", name, b"soft", lfs=False)
    assert read(ask(hub, "org/open", name)) == b"soft"


# --- What people do wrong, and what they are told --------------------------------------------------------


def refused(hub: HubServer, kind: type[SetteeError], *args: str, **changes: Any) -> SetteeError:
    with pytest.raises(kind) as caught:
        ask(hub, *args, **changes)
    error = caught.value
    assert type(error) is kind
    text = json.dumps([error.message, error.details])
    for secret in ("hf_member", "hf_stranger", "hf_wrong", "Signature", "Traceback"):
        assert secret not in text
    assert "\n" not in error.message
    assert error.__cause__ is not None
    return error


def test_gated(hub: HubServer) -> None:
    page = f"{hub.endpoint}/org/gated"
    error = refused(hub, DownloadFailed, "org/gated", "model.bin")
    assert error.message == (
        f"org/gated:model.bin: org/gated is gated: accept its licence at {page} and set HF_TOKEN to that account's"
    )
    assert not error.retryable
    error = refused(hub, DownloadFailed, "org/gated", "model.bin", hf_token="hf_stranger")
    assert f"accept its licence at {page} with the account of HF_TOKEN" in error.message
    error = refused(hub, DownloadFailed, "org/gated", "model.bin", token="hf_stranger")
    assert "with the account of the token of this entry" in error.message
    assert error.details["reason"] == "gated"
    assert ask(hub, "org/gated", "model.bin", hf_token="hf_member").size == len(LARGE)


@pytest.mark.parametrize("repo", ["org/private", "org/no-such"])
def test_private_and_missing_look_the_same(hub: HubServer, repo: str) -> None:
    error = refused(hub, ModelMissing, repo, "model.bin")
    assert "check the name, or set HF_TOKEN if it is private" in error.message
    error = refused(hub, ModelMissing, repo, "model.bin", hf_token="hf_stranger")
    assert "the account of HF_TOKEN sees no such repository" in error.message
    assert not error.retryable


def test_a_token_that_is_none(hub: HubServer) -> None:
    error = refused(hub, DownloadFailed, "org/open", "config.json", hf_token="hf_wrong")
    assert "does not accept HF_TOKEN" in error.message
    assert not error.retryable
    error = refused(hub, DownloadFailed, "org/open", "config.json", hf_token="hf\nwrong")
    assert "HF_TOKEN has characters that no token has" in error.message


def test_a_missing_file_comes_with_near_matches(hub: HubServer) -> None:
    hub.add("org/open", "unet/model.fp16.safetensors", b"x", lfs=True)
    error = refused(hub, ModelMissing, "org/open", "model.safetensors")
    assert error.details["near"][0] == "unet/model.safetensors"
    assert "org/open has no file 'model.safetensors' at main; did you mean 'unet/model.safetensors'" in error.message
    error = refused(hub, ModelMissing, "org/open", "unet/modle.fp16.safetensors")
    assert "unet/model.fp16.safetensors" in error.details["near"]
    assert refused(hub, ModelMissing, "org/open", "zzz").details["near"] == []


def test_a_missing_revision(hub: HubServer) -> None:
    error = refused(hub, ModelMissing, "org/open", "config.json", "v9")
    assert "org/open has no revision 'v9': give a branch, a tag or a full commit hash" in error.message


@pytest.mark.parametrize("repo", ["a--b/c", "ends-/.", "org/name.git"])
def test_names_that_no_repository_has(hub: HubServer, repo: str) -> None:
    assert "is not a repository's name" in refused(hub, ModelMissing, repo, "x.bin").message


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_in_trouble_may_be_asked_again(hub: HubServer, status: int) -> None:
    hub.faults.heads = [(status, {"Retry-After": "7"})]
    error = refused(hub, DownloadFailed, "org/open", "config.json")
    assert error.retryable
    assert f"the Hub answers HTTP {status}: it wants you to wait 7 s" in error.message


def test_forbidden_and_disabled(hub: HubServer) -> None:
    hub.faults.heads = [(403, {}), (403, {"X-Error-Message": "Access to this resource is disabled."}), (418, {})]
    error = refused(hub, DownloadFailed, "org/open", "config.json", hf_token="hf_member")
    assert "has HF_TOKEN the right to read repositories?" in error.message
    assert "has disabled this repository" in refused(hub, DownloadFailed, "org/open", "config.json").message
    assert not refused(hub, DownloadFailed, "org/open", "config.json").retryable


def test_a_hub_that_says_nothing(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("settee.models.sources.hugging_face._TIMEOUT_S", 0.2)
    hub.faults.silent = True
    error = refused(hub, DownloadFailed, "org/open", "config.json")
    assert error.retryable
    assert "did not answer in time" in error.message


def test_a_hub_that_is_not_there(hub: HubServer) -> None:
    error = refused(hub, DownloadFailed, "org/open", "config.json", hf_endpoint="http://127.0.0.1:9")
    assert error.retryable
    assert "cannot be reached" in error.message


@pytest.mark.parametrize("endpoint", ["huggingface.co", "ftp://127.0.0.1", "http://[::1"])
def test_an_endpoint_that_is_no_address(hub: HubServer, endpoint: str) -> None:
    assert "HF_ENDPOINT" in refused(hub, ConfigError, "org/open", "config.json", hf_endpoint=endpoint).message


def test_something_else_than_a_hub(hub: HubServer) -> None:
    hub.faults.heads = [(200, {"Content-Length": "0"})]
    with pytest.raises(DownloadFailed, match="does not answer as a Hub does: look at HF_ENDPOINT") as caught:
        ask(hub, "org/open", "config.json")
    assert not caught.value.retryable


def test_offline_by_order(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    error = refused(hub, DownloadFailed, "org/open", "config.json")
    assert "HF_HUB_OFFLINE is set" in error.message
    assert not error.retryable


# --- Xet -------------------------------------------------------------------------------------------------


def test_a_file_of_xet_may_be_left_to_the_library(hub: HubServer, tmp_path: Path) -> None:
    hub.add("org/open", "huge.safetensors", LARGE, lfs=True, xet=True)
    address = ask(hub, "org/open", "huge.safetensors")
    assert address.sha256 is not None
    assert address.by_library is not None
    # No Xet storage stands behind this Hub: the library fails, and with it the download, in our words.
    with pytest.raises(SetteeError) as caught:
        address.by_library(tmp_path / "scratch")
    assert "org/open:huge.safetensors" in caught.value.message
    assert not list((tmp_path / "scratch").rglob("huge.safetensors"))


def test_the_library_fetches_into_the_folder_and_nowhere_else(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it would with Xet: here with Xet switched off, from the same Hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    hub.add("org/private", "huge.safetensors", LARGE, lfs=True, xet=True)
    address = ask(hub, "org/private", "huge.safetensors", hf_token="hf_member")
    assert address.by_library is not None
    path = address.by_library(tmp_path / "scratch")
    assert path.read_bytes() == LARGE
    assert (tmp_path / "scratch").resolve() in path.resolve().parents
    hub.faults.heads = [(404, {"X-Error-Code": "EntryNotFound"})]
    with pytest.raises(ModelMissing):
        address.by_library(tmp_path / "again")


# --- What the library must not do ------------------------------------------------------------------------

_SCRIPT = """
import sys
from settee.models.entry import HubFile, ModelEntry
from settee.models.sources.hugging_face import Hub
from settee.base.settings import Settings
assert "huggingface_hub" not in sys.modules
file = HubFile("org/open", "config.json")
Hub(ModelEntry(file, "checkpoints", "m.bin"), file, Settings(hf_endpoint=sys.argv[1])).address()
"""


def test_the_library_reads_no_token_file_writes_nothing_and_asks_for_nothing_else(
    hub: HubServer, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "token").write_text("hf_stranger")
    environment = {"PATH": os.environ["PATH"], "HF_HOME": str(home), "HOME": str(home), "HF_ENDPOINT": hub.endpoint}
    # An agent's variable is what the library's telemetry looks for.
    environment["AGENT"] = "someone"
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", _SCRIPT, hub.endpoint], env=environment, check=True, timeout=60)
    assert time.monotonic() - began < 30
    assert [path.name for path in home.rglob("*")] == ["token"]
    (request,) = hub.asked()
    assert (request.method, request.authorization) == ("HEAD", None)
    assert "someone" not in request.user_agent
