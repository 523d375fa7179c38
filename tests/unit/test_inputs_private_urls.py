"""Addresses that no input file may be fetched from."""

from __future__ import annotations

import time

import pytest

from settee.base.errors import DownloadFailed, InvalidRequest, SetteeError
from settee.base.job import Limits
from settee.base.settings import Settings
from settee.staging.inputs import Staging
from tests.support.staging import Stage, request
from tests.support.web import Web


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/a",
        "http://localhost:{port}/a",
        "http://[::1]:{port}/a",
        "http://[::ffff:127.0.0.1]:{port}/a",
        "http://2130706433:{port}/a",
        "http://0.0.0.0:{port}/a",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://100.64.0.1/",
    ],
)
def test_private_addresses_are_refused(put: Stage, web: Web, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.delenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS")
    for variable in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    web.serve("/a", b"internal")
    error = put.refused({"bad": url.format(port=web.port)}, kind=SetteeError)
    assert isinstance(error, InvalidRequest)
    assert "not allowed" in error.message
    assert web.asked == []


def test_a_proxy_is_named_as_the_reason(put: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:9")
    error = put.refused({"bad": "http://example.com/?secret"}, kind=DownloadFailed)
    assert "NO_PROXY" in error.message
    assert "secret" not in error.message


def test_the_callers_own_s3_endpoint_may_not_be_private_either(
    put: Stage, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else s3Config would be a way to read anything inside the worker's network."""
    from settee.engine.request import Bucket

    monkeypatch.delenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS")
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.delenv("HTTP_PROXY", raising=False)
    web.serve("/latest/meta-data", b"internal")
    bucket = Bucket(accessId="id", accessSecret="secret", bucketName="b", endpointUrl=web.url(""))
    with pytest.raises(InvalidRequest, match="not allowed"):
        Staging(
            request({"a": "s3://latest/meta-data"}, bucket=bucket),
            put.workspace,
            Settings(),
            limits=Limits(cancel=put.cancel, deadline=time.monotonic() + 10),
        ).run()
    assert web.asked == []
