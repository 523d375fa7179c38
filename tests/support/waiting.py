"""Waiting for what has no event."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any


def eventually(condition: Callable[[], Any], timeout_s: float = 30, what: str = "the condition") -> Any:
    """Poll until the condition holds, and return what it said. Raises AssertionError."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout_s:g} s"
        time.sleep(0.005)
    return value


async def until(condition: Callable[[], Any], timeout_s: float = 30) -> None:
    """The same in an event loop, which goes on meanwhile."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"the condition did not come true within {timeout_s:g} s"
        await asyncio.sleep(0.005)
