"""What the tests of the client begin with: they read its errors as the command line's users do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from settee.client.client_errors import command_line
from tests.support.asking import api, http, server, sleeps  # noqa: F401
from tests.support.media_graphs import png  # noqa: F401


@pytest.fixture(autouse=True)
def _at_the_command_line() -> Iterator[None]:
    with command_line():
        yield
