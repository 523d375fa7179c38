"""What the tests of a door or of the client share: each module has its own, and may have another of the same name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.agent import HeldStore
from tests.support.client_command import runpod_with_worker
from tests.support.public_api import PublicApi
from tests.support.s3 import S3Server


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PublicApi]:
    """RunPod with the real worker behind it."""
    with runpod_with_worker(tmp_path_factory.mktemp("worker")) as api:
        yield api


@pytest.fixture
def api(shared: PublicApi) -> PublicApi:
    """The module's RunPod, with nothing left of the test before."""
    shared.clear()
    return shared


@pytest.fixture(scope="module")
def store() -> Iterator[HeldStore]:
    """The S3 server of an agent's jobs, which can be made to wait."""
    with HeldStore().running() as store:
        assert isinstance(store, HeldStore)
        yield store


@pytest.fixture
def bucket(s3: S3Server) -> str:
    return s3.make_bucket()
