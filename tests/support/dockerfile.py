"""The Dockerfile, read: its stages, and its RUN steps as scripts that can be run elsewhere."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Instruction:
    """One line of a Dockerfile, continuations joined. ``stage`` is empty before the first FROM."""

    stage: str
    name: str
    value: str

    @property
    def script(self) -> str:
        """What a RUN runs, without its mounts."""
        return re.sub(r"^(--mount=\S+\s+)+", "", self.value)


def instructions(path: Path = ROOT / "Dockerfile") -> list[Instruction]:
    """All instructions, in order."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found, stage = [], ""
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, value = line.split(None, 1)
        if name == "FROM":
            stage = value.split(" AS ")[1]
        found.append(Instruction(stage, name, value))
    return found


def argument(name: str) -> str:
    """The default of a build argument."""
    for instruction in instructions():
        key, _, value = instruction.value.partition("=")
        if instruction.name == "ARG" and key == name and value:
            return value.strip('"')
    raise LookupError(name)
