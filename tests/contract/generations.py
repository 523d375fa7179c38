"""The two generations of ComfyUI that settee works with, and where they differ.

What they answer and send is in the recordings, a folder for each; here is what a test has to know besides.
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
    takes_any_prompt_id: bool
    """Not only UUIDs; null is the id "None"."""
    sends_every_step: bool
    """Progress is not held back when steps are quick."""
    checks_newer_choices: bool
    """Values of COMBO inputs are looked at before a prompt is queued."""
    survives_broken_extra_data: bool
    """Answered with 500 instead of ending all work."""
    undecodable: str
    """The exception for a file that LoadImage can make nothing of, by its name and content."""
    json_indent: int | None
    """Of the JSON that PreviewAny shows."""


BEFORE = Generation(
    "0.3.64",
    takes_any_prompt_id=True,
    sends_every_step=True,
    checks_newer_choices=False,
    survives_broken_extra_data=False,
    undecodable="PIL.UnidentifiedImageError",
    json_indent=None,
)
SINCE = Generation(
    "0.33.0",
    takes_any_prompt_id=False,
    sends_every_step=False,
    checks_newer_choices=True,
    survives_broken_extra_data=True,
    undecodable="av.error.InvalidDataError",
    json_indent=4,
)


@functools.cache
def under_test() -> Generation:
    """The generation of the server at COMFY_URL, or of the embedded one."""
    url = os.environ.get("COMFY_URL")
    if not url:
        return SINCE
    version = requests.get(f"{url.rstrip('/')}/system_stats", timeout=30).json()["system"]["comfyui_version"]
    return BEFORE if tuple(map(int, version.split(".")[:2])) < (0, 4) else SINCE
