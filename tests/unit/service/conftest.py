"""What the tests of callbacks begin with."""

from __future__ import annotations

from tests.support.outbox import make, receiver  # noqa: F401
