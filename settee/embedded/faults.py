"""Switches that make the embedded server fail in the ways real servers were seen to fail, and counts of what it did.

Set them at start with ``--fault NAME[=VALUE]`` (repeatable) or while running with
``POST /settee/faults {"name": value}``, where null switches one off. ``--fault NAME`` alone means ``true``.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

FAULTS = {
    "crash_on_prompt": ("N", "the process dies (exit code 9) in the middle of the Nth run from now"),
    "delete_outputs": ("true", "every saved file is removed right after it was written"),
    "die_at_start": ("true", "prints the traceback of a failed import and exits with code 1"),
    "executor_dead": ("true", "prompts are queued, nothing runs, HTTP goes on"),
    "flags_late": ("true", "POST /free takes effect only after the next prompt, as when that is quicker"),
    "history_late": ("seconds", "history appears that much later than executing: null"),
    "history_lost": ("true", "a finished prompt never reaches history"),
    "http_hang": ("prefix", "requests whose path starts with it are never answered (/settee/ is spared)"),
    "ignore_interrupt": ("true", "POST /interrupt answers 200 and does nothing"),
    "interrupt_slow": ("seconds", "an interrupt takes effect that much later"),
    "no_final_message": ("true", "executing: null is never sent"),
    "oom": ("count", "runs end with torch.OutOfMemoryError at the first node they execute"),
    "prompt_500": ("count", "POST /prompt answers 500 and queues nothing"),
    "prompt_lost_response": ("count", "POST /prompt queues the prompt, then drops the connection unanswered"),
    "slow_start": ("seconds", "the server starts listening that much later"),
    "step_slow": ("seconds", "every step of KSampler takes that much longer"),
    "truncate_outputs": ("true", "every saved file is cut to half its length right after it was written"),
    "view_404": ("true", "GET /view answers 404 for everything"),
    "ws_drop_after": ("N", "all sockets are reset after N more messages of runs; once"),
    "ws_refuse": ("true", "new sockets are answered 503"),
    "ws_silent": ("true", "sockets stay open and nothing is sent to them any more"),
}
"""By name: the form of the value, and what happens. A count is used up: true means every time, N the next N times."""

_CRASH_DELAY_SECONDS = 0.05

STATS = (
    *("prompts_queued", "prompts_executed", "prompts_succeeded", "prompts_failed", "nodes_executed", "interrupts"),
    *("frees", "unloads", "memory_frees", "cache_drops", "uploads", "sockets_opened"),
)


class UnknownFault(ValueError):
    """The name is not in the table, or its value has the wrong form."""


def parse_assignment(text: str) -> tuple[str, Any]:
    """Read ``NAME`` or ``NAME=VALUE`` from the command line; raises UnknownFault."""
    name, separator, value = text.partition("=")
    return name, checked(name, value if separator else True)


def checked(name: str, value: Any) -> Any:
    """Return the value in the form of its switch (None, False and 0 all mean off); raises UnknownFault."""
    if name not in FAULTS:
        raise UnknownFault(f"no fault called {name!r}; there are: {', '.join(FAULTS)}")
    form, _ = FAULTS[name]
    if isinstance(value, str) and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    if value in (None, False, ""):
        return None
    if (form == "true" and value in (True, "1")) or (form == "count" and value is True):
        return True
    try:
        return {"N": int, "count": int, "seconds": float, "prefix": str}[form](value) or None
    except (KeyError, TypeError, ValueError) as error:
        raise UnknownFault(f"fault {name} cannot be {value!r}") from error


class Faults:
    """The switches of one server. Any thread may read or set them."""

    def __init__(self, initial: dict[str, Any]) -> None:
        self._lock = threading.Lock()
        self._values = dict(initial)

    def set(self, name: str, value: Any) -> None:
        """Switch one on, or off with None; raises UnknownFault."""
        value = checked(name, value)
        with self._lock:
            self._values[name] = value

    def active(self) -> dict[str, Any]:
        """Return the values of those that are on, by name."""
        with self._lock:
            return {name: value for name, value in self._values.items() if value is not None}

    def get(self, name: str) -> Any:
        """Return the value of one switch, None when it is off."""
        return self._values.get(name)

    def seconds(self, name: str) -> float:
        """Return the value of a switch measured in seconds, 0.0 when it is off."""
        return self._values.get(name) or 0.0

    def take(self, name: str) -> bool:
        """Use up one of a count; True when the failure should happen now."""
        return self._count_down(name) is not None

    def is_reached(self, name: str) -> bool:
        """Count one occurrence down; True exactly when it is the Nth, which also switches the fault off."""
        return self._count_down(name) == 0

    def _count_down(self, name: str) -> int | None:
        """Return how many are left after this one, None when it is off; True stays."""
        with self._lock:
            left: int | None = self._values.get(name)
            if left is not None and left is not True:
                left -= 1
                self._values[name] = left or None
            return left


class Stats:
    """Counts of what the server did since it started, for tests; served by GET /settee/stats."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts = dict.fromkeys(STATS, 0)

    def add(self, name: str) -> None:
        """Count one more."""
        with self._lock:
            self.counts[name] += 1


class OutOfMemoryError(RuntimeError):
    """Reported under the name of PyTorch's exception."""


OutOfMemoryError.__module__ = "torch"


def out_of_memory() -> OutOfMemoryError:
    """Return an exception that reads like CUDA's."""
    return OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 15.99 GiB of which "
        "1.23 GiB is free."
    )


def exit_soon() -> None:
    """End the process as a crash would, once the messages sent so far are on their way."""
    time.sleep(_CRASH_DELAY_SECONDS)
    os._exit(9)
