"""The models folder: 1,000 models linked and looked at again, and one large one checked.

Baselines: bare `os.symlink` and `os.stat` for the names, `cat` and `sha256sum` for the bytes (page cache warm).
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from settee.models.entry import HubFile, ModelEntry
from settee.models.folder.file_state import FileState
from settee.models.folder.model_folder import ModelFolder
from settee.models.folder.upkeep import Verdict, verify

COUNT = 1000
LARGE = 1 << 30
ROUNDS = 5


def best(run: Callable[[int], object]) -> float:
    """The fastest of a few rounds; ``run`` is told which one it is."""
    taken = []
    for number in range(ROUNDS):
        begun = time.perf_counter()
        run(number)
        taken.append(time.perf_counter() - begun)
    return min(taken)


def entry(name: str, **changes: str) -> ModelEntry:
    return ModelEntry(HubFile("org/repo", name), "loras", name, **changes)  # type: ignore[arg-type]


def safetensors(count: int) -> bytes:
    header = json.dumps({"a": {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(count)


def names(folder: Path) -> None:
    cache = folder / "cache"
    cache.mkdir()
    entries = [entry(f"{number}.safetensors") for number in range(COUNT)]
    for item in entries:
        (cache / item.name).write_bytes(safetensors(64))

    def bare(number: int) -> None:
        target = folder / f"bare{number}"
        target.mkdir()
        for item in entries:
            os.symlink(cache / item.name, target / item.name)

    def link(number: int) -> None:
        models = ModelFolder(folder / f"models{number}")
        for item in entries:
            models.link(item, cache / item.name)

    def look(number: int) -> None:
        models = ModelFolder(folder / f"models{number}")
        assert all(models.state(item) is FileState.RIGHT for item in entries)

    def use(number: int) -> None:
        with ModelFolder(folder / f"models{number}").use(entries) as gone:
            assert not gone

    def stat(number: int) -> None:
        for item in entries:
            os.stat(folder / f"bare{number}" / item.name)

    baseline = best(bare)
    print(f"os.symlink, {COUNT} names                   {1e3 * baseline:8.1f} ms   1.00")
    taken = best(link)
    per_file = 1e3 * taken / COUNT
    print(f"link: checked, linked, recorded            {1e3 * taken:8.1f} ms   {taken / baseline:.2f}", end="")
    print(f"   ({per_file:.2f} ms per file; target: 2 ms)")
    baseline = best(stat)
    print(f"os.stat, {COUNT} names                      {1e3 * baseline:8.1f} ms   1.00")
    for label, run in (("state: all right, by a fresh process", look), ("use: locked, looked at, touched", use)):
        taken = best(run)
        print(f"{label:<42} {1e3 * taken:8.1f} ms   {taken / baseline:.2f}   (target: 100 ms)")


def bytes_(folder: Path) -> None:
    path = folder / "models" / "loras" / "large.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(safetensors(LARGE))

    def command(*words: str) -> Callable[[int], object]:
        return lambda number: subprocess.run([*words, str(path)], check=True, stdout=subprocess.PIPE).stdout

    with open(os.devnull, "wb") as null:
        cat = best(lambda number: subprocess.run(["cat", str(path)], check=True, stdout=null))
    hashed = best(command("sha256sum"))
    sha256 = subprocess.run(["sha256sum", str(path)], check=True, capture_output=True, text=True).stdout.split()[0]

    def adopt(number: int) -> None:
        for record in (folder / "models" / ".settee" / "loras").glob("*.json"):
            record.unlink()
        assert ModelFolder(folder / "models").adopt(entry("large.safetensors", sha256=sha256)) is None

    adopted = best(adopt)
    verified = best(lambda number: [finding.verdict for finding in verify(ModelFolder(folder / "models"))])
    assert [finding.verdict for finding in verify(ModelFolder(folder / "models"))] == [Verdict.OK]
    print(f"cat > /dev/null, 1 GiB                     {cat:8.3f} s    1.00")
    print(f"verify (xxh3)                              {verified:8.3f} s    {verified / cat:.2f}")
    print(f"sha256sum, 1 GiB                           {hashed:8.3f} s    1.00")
    print(f"adopt (sha256 and xxh3 in one read)        {adopted:8.3f} s    {adopted / hashed:.2f}")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="settee-bench-") as folder:
        names(Path(folder))
        bytes_(Path(folder))


if __name__ == "__main__":
    main()
