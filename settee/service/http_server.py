"""The HTTP server: it limits the time of a request's head, and ends at a signal."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

#: From a connection, or the first byte of a further request on it, to the end of the request's head, seconds.
HEAD_S = 20.0


class Patient(H11Protocol):
    """uvicorn times the pause between two requests, but not the head of one, which may come byte by byte."""

    head_s = HEAD_S
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._time_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._time_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _time_head(self) -> None:
        if self._is_answering:
            self._stop_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_s, self._expire)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _expire(self) -> None:
        self._head_timer = None
        if not self._is_answering and not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """uvicorn waits for open requests first, and ends its application then; a job must be canceled at once: streams of
    events only end with the job."""

    def __init__(self, config: uvicorn.Config, on_signal: Callable[[], object]) -> None:
        super().__init__(config)
        self._on_signal = on_signal

    def handle_exit(self, sig: int, frame: Any) -> None:
        super().handle_exit(sig, frame)
        # A signal's handler may have interrupted the holder of the locks that this takes.
        threading.Thread(target=self._on_signal, name="settee-ending", daemon=True).start()

    def serve_until_told(self, listening: list[socket.socket]) -> None:
        """Run on these sockets; returns after SIGTERM or SIGINT.

        uvicorn raises the signal that ended it again when it has restored the earlier handlers. By default
        that would end the process on the spot, with ComfyUI, the workspace and the outbox as they are.
        """
        handlers = {each: signal.signal(each, lambda *_: None) for each in (signal.SIGTERM, signal.SIGINT)}
        try:
            self.run(listening)
        finally:
            for each, handler in handlers.items():
                signal.signal(each, handler)


__all__ = ["Patient", "Server"]
