"""How much memory this process may fill, and still fill: what the machine has, and what its control groups allow.

Needs the standard library only: ComfyUI's Python loads it too (comfy_nodes/settee_memory).
"""

from __future__ import annotations

from pathlib import Path


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that can be used before something else must go; 0 where nobody says (no Linux, no /proc).

    The least of MemAvailable and, for every control group from this process's own up to the top, its limit less its
    use, where cache that nobody used lately counts as free (`inactive_file`, as Kubernetes reckons a working set).
    ``root`` is the folder that holds ``proc`` and ``sys``.
    """
    available = _fields(root / "proc/meminfo").get("MemAvailable:", 0) * 1024
    return max(0, min([available, *(room for group in _groups(root) if (room := _room(group)) is not None)]))


def total_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may fill: the machine's, or the least limit of its control groups; 0 as above."""
    limits = (_limit(group) for group in _groups(root))
    return min([_fields(root / "proc/meminfo").get("MemTotal:", 0) * 1024, *filter(None, limits)])


def _groups(root: Path) -> list[Path]:
    """The folders of this process's memory groups, versions 1 and 2, its own and those above.

    /proc/self/cgroup has lines such as ``0::/a/b`` (version 2) and ``4:memory:/a/b`` (version 1). In a container
    without a cgroup namespace that path is the host's, and only the mount's top, the container's own, is to be seen.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for number, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if number == "0" and not controllers:
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif "memory" in controllers.split(","):
            mounts = [root / "sys/fs/cgroup/memory"]
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        found += [mount.joinpath(*parts[:depth]) for mount in mounts for depth in range(len(parts), -1, -1)]
    return found


def _room(group: Path) -> int | None:
    """Bytes this group may still take: None when it has no limit or is not there."""
    limit = _limit(group)
    for usage, inactive in (("memory.current", "inactive_file"), ("memory.usage_in_bytes", "total_inactive_file")):
        used = _number(group / usage)
        if limit is not None and used is not None:
            return limit - used + min(used, _fields(group / "memory.stat").get(inactive, 0))
    return None


def _limit(group: Path) -> int | None:
    """Bytes this group may take: None when it has no limit or is not there."""
    found = (_number(group / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes"))
    return min((limit for limit in found if limit is not None), default=None)


def _number(path: Path) -> int | None:
    """The file's number; None when it says "max" or is not there."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _fields(path: Path) -> dict[str, int]:
    """``name number …`` per line, as /proc/meminfo and memory.stat are written."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return {}
    return {words[0]: int(words[1]) for words in map(str.split, lines) if len(words) > 1 and words[1].isdecimal()}
