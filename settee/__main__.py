"""``python -m settee agent``: the doors that are started as programs of their own."""

from __future__ import annotations

import sys


def main() -> int:
    """The exit code of the door that the first argument names."""
    if sys.argv[1:2] == ["agent"]:
        from settee.doors.agent.serve import main as agent

        return agent(sys.argv[2:])
    print("usage: python -m settee agent --config FILE", file=sys.stderr)
    return 0 if sys.argv[1:2] in (["-h"], ["--help"]) else 2


if __name__ == "__main__":
    raise SystemExit(main())
