"""Reading again what is placed, and removing what is left over."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest

from settee.models.entry import HubFile
from settee.models.folder.file_state import FileState
from settee.models.folder.model_folder import ModelFolder
from settee.models.folder.upkeep import Verdict, prune, verify
from tests.support.models import DATA, download, entry, other_process, put, record_file, safetensors, sha256


def verdicts(models: ModelFolder) -> dict[str, Verdict]:
    return {finding.path: finding.verdict for finding in verify(models)}


def flip(path: Path) -> None:
    """Other bytes, and nothing that a look would notice."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# --- verify ------------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_found_by_either_hash(models: ModelFolder) -> None:
    for name in ("fine", "flipped"):
        download(models, entry(f"loras/{name}.safetensors"))
        put(models, entry(f"loras/{name}-too.safetensors"))
        assert models.adopt(entry(f"loras/{name}-too.safetensors", sha256=sha256(DATA))) is None
        download(models, entry(f"loras/{name}-sha.safetensors"), xxh3=None, sha256=sha256(DATA))
    assert set(verdicts(models).values()) == {Verdict.OK}
    for tail in ("", "-too", "-sha"):
        flip(models.path_of(entry(f"loras/flipped{tail}.safetensors")))
        assert models.state(entry(f"loras/flipped{tail}.safetensors")) is FileState.RIGHT
    found = verdicts(models)
    assert {path for path, verdict in found.items() if verdict is Verdict.DAMAGED} == {
        f"loras/flipped{tail}.safetensors" for tail in ("", "-too", "-sha")
    }
    assert len(found) == 6


def test_what_verify_says_of_each_kind(models: ModelFolder, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    for name in ("there", "gone", "changed"):
        (volume / f"{name}.safetensors").write_bytes(DATA)
        models.link(entry(f"vae/{name}.safetensors"), volume / f"{name}.safetensors")
    (volume / "gone.safetensors").unlink()
    os.utime(volume / "changed.safetensors", (1, 1))
    put(models, entry("loras/taken.safetensors"))
    assert models.adopt(entry("loras/taken.safetensors")) is None
    download(models, entry("loras/lost.safetensors")).unlink()
    download(models, entry("loras/cut.safetensors")).write_bytes(DATA[:-1])
    replaced = download(models, entry("loras/replaced.safetensors"))
    replaced.unlink()
    replaced.symlink_to(volume / "there.safetensors")
    put(models, entry("loras/own.safetensors"))
    put(models, entry("loras/broken.safetensors"), DATA[:-1])
    put(models, entry("configs/readme.txt"))
    found = {finding.path: finding for finding in verify(models)}
    assert {path: finding.verdict for path, finding in found.items()} == {
        "vae/there.safetensors": Verdict.UNCHECKED,
        "vae/gone.safetensors": Verdict.MISSING,
        "vae/changed.safetensors": Verdict.UNCHECKED,
        "loras/taken.safetensors": Verdict.UNCHECKED,
        "loras/lost.safetensors": Verdict.MISSING,
        "loras/cut.safetensors": Verdict.DAMAGED,
        "loras/replaced.safetensors": Verdict.NOT_OURS,
        "loras/own.safetensors": Verdict.NOT_OURS,
        "loras/broken.safetensors": Verdict.NOT_OURS,
    }
    assert found["vae/gone.safetensors"].detail == "is a link to nothing"
    assert "1 bytes are missing" in found["loras/broken.safetensors"].detail


def test_an_iterator_that_is_dropped_ends_its_readers(models: ModelFolder) -> None:
    for number in range(12):
        download(models, entry(f"loras/{number}.bin"), b"x" * 1000)
    findings = verify(models)
    assert next(findings).verdict is Verdict.OK
    findings.close()  # type: ignore[attr-defined]
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("verify")]


def test_folders_that_link_in_circles(models: ModelFolder, tmp_path: Path) -> None:
    put(models, entry("loras/own.safetensors"))
    (models.models_dir / "loras" / "up").symlink_to(models.models_dir)
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "v.safetensors").write_bytes(DATA)
    (models.models_dir / "loras" / "volume").symlink_to(tmp_path / "volume")
    assert set(verdicts(models)) == {"loras/own.safetensors", "loras/volume/v.safetensors"}


def test_no_folder_at_all(models: ModelFolder) -> None:
    assert list(verify(models)) == []
    assert prune(models, set()) == []
    assert not models.models_dir.exists()


# --- prune -------------------------------------------------------------------------------------------------


def left_over(models: ModelFolder) -> None:
    """One of each kind."""
    download(models, entry("loras/models.safetensors"))
    download(models, entry("loras/job.safetensors", from_job=True))
    download(models, entry("loras/wanted.safetensors", from_job=True))
    download(models, entry("loras/gone.safetensors")).unlink()
    folder = models.models_dir / "loras"
    for name in ("dead", "resumed"):
        (folder / f"{name}.safetensors.part").write_bytes(bytes(8192))
        (folder / f"{name}.safetensors.part.json").write_text("{}")
    (folder / "journal.safetensors.part.json").write_text("{}")
    (folder / "models.safetensors.part").write_bytes(bytes(4096))
    put(models, entry("loras/own.safetensors"))
    (folder / "own.safetensors.part").write_bytes(b"of another program")
    (folder / ".settee-1-2-3.tmp").symlink_to("nowhere")
    os.utime(folder / ".settee-1-2-3.tmp", (1, 1), follow_symlinks=False)
    (folder / ".settee-1-2-4.tmp").symlink_to("nowhere")
    stale = models.models_dir / ".settee" / "loras" / ".settee-9.tmp"
    stale.write_text("{")
    os.utime(stale, (1, 1))


WANTED = {"loras/models.safetensors", "loras/wanted.safetensors", "loras/resumed.safetensors"}
REMOVED = {
    "loras/job.safetensors": "brought by a job",
    "loras/gone.safetensors": "a record of a file that is gone",
    "loras/dead.safetensors.part": "a download that no process goes on with",
    "loras/journal.safetensors.part": "a download that no process goes on with",
    "loras/.settee-1-2-3.tmp": "left by a process that died",
    ".settee/loras/.settee-9.tmp": "left by a process that died",
}


def files(models: ModelFolder) -> set[str]:
    return {
        os.path.relpath(os.path.join(folder, name), models.root)
        for folder, _, names in os.walk(models.root)
        for name in names
    }


def test_prune_removes_what_is_left_over_and_nothing_else(models: ModelFolder) -> None:
    left_over(models)
    before = files(models)
    planned = prune(models, WANTED, dry_run=True)
    assert {item.path: item.why for item in planned} == REMOVED
    assert files(models) == before
    removed = prune(models, WANTED)
    assert removed == planned
    assert {item.path: item.bytes for item in removed}["loras/dead.safetensors.part"] >= 8192
    assert {item.path: item.bytes for item in removed}["loras/job.safetensors"] > 0
    assert before - files(models) == {
        "loras/job.safetensors",
        ".settee/loras/job.safetensors.json",
        ".settee/loras/gone.safetensors.json",
        "loras/dead.safetensors.part",
        "loras/dead.safetensors.part.json",
        "loras/journal.safetensors.part.json",
        "loras/.settee-1-2-3.tmp",
        ".settee/loras/.settee-9.tmp",
    }
    assert prune(models, WANTED) == []


def test_prune_leaves_what_is_in_use_or_on_its_way(models: ModelFolder) -> None:
    download(models, entry("loras/job.safetensors", from_job=True))
    path = models.path_of(entry("loras/coming.safetensors"))
    code = """
import sys
from pathlib import Path
from settee.models.folder.model_folder import ModelFolder
from tests.support.models import entry
models = ModelFolder(Path(sys.argv[1]))
with models.use([entry("loras/job.safetensors")]), models.claim(entry("loras/coming.safetensors", from_job=True)):
    Path(sys.argv[2] + ".part").touch()
    Path(sys.argv[2] + ".part.json").write_text("{}")
    print("ready", flush=True)
    sys.stdin.readline()
"""
    with other_process(code, models.models_dir, path) as process:
        assert prune(models, set()) == []
        assert prune(models, set(), dry_run=True) == []
        process.kill()
        process.wait()
    assert {item.path for item in prune(models, set())} == {
        "loras/job.safetensors",
        "loras/coming.safetensors",
        "loras/coming.safetensors.part",
    }
    assert files(models) == {".settee/.lock"}


def test_prune_says_what_it_cannot_remove(
    models: ModelFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left_over(models)
    before = files(models)

    def refuse(path: str, **named: object) -> None:
        raise PermissionError(1, "Operation not permitted", path)

    monkeypatch.setattr(os, "unlink", refuse)
    with caplog.at_level(logging.WARNING):
        removed = prune(models, WANTED)
    # The lock of the file that was to be removed cannot be removed either.
    assert {name for name in files(models) if not name.endswith(".placing")} == before
    assert removed == []
    assert "loras/job.safetensors cannot be removed: Operation not permitted" in caplog.text


def test_a_job_that_replaced_nothing_leaves_models_alone(models: ModelFolder) -> None:
    """A former entry of MODELS is the operator's to remove."""
    download(models, entry("loras/former.safetensors", source=HubFile("org/former", "m.safetensors")))
    assert prune(models, set()) == []


def test_a_part_that_is_a_link_is_left(models: ModelFolder, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(safetensors())
    download(models, entry())
    part = models.path_of(entry()).with_name("m.safetensors.part")
    part.symlink_to(victim)
    assert prune(models, set()) == []
    assert victim.exists()
    assert record_file(models).exists()
