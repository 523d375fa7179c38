"""Dotted paths to places within a node, such as ``inputs.ckpt_name``: read, and written into a copy."""

from __future__ import annotations

from typing import Any, NamedTuple


class Place(NamedTuple):
    """Where a path leads: a key of an object, or an index of a list."""

    holder: Any
    key: str | int

    @property
    def exists(self) -> bool:
        return isinstance(self.holder, list) or self.key in self.holder

    @property
    def value(self) -> Any:
        """What is there; None where nothing is yet."""
        return self.holder[self.key] if self.exists else None


def find(root: Any, path: str) -> Place | None:
    """The place that a path names, or None where an object or a list on its way does not exist.

    A number counts within a list, from 0. The names of some of ComfyUI's inputs have dots themselves ("values.a"), so
    of several readings the one with the longest name that exists is taken. Only the last part may name a key that is
    not there yet.
    """
    parts = path.split(".")
    if not all(parts):
        return None
    holder, at = root, 0
    while True:
        left = parts[at:]
        if isinstance(holder, list):
            key: str | int | None = _index(left[0], len(holder))
            taken = 1
        elif isinstance(holder, dict):
            taken = next((n for n in range(len(left), 0, -1) if ".".join(left[:n]) in holder), 0)
            key = ".".join(left[:taken]) if taken else left[0] if len(left) == 1 else None
            taken = taken or 1
        else:
            return None
        if key is None:
            return None
        if taken == len(left):
            return Place(holder, key)
        holder, at = holder[key], at + taken


def _index(text: str, length: int) -> int | None:
    if not (text.isascii() and text.isdigit() and len(text) < 7):
        return None
    return int(text) if int(text) < length else None


__all__ = ["Place", "find"]
