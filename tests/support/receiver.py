"""A receiver of callbacks on loopback that fails on purpose.

``rule(call)`` says what becomes of each request. Everything that came is kept in ``calls``, in the order in which it
was read. ``down()`` closes the port, ``up()`` opens it again.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.support.http_double import Ask, HttpDouble, Reply
from tests.support.waiting import eventually


@dataclass
class Call(Ask):
    """One callback."""

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    @property
    def key(self) -> str:
        return str(self.headers.get("Idempotency-Key", ""))

    @property
    def state(self) -> str:
        return str(self.body["state"])


OK = Reply()
CUT = Reply(cut_after=-1)
SILENT = Reply(silent_after=-1)
Rule = Callable[[Call], Reply]


def then(*replies: Reply) -> Rule:
    """These, one after another, and the last one from then on."""
    left = list(replies)

    def rule(call: Call) -> Reply:
        return left.pop(0) if len(left) > 1 else left[0]

    return rule


class Receiver(HttpDouble):
    """``url(name)`` is where callbacks go. A redirect that was followed would come as a GET."""

    kind = Call
    keeps_alive = False

    def __init__(self, rule: Rule = lambda call: OK, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls=tls)
        self.rule = rule

    def answer(self, call: Call) -> Reply:
        return self.rule(call) if call.method == "POST" else OK

    def url(self, name: str = "status") -> str:
        return f"{self.origin}/callbacks/{name}"

    def urls(self) -> dict[str, str]:
        return {name: self.url(name) for name in ("status", "completion", "failure")}

    # --- what came ----------------------------------------------------------------------------------------------

    @property
    def calls(self) -> list[Call]:
        return self.asked

    @property
    def delivered(self) -> list[Call]:
        """Those that were answered with 2xx, in the order in which they came."""
        with self.lock:
            return [call for call in self.calls if call.status is not None and 200 <= call.status < 300]

    @property
    def keys(self) -> list[str]:
        return [call.key for call in self.delivered]

    @property
    def states(self) -> list[str]:
        return [call.state for call in self.delivered]

    def wait_for_key(self, key: str, timeout_s: float = 30) -> Call:
        """The call of that key which was answered with 2xx."""
        found = eventually(lambda: [call for call in self.delivered if call.key == key], timeout_s, f"a callback {key}")
        return found[0]  # type: ignore[no-any-return]
