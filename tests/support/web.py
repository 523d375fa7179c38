"""A web server on loopback that input files come from: its paths answer as a test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from settee.net.retry import Backoff
from settee.staging import fetch
from tests.support.http_double import Ask, HttpDouble, Reply

Answer = Callable[[Ask], Reply]


class Web(HttpDouble):
    """``answers`` has what each path answers."""

    keeps_alive = False

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, Answer] = {}
        self.up()

    def url(self, path: str) -> str:
        return self.origin + path

    def serve(self, path: str, body: bytes, status: int = 200, **headers: str) -> str:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers[path] = lambda ask: Reply(status, given, body)
        return self.url(path)

    def answer(self, ask: Ask) -> Reply:
        return self.answers[ask.route](ask)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS", "true")
    monkeypatch.setattr(fetch, "_BACKOFF", Backoff(0.01, 0.01))
    server = Web()
    yield server
    server.close()
