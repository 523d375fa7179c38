"""The client's HTTP toward a server that answers badly when told to, with pauses that take no time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from settee.client.targets.json_http import Http
from tests.support.public_api import PublicApi

KEY = "rpa_SECRET"


class Sleeps(list[float]):
    """Pauses that take no time, and a clock that knows of them."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)

    def clock(self) -> float:
        return sum(self)


@pytest.fixture(scope="module")
def server() -> Iterator[PublicApi]:
    with PublicApi(key=KEY) as server:
        yield server


@pytest.fixture
def api(server: PublicApi) -> PublicApi:
    server.clear()
    return server


@pytest.fixture
def sleeps() -> Sleeps:
    return Sleeps()


@pytest.fixture
def http(api: PublicApi, sleeps: Sleeps) -> Iterator[Http]:
    http = asking(api.url, sleeps)
    yield http
    http.close()


def asking(url: str, sleeps: Sleeps, key: str | None = KEY, **options: Any) -> Http:
    given = {"key_name": "RUNPOD_API_KEY", "clock": sleeps.clock, "sleep": sleeps, "rand": lambda: 1.0}
    http = Http(url, name="endpoint e1", key=key, **given)
    vars(http).update(options)
    return http
