"""Connections that ask, once they are made, whether the request is still wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from requests.adapters import HTTPAdapter


class NotWanted(Exception):
    """It was given up before a byte of it was written."""


class AskingAdapter(HTTPAdapter):
    """Looking a name up and connecting may take longer than anybody waits, and neither can be broken off. So the
    request is written only if ``may_write`` says so at that moment; NotWanted is raised otherwise."""

    def __init__(self, may_write: Callable[[], bool]) -> None:
        super().__init__()
        self._may_write = may_write

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        """requests takes every connection from here, through a proxy or not; urllib3 lets a pool have its class."""
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        pool.ConnectionCls = _asking(pool.ConnectionCls, self._may_write)
        return pool


def _asking(kind: Any, may_write: Callable[[], bool]) -> Any:
    class Asking(kind):  # type: ignore[misc]
        def connect(self) -> None:
            super().connect()
            if not may_write():
                self.close()
                raise NotWanted

    return Asking
