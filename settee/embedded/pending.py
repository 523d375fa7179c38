"""The queue of prompts and the history of finished ones."""

from __future__ import annotations

import copy
import heapq
import threading
from collections.abc import Callable
from typing import Any

Item = tuple[float, str, dict[str, Any], Any, list[str]]
"""number, prompt id, prompt, extra_data, output node ids: the shape /queue and /history show."""

HISTORY_LIMIT = 10_000
SECRETS = ("auth_token_comfy_org", "api_key_comfy_org")


class PromptQueue:
    """Prompts waiting (a heap), running and done. Any thread may call it."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._lock = threading.RLock()
        self._awake = threading.Condition(self._lock)
        self._waiting: list[Item] = []
        self._running: dict[int, Item] = {}
        self._taken = 0
        self._history: dict[str, dict[str, Any]] = {}
        self._flags: set[str] = set()

    def put(self, item: Item) -> None:
        """Queue a prompt.

        Two waiting prompts with equal number and id make the heap compare dicts: TypeError, yet the item is in.
        ComfyUI answers 500 then and still runs the prompt.
        """
        with self._lock:
            try:
                heapq.heappush(self._waiting, item)
            finally:
                self._awake.notify_all()
            self._on_change()

    def wait(self, seconds: float) -> None:
        """Return when a prompt waits or a flag is set, at the latest after so many seconds."""
        with self._lock:
            if not self._waiting and not self._flags:
                self._awake.wait(seconds)

    def take(self) -> tuple[Item, int] | None:
        """Return the next prompt and its ticket; None when none waits."""
        with self._lock:
            if not self._waiting:
                return None
            item = heapq.heappop(self._waiting)
            self._taken += 1
            # Copied before it runs: what running adds to the graph (is_changed) never shows in queue or history.
            self._running[self._taken] = copy.deepcopy(item)
            self._on_change()
            return item, self._taken

    def done(self, ticket: int, result: dict[str, Any], status: dict[str, Any]) -> None:
        """Move a running prompt to history."""
        with self._lock:
            prompt = self._running.pop(ticket)
            if len(self._history) > HISTORY_LIMIT:
                self._history.pop(next(iter(self._history)))
            for secret in SECRETS:
                prompt[3].pop(secret, None)
            self._history[prompt[1]] = {"prompt": prompt, "outputs": {}, "status": status, **result}
            self._on_change()

    def remaining(self) -> int:
        """Return how many prompts wait or run."""
        with self._lock:
            return len(self._waiting) + len(self._running)

    def snapshot(self) -> tuple[list[Item], list[Item]]:
        """Return running prompts, and waiting ones in heap order, which is not the order they will run in."""
        with self._lock:
            return list(self._running.values()), list(self._waiting)

    def is_running(self, prompt_id: Any) -> bool:
        """Return True if a prompt of that id runs now."""
        return any(item[1] == prompt_id for item in self.snapshot()[0])

    def clear(self) -> None:
        """Drop every waiting prompt."""
        with self._lock:
            self._waiting = []
            self._on_change()

    def delete(self, prompt_id: Any) -> bool:
        """Drop the first waiting prompt of that id; False when none waits."""
        with self._lock:
            for index, item in enumerate(self._waiting):
                if item[1] == prompt_id:
                    # ComfyUI clears a queue of one, which notifies clients twice.
                    if len(self._waiting) == 1:
                        self.clear()
                    else:
                        del self._waiting[index]
                        heapq.heapify(self._waiting)
                    self._on_change()
                    return True
        return False

    def history_of(self, prompt_id: str) -> dict[str, Any]:
        """Return ``{id: entry}``, or ``{}`` while the prompt is unknown, waiting or running."""
        with self._lock:
            entry = self._history.get(prompt_id)
            return {} if entry is None else {prompt_id: copy.deepcopy(entry)}

    def history(self, max_items: int | None, offset: int) -> dict[str, Any]:
        """Return a page of history, oldest first; a negative offset with max_items means the newest ones."""
        with self._lock:
            if offset < 0 and max_items is not None:
                offset = len(self._history) - max_items
            page = list(self._history.items())[max(offset, 0) :]
            return dict(page if max_items is None else page[: max(max_items, 1)])

    def forget(self, prompt_id: Any) -> None:
        """Delete an entry of history; an unknown id is ignored."""
        with self._lock:
            self._history.pop(prompt_id, None)

    def forget_all(self) -> None:
        """Delete all of history."""
        with self._lock:
            self._history = {}

    def set_flag(self, name: str) -> None:
        """Leave a note for the executor (unload_models, free_memory), read when it wakes and has nothing to run.

        A prompt that comes before it has woken runs first.
        """
        with self._lock:
            self._flags.add(name)
            self._awake.notify_all()

    def take_flags(self) -> set[str]:
        """Return the notes left since the last call."""
        with self._lock:
            flags, self._flags = self._flags, set()
            return flags
