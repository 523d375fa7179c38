"""s3:// models and the mirror, from a real S3 server."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

import pytest

from settee.base.errors import DownloadFailed, IntegrityError, ModelMissing, SetteeError
from settee.base.settings import Settings
from settee.engine.request import Bucket
from settee.models.entry import HubFile, ModelEntry, S3Object, Source, WebFile
from settee.models.sources import Origin, addresses
from settee.models.sources import s3_object as s3_source
from settee.models.transfer.address import Address
from settee.s3.client import client_for, forget
from tests.support.delivering import bucket_settings, make_settings
from tests.support.s3 import S3Server

BODY = os.urandom(300_001)
SHA256 = hashlib.sha256(BODY).hexdigest()
HARD = "a b+c/ü?x=1#y&%41.bin"


@pytest.fixture(scope="module")
def bucket(s3: S3Server) -> str:
    """A bucket with plain objects, a hard name, and objects that say their hash."""
    name = s3.make_bucket()
    put = s3.admin.put_object
    put(Bucket=name, Key="folder/plain.bin", Body=BODY)
    put(Bucket=name, Key=HARD, Body=b"hard")
    put(Bucket=name, Key="said.bin", Body=BODY, Metadata={"sha256": SHA256.upper()})
    put(Bucket=name, Key="mirror/checkpoints/m.safetensors", Body=BODY, Metadata={"sha256": SHA256})
    return name


def own(s3: S3Server, **changes: Any) -> Settings:
    """A store of models, beside a bucket for results that does not answer."""
    return make_settings(
        **{
            "models_s3_endpoint_url": s3.endpoint_url,
            "models_s3_access_key_id": s3.access_key,
            "models_s3_secret_access_key": s3.secret_key,
            "bucket_endpoint_url": "http://127.0.0.1:9",
            "bucket_access_key_id": "other",
            "bucket_secret_access_key": "other",
            **changes,
        }
    )


def callers(s3: S3Server, endpoint: str | None = None) -> Bucket:
    return Bucket(
        accessId=s3.access_key,  # type: ignore[arg-type]
        accessSecret=s3.secret_key,  # type: ignore[arg-type]
        bucketName="ignored",
        endpointUrl=endpoint or s3.endpoint_url,
    )


def entry_of(source: Source, **changes: Any) -> ModelEntry:
    return ModelEntry(source, "checkpoints", "m.safetensors", **changes)


def ask(settings: Settings, bucket: str, key: str, own: Bucket | None = None, **changes: Any) -> Address:
    found = S3Object(bucket, key, config=own)
    return s3_source.address(entry_of(found, **changes), found, settings)


def read(address: Address) -> bytes:
    with urlopen(address.url, timeout=10) as answer:
        body: bytes = answer.read()
        return body


def test_an_object_is_a_signed_address_that_lives_an_hour(s3: S3Server, bucket: str) -> None:
    address = ask(own(s3), bucket, "folder/plain.bin")
    assert read(address) == BODY
    assert (address.size, address.sha256) == (len(BODY), None)
    assert address.validator == s3.admin.head_object(Bucket=bucket, Key="folder/plain.bin")["ETag"]
    assert address.where == f"s3://{bucket}/folder/plain.bin"
    assert not address.public_only
    parts = urlsplit(address.url)
    assert parts.path == f"/{bucket}/folder/plain.bin"
    query = parse_qs(parts.query)
    assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
    assert query["X-Amz-Expires"] == ["3600"]
    assert "Signature" not in repr(address)


def test_keys_are_taken_as_they_are(s3: S3Server, bucket: str) -> None:
    assert read(ask(own(s3), bucket, HARD)) == b"hard"


def test_virtual_hosts(s3: S3Server, bucket: str) -> None:
    """Signing is local; here no name server knows the bucket's host, so the HEAD fails, and says so as ours."""
    settings = own(s3, models_s3_path_style=False, models_s3_endpoint_url="http://s3.invalid")
    with pytest.raises(DownloadFailed, match=r"S3 cannot be reached.*: look at MODELS_S3_ENDPOINT_URL") as caught:
        ask(settings, bucket, "folder/plain.bin")
    assert caught.value.retryable


def test_the_hash_that_its_uploader_gave(s3: S3Server, bucket: str) -> None:
    assert ask(own(s3), bucket, "said.bin").sha256 == SHA256


DIGEST = base64.b64encode(hashlib.sha256(BODY).digest()).decode()


@pytest.mark.parametrize(
    ("head", "sha256"),
    [
        ({"ChecksumSHA256": DIGEST, "ChecksumType": "FULL_OBJECT"}, SHA256),
        ({"ChecksumSHA256": DIGEST}, SHA256),
        ({"ChecksumSHA256": DIGEST, "ChecksumType": "COMPOSITE"}, None),
        ({"ChecksumSHA256": f"{DIGEST}-7"}, None),
        ({"ChecksumSHA256": "AAAA"}, None),
        ({"Metadata": {"sha256": "not hex"}}, None),
        ({}, None),
    ],
)
def test_which_hashes_count(head: dict[str, Any], sha256: str | None) -> None:
    """The server for tests keeps no such checksums."""
    assert s3_source.sha256_of(head) == sha256


@pytest.mark.parametrize("status", [400, 501])
def test_a_server_that_knows_no_checksums(s3: S3Server, bucket: str, status: int) -> None:
    from botocore.awsrequest import AWSResponse
    from urllib3 import HTTPResponse

    def refuse(request: Any, **_: Any) -> Any:
        if "x-amz-checksum-mode" in {name.lower() for name in request.headers}:
            return AWSResponse(
                request.url, status, {}, HTTPResponse(io.BytesIO(), status=status, preload_content=False)
            )
        return None

    # Another region makes it a client of this test's own.
    settings = own(s3, models_s3_region=f"test-{status}")
    target = s3_source._target(S3Object(bucket, "said.bin"), settings)
    client_for(target).meta.events.register("before-send.s3.HeadObject", refuse)
    assert ask(settings, bucket, "said.bin").sha256 == SHA256
    forget(target)


def test_a_fresh_signature(s3: S3Server, bucket: str) -> None:
    address = ask(own(s3), bucket, "folder/plain.bin")
    assert address.renew is not None
    assert read(address.renew()) == BODY


# --- Whose credentials -----------------------------------------------------------------------------------


def test_the_bucket_for_results_when_there_is_no_store_of_models(s3: S3Server, bucket: str) -> None:
    settings = bucket_settings(s3, "results", bucket_public_url="https://cdn.example.com")
    address = ask(settings, bucket, "folder/plain.bin")
    assert read(address) == BODY
    assert "cdn.example.com" not in address.url


def test_a_jobs_own_bucket(s3: S3Server, bucket: str) -> None:
    with pytest.raises(DownloadFailed, match="ALLOW_PRIVATE_S3CONFIG") as caught:
        ask(make_settings(), bucket, "folder/plain.bin", callers(s3), from_job=True)
    assert not caught.value.retryable
    settings = make_settings(allow_private_s3config=True)
    address = ask(settings, bucket, "folder/plain.bin", callers(s3), from_job=True)
    assert read(address) == BODY
    assert not address.public_only


def test_a_jobs_own_bucket_is_downloaded_from_public_hosts_alone(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("settee.net.addresses.is_public", lambda text: text == "127.0.0.1")
    address = ask(make_settings(), bucket, "folder/plain.bin", callers(s3), from_job=True)
    assert address.public_only
    assert read(address) == BODY


def test_no_credentials_at_all(bucket: str) -> None:
    with pytest.raises(DownloadFailed, match=r"set MODELS_S3_ENDPOINT_URL, .*BUCKET_ENDPOINT_URL") as caught:
        ask(make_settings(), bucket, "folder/plain.bin")
    assert not caught.value.retryable


# --- What goes wrong -------------------------------------------------------------------------------------


def refused(kind: type[SetteeError], settings: Settings, bucket: str, key: str, own: Bucket | None = None) -> Any:
    with pytest.raises(kind) as caught:
        ask(settings, bucket, key, own)
    assert type(caught.value) is kind
    text = json.dumps([caught.value.message, caught.value.details])
    assert "Signature=" not in text
    assert "127.0.0.1" not in text
    assert "settee-test" not in text
    return caught.value


def test_what_is_not_there(s3: S3Server, bucket: str) -> None:
    error = refused(ModelMissing, own(s3), bucket, "folder/quite-another.bin")
    assert error.message == f"s3://{bucket}/folder/quite-another.bin: no such object exists"
    error = refused(ModelMissing, own(s3), "no-such-bucket", "folder/plain.bin")
    assert error.message == "s3://no-such-bucket/folder/plain.bin: S3 has no bucket 'no-such-bucket'"


@pytest.mark.parametrize("key", ["folder/plane.bin", "folder/plain", "plain.bin", "foulder/plain.bin"])
def test_what_may_have_been_meant_is_named(s3: S3Server, bucket: str, key: str) -> None:
    error = refused(ModelMissing, own(s3), bucket, key)
    assert "; did you mean 'folder/plain.bin'" in error.message
    assert "folder/plain.bin" in error.details["near"]


@pytest.mark.parametrize("changes", [{"models_s3_secret_access_key": "wrong"}, {"models_s3_access_key_id": "wrong"}])
def test_keys_that_are_not_accepted(s3: S3Server, bucket: str, changes: dict[str, str]) -> None:
    error = refused(DownloadFailed, own(s3, **changes), bucket, "folder/plain.bin")
    assert (
        "S3 does not accept the keys: look at MODELS_S3_ACCESS_KEY_ID and MODELS_S3_SECRET_ACCESS_KEY" in error.message
    )
    assert not error.retryable


def test_settings_are_called_by_their_owners_names(s3: S3Server, bucket: str) -> None:
    settings = bucket_settings(s3, None, bucket_secret_access_key="wrong")
    assert "BUCKET_SECRET_ACCESS_KEY" in refused(DownloadFailed, settings, bucket, "x").message
    wrong = callers(s3).model_copy(update={"access_secret": callers(s3).access_id})
    settings = make_settings(allow_private_s3config=True)
    assert "s3Config.accessSecret" in refused(DownloadFailed, settings, bucket, "x", wrong).message


def test_an_endpoint_that_is_not_there(s3: S3Server, bucket: str) -> None:
    error = refused(DownloadFailed, own(s3, models_s3_endpoint_url="http://127.0.0.1:9"), bucket, "x")
    assert error.retryable
    assert "look at MODELS_S3_ENDPOINT_URL" in error.message


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9", "not an address", "http://"])
def test_an_endpoint_that_is_no_address(s3: S3Server, bucket: str, endpoint: str) -> None:
    error = refused(DownloadFailed, own(s3, models_s3_endpoint_url=endpoint), bucket, "x")
    assert "MODELS_S3_ENDPOINT_URL is not the address of an S3 API" in error.message


def test_names_that_no_bucket_has(s3: S3Server) -> None:
    assert "is not a bucket's name" in refused(DownloadFailed, own(s3), "-", "x").message


# --- The mirror ------------------------------------------------------------------------------------------

HUB_FILE = HubFile("org/name", "m.safetensors")


def origins(entry: ModelEntry, settings: Settings) -> list[Origin]:
    return list(addresses(entry, settings))


def labels(entry: ModelEntry, settings: Settings) -> list[str]:
    return [origin.label for origin in origins(entry, settings)]


def test_the_mirror_is_asked_before_the_hub_or_a_url(s3: S3Server, bucket: str) -> None:
    settings = own(s3, models_mirror=f"s3://{bucket}/mirror/")
    first, second = origins(entry_of(HUB_FILE), settings)
    assert (first.label, second.label) == ("the mirror", "Hugging Face")
    address = first.ask()
    assert address.where == f"s3://{bucket}/mirror/checkpoints/m.safetensors"
    assert read(address) == BODY
    assert labels(entry_of(WebFile("https://host.example/m.bin")), settings) == ["the mirror", "host.example"]
    assert labels(entry_of(S3Object("bucket", "key")), settings) == ["S3"]
    assert labels(entry_of(HUB_FILE), own(s3)) == ["Hugging Face"]


def test_a_mirror_without_a_prefix_and_one_that_has_nothing(s3: S3Server, bucket: str) -> None:
    s3.admin.put_object(Bucket=bucket, Key="checkpoints/m.safetensors", Body=b"short")
    for mirror in (f"s3://{bucket}", f"s3://{bucket}/"):
        assert read(origins(entry_of(HUB_FILE), own(s3, models_mirror=mirror))[0].ask()) == b"short"
    with pytest.raises(ModelMissing):
        origins(entry_of(HUB_FILE), own(s3, models_mirror=f"s3://{bucket}/elsewhere"))[0].ask()


def test_a_jobs_entry_gets_from_the_mirror_only_what_it_knows_the_hash_of(s3: S3Server, bucket: str) -> None:
    """Its name is free to choose, and must not open an operator's object."""
    settings = own(s3, models_mirror=f"s3://{bucket}/mirror")
    assert labels(entry_of(HUB_FILE, from_job=True), settings) == ["Hugging Face"]
    known = entry_of(HUB_FILE, from_job=True, sha256=SHA256)
    assert origins(known, settings)[0].ask().sha256 == SHA256
    guessed = entry_of(HUB_FILE, from_job=True, sha256="0" * 64)
    with pytest.raises(ModelMissing) as caught:
        origins(guessed, settings)[0].ask()
    # Or it would only have to ask again.
    assert SHA256 not in json.dumps([caught.value.message, caught.value.details])
    s3.admin.put_object(Bucket=bucket, Key="unsaid/checkpoints/m.safetensors", Body=BODY)
    with pytest.raises(ModelMissing):
        origins(known, own(s3, models_mirror=f"s3://{bucket}/unsaid"))[0].ask()


def test_an_operators_entry_is_told_both_hashes(s3: S3Server, bucket: str) -> None:
    settings = own(s3, models_mirror=f"s3://{bucket}/mirror")
    with pytest.raises(IntegrityError) as caught:
        origins(entry_of(HUB_FILE, sha256="0" * 64), settings)[0].ask()
    assert SHA256 in caught.value.message
    assert "0" * 64 in caught.value.message
    with pytest.raises(IntegrityError, match=f"has {len(BODY):,} bytes instead of 5"):
        origins(entry_of(HUB_FILE, size=5), settings)[0].ask()


def test_a_signed_address_for_one_object_opens_no_other(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    address = ask(own(s3), bucket, "folder/plain.bin")
    with pytest.raises(HTTPError, match="403"):
        urlopen(address.url.replace("folder/plain.bin", "said.bin"), timeout=10)


def test_an_object_that_was_asked_about_before_is_not_asked_about_again(s3: S3Server, bucket: str) -> None:
    """The agent knows size and ETag from its own HEAD: no second one is sent, which would fail here."""
    known = entry_of(S3Object(bucket, "absent.bin", version="e7ag"), size=5)
    (origin,) = addresses(known, own(s3))
    address = origin.ask()
    assert (address.size, address.validator, address.sha256) == (5, '"e7ag"', None)
    with pytest.raises(HTTPError, match="404"):
        urlopen(address.url, timeout=10)
