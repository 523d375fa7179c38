"""A download in a process of its own, for tests that kill it: python -m tests.support.killed_download ARGUMENTS.

ARGUMENTS is JSON: url, target, sha256, size, validator, range_bytes. Prints the hash when the file is there.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from settee.models.transfer.address import Address
from settee.models.transfer.download import download
from settee.models.transfer.scheduler import Scheduler
from settee.models.transfer.stream import Limits


def main() -> None:
    given = json.loads(sys.argv[1])
    known = {name: given.get(name) for name in ("size", "sha256", "validator")}
    address = Address(given["url"], "the model", **known)
    fetched = download(
        address,
        Path(given["target"]),
        lane=Scheduler(8).lane(),
        deadline=time.monotonic() + 100,
        on_progress=lambda done, total: None,
        limits=Limits(range_bytes=given["range_bytes"]),
    )
    print(fetched.sha256)


if __name__ == "__main__":
    main()
