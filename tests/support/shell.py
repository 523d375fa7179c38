"""start.sh under test: sourced, function by function, with stub commands first on PATH; or as the program it is."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
START = ROOT / "start.sh"


class Shell:
    """A bash that has sourced a script of ours, in an environment of its own."""

    def __init__(self, folder: Path, script: Path = START) -> None:
        self.folder = folder
        self.script = script
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        self.home = folder / "home"
        self.home.mkdir()
        self.path = f"{self.bin}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"

    def stub(self, name: str, body: str = "") -> None:
        """A command that notes its arguments, one call a line, and then does ``body``."""
        noted = shlex.quote(str(self.folder / f"{name}.calls"))
        (self.bin / name).write_text(f'#!/bin/bash\nprintf "%s\\n" "$*" >>{noted}\n{body}\n')
        (self.bin / name).chmod(0o755)

    def calls(self, name: str) -> list[str]:
        """The arguments of a stub's calls so far."""
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []

    def source(self, code: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Source the script and run ``code`` in the same strict shell."""
        return self._run(["bash", "-c", f"source {shlex.quote(str(self.script))}\n{code}"], env)

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the script."""
        return self._run(["bash", str(self.script), *arguments], env)

    def _run(self, command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        clean = {"PATH": self.path, "HOME": str(self.home), "TMPDIR": str(self.folder), "LANG": "C.UTF-8", **env}
        return subprocess.run(command, env=clean, cwd=self.folder, capture_output=True, text=True, timeout=30)
