"""The client does without the worker's packages: every module of it is imported where there are none."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import settee.client

#: What `pip install settee` does not bring, and what is imported when it is first used.
ABSENT = (
    *("aiohttp", "boto3", "botocore", "cryptography", "fastapi", "huggingface_hub", "isal", "orjson", "pybase64"),
    *("pydantic", "pydantic_core", "pydantic_settings", "runpod", "uvicorn", "yaml"),
    # Not on Windows.
    *("fcntl", "termios", "pwd", "grp", "resource"),
)
LATE = ("PIL", "requests", "rich", "urllib3", "websocket")
#: Ours that are the worker's.
WORKERS = (
    "settee.base.settings",
    "settee.engine.request",
    "settee.engine",
    "settee.staging.workspace",
    "settee.delivery",
    "settee.doors",
)

CODE = f"""
import sys
for name in {ABSENT + LATE + WORKERS!r}:
    sys.modules[name] = None
import importlib, os
# Windows has none of these.
for name in ("geteuid", "getuid", "fork", "killpg"):
    if hasattr(os, name):
        delattr(os, name)
import settee.client
for name in sys.argv[1:]:
    importlib.import_module(name)
for name in settee.client.__all__:
    getattr(settee.client, name)
print(len(sys.argv) - 1)
"""


def test_every_module_of_the_client_is_light() -> None:
    modules = [module.name for module in pkgutil.walk_packages(settee.client.__path__, "settee.client.")]
    assert len(modules) > 35
    command = [sys.executable, "-W", "error", "-c", CODE, *modules]
    root = Path(settee.client.__file__).parents[2]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=root)
    assert (found.stdout.strip(), found.stderr) == (str(len(modules)), "")
