"""What the prompts of one job are called: a job that ComfyUI's death or lack of memory ended is submitted again."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

#: The first time, once after ComfyUI went away, and once after it ran out of memory.
MOST = 3


def prompt_ids(first: str) -> Iterator[str]:
    """Yield every id that a job may run under, in order; ``first`` is its own, a UUID.

    Each attempt has another, since history may hold the one before. They follow from the first, so that whoever
    comes after a worker that was killed can take back the one that runs.
    """
    yield first
    for number in range(1, MOST):
        yield str(uuid.uuid5(uuid.UUID(first), str(number)))


def folder_of(prompt_id: str) -> str:
    """The folder, within ComfyUI's output and temp folders, that a prompt writes to."""
    return f"settee-{prompt_id[:13]}"


__all__ = ["folder_of", "prompt_ids"]
