"""Everything that ComfyUI keeps of a job after its end, and how it is dropped: history, models, caches.

POST /free only sets flags. The thread that runs prompts looks at them after a prompt, or when it is woken with nothing
to run: a prompt that arrives before it has woken runs first, on the old cache. So a prompt of no consequence goes
ahead; whichever way that race ends, the flags are dealt with before the one after it.
"""

from __future__ import annotations

import logging
import uuid
from concurrent.futures import Future, ThreadPoolExecutor

from settee.backends.comfy.http_api import Client
from settee.base.errors import ComfyError

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


#: Two of ComfyUI's core nodes. What it leaves in the temp folder is wiped with the job's own.
_NOTHING = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 1, "height": 1, "batch_size": 1, "color": 0}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}


def free(client: Client, *, timeout_s: float) -> str:
    """Unload models and drop the execution cache before any prompt that is submitted after this.

    Returns the id of the prompt that goes ahead, for history to forget. Raises ComfyError.
    """
    client.free()
    prompt_id = str(uuid.uuid4())
    client.submit(_NOTHING, prompt_id=prompt_id, client_id=prompt_id, extra_data={}, timeout_s=timeout_s)
    return prompt_id
