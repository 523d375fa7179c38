"""Install a lock into the environment of this Python, as it is: `python tools/install.py LOCK`, for make.

A lock that pip may resolve again is refused as soon as a newer release is out: nothing is resolved here. pip fetches uv
alone, which installs the rest in a tenth of pip's time (2 s for 35 s).
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
AS_LOCKED = ["--no-deps", "--require-hashes", "-r"]
#: uv's variables for what pip's configuration says of indexes: uv does not read that.
VARIABLES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
}


def main(lock: str) -> int:
    """Return 0, or the exit code of the first command that failed; it has printed why."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    uv = [str(Path(sys.executable).with_name("uv")), "pip"]
    install = [*uv, "install", "--quiet", "--python", sys.executable]
    commands = [
        [*pip, "install", "--quiet", *AS_LOCKED, "requirements-build.lock"],
        [*install, *AS_LOCKED, lock],
        [*install, "--no-deps", "--no-build-isolation", "-e", "."],
        [*uv, "check", "--quiet", "--python", sys.executable],
    ]
    env = _uvs(subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=True).stdout)
    for command in commands:
        code = subprocess.run(command, cwd=ROOT, env={**env, **os.environ}).returncode
        if code:
            return code
    return 0


def _uvs(configuration: str) -> dict[str, str]:
    """Return the lines of `pip config list` as variables of uv. Later lines take precedence, as with pip."""
    env = {"UV_INDEX_STRATEGY": "unsafe-best-match"}  # as pip: all indexes are alike, hashes decide
    for name, value in re.findall(r"^(?:global|install|:env:)\.([a-z-]+)=(.+)$", configuration, re.MULTILINE):
        if name in VARIABLES:
            env[VARIABLES[name]] = ("," if name == "find-links" else " ").join(ast.literal_eval(value).split())
    return env


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print("usage: python tools/install.py LOCK\nInstall a lock into the environment of this Python, as it is.")
        sys.exit(0 if sys.argv[1:] in (["-h"], ["--help"]) else 2)
    sys.exit(main(sys.argv[1]))
