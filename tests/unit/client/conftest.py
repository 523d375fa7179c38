"""What the tests of the client's HTTP and of files for loaders begin with."""

from __future__ import annotations

from tests.support.asking import api, http, server, sleeps  # noqa: F401
from tests.support.media_graphs import png  # noqa: F401
