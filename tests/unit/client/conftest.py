"""What the tests of the client's HTTP begin with."""

from __future__ import annotations

from tests.support.asking import api, http, server, sleeps  # noqa: F401
