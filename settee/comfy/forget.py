"""Takes prompts out of ComfyUI's history, which holds every text of theirs."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor

from settee.comfy.client import Client
from settee.errors import ComfyError

log = logging.getLogger(__name__)


class Forgetter:
    """Forgets in a thread: for a small job it takes as long as all that comes after the execution."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._waiting: list[str] = []
        self._begun: list[Future[None]] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="comfyui-forget")
        self._closed = False

    def add(self, prompt_id: str) -> None:
        """Forget this prompt the next time, when it will have ended."""
        self._waiting.append(prompt_id)

    def begin(self) -> None:
        """Begin to forget what was added; see :meth:`settle`."""
        prompt_ids, self._waiting = self._waiting, []
        if prompt_ids and not self._closed:
            self._begun.append(self._pool.submit(self._forget, prompt_ids))

    def settle(self) -> None:
        """Return when all that was added is forgotten, or could not be (2 s a prompt at most)."""
        self.begin()
        while self._begun:
            self._begun.pop().result()

    def close(self) -> None:
        self._closed = True
        self._pool.shutdown()

    def _forget(self, prompt_ids: list[str]) -> None:
        for prompt_id in prompt_ids:
            try:
                self._client.forget(prompt_id)
            except ComfyError as error:
                # A server that died has forgotten by itself.
                log.warning("a prompt stays in ComfyUI's history: %s", error)
