"""The Dockerfile, read: its stages, and its RUN steps as scripts that can be run elsewhere."""

from __future__ import annotations

import re
import shlex
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


def environment(stage: str) -> dict[str, str]:
    """The variables that a stage sets; $PATH stays as it is written."""
    set_here = [i.value for i in instructions() if i.name == "ENV" and i.stage == stage]
    return dict(pair.split("=", 1) for value in set_here for pair in shlex.split(value))


def argument(name: str) -> str:
    """The default of a build argument."""
    for instruction in instructions():
        key, _, value = instruction.value.partition("=")
        if instruction.name == "ARG" and key == name and value:
            return value.strip('"')
    raise LookupError(name)
