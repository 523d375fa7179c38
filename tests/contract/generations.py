"""The two generations of ComfyUI that settee works with, and where a test has to know which one it talks to.

Most differences are in the recordings, which there is one folder of for each.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

import requests


@dataclass(frozen=True)
class Generation:
    """One of them, by the version that was recorded."""

    version: str


BEFORE = Generation("0.3.64")
SINCE = Generation("0.33.0")


@functools.cache
def under_test() -> Generation:
    """The generation of the server at COMFY_URL, or of the embedded one."""
    url = os.environ.get("COMFY_URL")
    if not url:
        return BEFORE
    version = requests.get(f"{url.rstrip('/')}/system_stats", timeout=30).json()["system"]["comfyui_version"]
    return BEFORE if tuple(map(int, version.split(".")[:2])) < (0, 4) else SINCE
