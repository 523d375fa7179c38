"""Fixtures that any test may ask for by name, and how tests are called."""

from __future__ import annotations

import signal

from hypothesis import settings

from tests.support.s3 import s3  # noqa: F401

#: Longer texts are no names; and random ones would name a test anew in every process that runs some of the tests.
_LONGEST = 40

# An example may take as long as a busy machine needs.
settings.register_profile("settee", deadline=None)
settings.load_profile("settee")

# A shell's background jobs ignore Ctrl-C, and so would every program that a test starts there and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_make_parametrize_id(config: object, val: object, argname: str) -> str | None:
    if isinstance(val, (bytes, str)) and len(val) > _LONGEST:
        return f"{argname}-of-{len(val)}"
    return None
