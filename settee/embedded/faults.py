"""Switches that make the embedded server fail in the ways real servers were seen to fail.

Set them at start with ``--fault NAME[=VALUE]`` (repeatable) or while running with
``POST /settee/faults {"name": value}``, where null switches one off. ``--fault NAME`` alone means ``true``.
A *count* is used up: ``true`` means every time, ``N`` means the next N times.

=====================  ========  ==========================================================================
name                   value     what happens
=====================  ========  ==========================================================================
crash_on_prompt        N         the process dies (exit code 9) in the middle of the Nth run from now
delete_outputs         true      every saved file is removed right after it was written
die_at_start           true      prints the traceback of a failed import and exits with code 1
executor_dead          true      prompts are queued, nothing runs, HTTP goes on
flags_late             true      what POST /free asks for waits until after the next prompt, as when that is quicker
history_late           seconds   history appears that much later than ``executing: null``
history_lost           true      a finished prompt never reaches history
http_hang              prefix    requests whose path starts with it are never answered (/settee/ is spared)
ignore_interrupt       true      POST /interrupt answers 200 and does nothing
interrupt_slow         seconds   an interrupt takes effect that much later
no_final_message       true      ``executing: null`` is never sent
oom                    count     runs end with torch.OutOfMemoryError at the first node they execute
prompt_500             count     POST /prompt answers 500 and queues nothing
prompt_lost_response   count     POST /prompt queues the prompt, then drops the connection unanswered
slow_start             seconds   the server starts listening that much later
step_slow              seconds   every step of KSampler takes that much longer
truncate_outputs       true      every saved file is cut to half its length right after it was written
view_404               true      GET /view answers 404 for everything
ws_drop_after          N         all sockets are reset after N messages of a run; once
ws_refuse              true      new sockets are answered 503
ws_silent              true      sockets stay open and nothing is sent to them any more
=====================  ========  ==========================================================================
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

FLAGS = {
    *("delete_outputs", "die_at_start", "executor_dead", "flags_late", "history_lost"),
    *("ignore_interrupt", "no_final_message"),
    *("truncate_outputs", "view_404", "ws_refuse", "ws_silent"),
}
COUNTS = {"oom", "prompt_500", "prompt_lost_response"}
NUMBERS = {"crash_on_prompt", "ws_drop_after"}
SECONDS = {"history_late", "interrupt_slow", "slow_start", "step_slow"}
TEXTS = {"http_hang"}
NAMES = FLAGS | COUNTS | NUMBERS | SECONDS | TEXTS


class UnknownFault(ValueError):
    """The name is not in the table, or its value has the wrong form."""


def parse_assignment(text: str) -> tuple[str, Any]:
    """Read ``NAME`` or ``NAME=VALUE`` from the command line; raises UnknownFault."""
    name, separator, value = text.partition("=")
    return name, checked(name, value if separator else True)


def checked(name: str, value: Any) -> Any:
    """The value in the form its switch wants (None, False and 0 all mean off); raises UnknownFault."""
    if name not in NAMES:
        raise UnknownFault(f"no fault called {name!r}; there are: {', '.join(sorted(NAMES))}")
    if isinstance(value, str) and name not in TEXTS and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    try:
        return _coerced(name, value)
    except (TypeError, ValueError) as error:
        raise UnknownFault(f"fault {name} cannot be {value!r}") from error


def _coerced(name: str, value: Any) -> Any:
    if value is None or value is False or value == "":
        return None
    if name in TEXTS:
        if not isinstance(value, str):
            raise ValueError("wants text")
        return value
    if name in SECONDS:
        return float(value) or None
    if name in NUMBERS or (name in COUNTS and value is not True):
        return int(value) or None
    if value is not True and value not in (1, "1"):
        raise ValueError("wants true or null")
    return True


class Faults:
    """The switches of one server. Any thread may read or set them."""

    def __init__(self, initial: dict[str, Any] | None = None) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, Any] = {}
        for name, value in (initial or {}).items():
            self.set(name, value)

    def set(self, name: str, value: Any) -> None:
        """Switch one on, or off with None; raises UnknownFault."""
        value = checked(name, value)
        with self._lock:
            if value is None:
                self._values.pop(name, None)
            else:
                self._values[name] = value

    def active(self) -> dict[str, Any]:
        """What is switched on, by name."""
        with self._lock:
            return dict(self._values)

    def get(self, name: str) -> Any:
        """The value of one switch, None when it is off."""
        return self._values.get(name)

    def seconds(self, name: str) -> float:
        """The value of a switch measured in seconds, 0.0 when it is off."""
        return float(self._values.get(name, 0.0))

    def take(self, name: str) -> bool:
        """Use up one of a count; True when the failure should happen now."""
        with self._lock:
            left = self._values.get(name)
            if left is None or left is True:
                return left is True
            if left <= 1:
                del self._values[name]
            else:
                self._values[name] = left - 1
            return True

    def countdown(self, name: str) -> bool:
        """Count one occurrence down; True exactly when it is the last, which also switches the fault off."""
        with self._lock:
            left = self._values.get(name)
            if left is None:
                return False
            if left <= 1:
                del self._values[name]
                return True
            self._values[name] = left - 1
            return False


@dataclass
class Stats:
    """What the server did since it started, for tests; served by GET /settee/stats."""

    prompts_queued: int = 0
    prompts_executed: int = 0
    prompts_succeeded: int = 0
    prompts_failed: int = 0
    prompts_interrupted: int = 0
    nodes_executed: int = 0
    interrupts: int = 0
    frees: int = 0
    unloads: int = 0
    cache_drops: int = 0
    uploads: int = 0
    views: int = 0
    history_reads: int = 0
    sockets_opened: int = 0
    sockets_open: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, name: str, amount: int = 1) -> None:
        """Add to one of the counts."""
        with self._lock:
            setattr(self, name, getattr(self, name) + amount)

    def as_dict(self) -> dict[str, int]:
        """Every count by name."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}
