"""Several workers on one models folder: each places, uses and evicts; no job may meet another model's bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WORKER = """
import os, random, sys
from pathlib import Path
from settee.base.errors import SetteeError
from settee.models.folder.budget import Budget
from settee.models.entry import HubFile
from settee.models.folder.file_state import FileState
from settee.models.folder.model_folder import ModelFolder
from settee.base.settings import Settings
from tests.support.models import entry

models, chance = ModelFolder(Path(sys.argv[1])), random.Random(sys.argv[2])
room = Budget(models, Settings(models_disk_budget_gb=2.5e-6), margin_bytes=0)
used = tries = 0
while used < 60 and tries < 5000:
    tries += 1
    which = chance.randrange(2)
    asked = entry(f"loras/{chance.randrange(3)}.bin", from_job=True, source=HubFile(f"org/{which}", "m"))
    body = b"AB"[which : which + 1] * 1000
    try:
        if models.state(asked) is FileState.UNKNOWN:
            models.adopt(asked)
        if models.state(asked) is not FileState.RIGHT:
            with room.reserve(asked, 1000), models.claim(asked) as is_needed:
                if is_needed:
                    path = models.path_of(asked)
                    part = path.with_name(f"{os.getpid()}")
                    part.write_bytes(body)
                    part.replace(path)
                    models.record(asked, size=1000, sha256=None, xxh3=None)
        with models.use([asked]) as gone:
            if not gone:
                used += 1
                for _ in range(3):
                    assert models.path_of(asked).read_bytes() == body, "another model's bytes"
    except SetteeError:  # in use, or no room just now
        continue
assert used == 60, f"used {used} times in {tries} tries"
"""


def test_no_worker_meets_another_models_bytes(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path / "models"), str(number)],
            cwd=root,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    try:
        ends = [worker.communicate(timeout=90)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert ends == ["", "", ""]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
