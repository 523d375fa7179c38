"""What does not fit the platform's cap goes to the network volume: whole files or none, sealed where the job is."""

from __future__ import annotations

import hashlib
import os
import resource
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from settee.base.errors import DeliveryError, OutputTooLarge
from settee.base.job import Kind
from settee.delivery import plan
from tests.support.delivering import file_artifact, make_job, make_settings, only, run, text_artifact, write

KEY = Fernet.generate_key().decode()


@pytest.fixture
def volume() -> Iterator[Path]:
    """A folder on a mounted volume of its own, as /runpod-volume is."""
    shm = Path("/dev/shm")
    if not os.path.ismount(shm):
        pytest.skip("/dev/shm is not a mount here")
    with tempfile.TemporaryDirectory(dir=shm) as folder:
        yield Path(folder) / "settee-results"


def test_over_the_cap_the_largest_files_go_to_the_volume(tmp_path: Path, volume: Path) -> None:
    contents = {name: os.urandom(size) for name, size in [("a.bin", 9_000), ("b.bin", 70_000), ("c.bin", 20_000)]}
    artifacts = [file_artifact(write(tmp_path / name, content)) for name, content in contents.items()]
    job = make_job(id="sync-4/../x", max_result_bytes=60_000)
    delivered = run(artifacts, job, make_settings(result_volume_dir=volume))
    assert [output.type for output in delivered.outputs] == ["base64", "path", "base64"]
    moved = delivered.outputs[1]
    path = Path(moved.url or "")
    assert path.read_bytes() == contents["b.bin"]
    assert moved.data is None
    assert moved.sha256 == hashlib.sha256(contents["b.bin"]).hexdigest()
    assert path.resolve().parent.parent == volume.resolve()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert any("1 of 3 files" in warning and "volume" in warning for warning in delivered.warnings)


def test_a_second_attempt_at_a_job_replaces_the_first(tmp_path: Path, volume: Path) -> None:
    config = make_settings(result_volume_dir=volume)
    for content in (b"1" * 50_000, b"2" * 50_000):
        artifact = file_artifact(write(tmp_path / "a.bin", content))
        output = only(run([artifact], make_job(max_result_bytes=30_000), config))
        assert Path(output.url or "").read_bytes() == content
    assert [path.name for path in volume.rglob("*") if path.is_file()] == ["a.bin"]


def test_a_failure_leaves_nothing_on_the_volume(tmp_path: Path, volume: Path) -> None:
    artifacts = [
        file_artifact(write(tmp_path / "a.bin", bytes(50_000))),
        file_artifact(write(tmp_path / "b.bin", bytes(40_000)), path=None),
    ]
    job = make_job(max_result_bytes=30_000)
    with pytest.raises(DeliveryError, match="sent 1 of"):
        run(artifacts, job, make_settings(result_volume_dir=volume), fetch=lambda wanted: iter([b"x"]))
    assert list(volume.rglob("*")) == []


def test_a_second_attempt_that_fails_takes_nothing_of_the_first(tmp_path: Path, volume: Path) -> None:
    """A platform runs a job twice now and then; the first run's answer leads to these files."""
    artifacts = [file_artifact(write(tmp_path / name, bytes(50_000))) for name in ("a.bin", "b.bin", "c.bin")]
    job, config = make_job(max_result_bytes=30_000), make_settings(result_volume_dir=volume)
    paths = [Path(output.url or "") for output in run(artifacts, job, config).outputs]
    new = file_artifact(write(tmp_path / "new.bin", bytes(50_000)))
    gone = file_artifact(tmp_path / "b.bin", path=None)
    with pytest.raises(DeliveryError, match="sent 1 of"):
        run([new, artifacts[0], gone], job, config, fetch=lambda wanted: iter([b"x"]))
    assert sorted(path for path in volume.rglob("*") if path.is_file()) == paths
    assert [path.stat().st_size for path in paths] == [50_000] * 3


def test_a_volume_that_is_full_fails_the_job_and_keeps_no_half(tmp_path: Path, volume: Path) -> None:
    artifact = file_artifact(write(tmp_path / "a.bin", bytes(500_000)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # as a full disk, but for the errno
    try:
        with pytest.raises(DeliveryError, match="RESULT_VOLUME_DIR") as error:
            run([artifact], make_job(max_result_bytes=30_000), make_settings(result_volume_dir=volume))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(volume) not in str([error.value.message, error.value.details])
    assert list(volume.rglob("*")) == []


def test_without_a_mount_the_folder_is_not_a_volume(tmp_path: Path) -> None:
    if any(os.path.ismount(part) for part in tmp_path.parents if part != part.parent):
        pytest.skip("the folder for temporary files is a mount here")
    assert not plan.mounted(tmp_path / "settee-results")
    assert not plan.mounted(Path("/settee-results"))


def test_texts_over_the_cap_go_too(volume: Path) -> None:
    delivered = run(
        [text_artifact("z" * 50_000), text_artifact("short")],
        make_job(max_result_bytes=30_000),
        make_settings(result_volume_dir=volume),
    )
    long, short = delivered.outputs
    assert (long.type, long.kind) == ("path", Kind.TEXT)
    assert Path(long.url or "").read_text() == "z" * 50_000
    assert (short.type, short.data) == ("text", "short")


def test_when_even_the_names_do_not_fit(volume: Path) -> None:
    artifacts = [text_artifact("x", filename=f"{n}.txt") for n in range(200)]
    with pytest.raises(OutputTooLarge, match="save fewer files") as error:
        run(artifacts, make_job(max_result_bytes=50_000), make_settings(result_volume_dir=volume))
    assert len(error.value.details["files"]) == 100
    assert error.value.details["file_count"] == 200
    assert not volume.exists()


# --- sealed jobs -------------------------------------------------------------------------------------


def test_files_of_a_sealed_job_lie_on_the_volume_sealed(tmp_path: Path, volume: Path) -> None:
    content = b"private " * 10_000
    artifact = file_artifact(write(tmp_path / "private-name.png", content))
    job = make_job(sealed_by=KEY, max_result_bytes=40_000)
    delivered = run([artifact], job, make_settings(result_volume_dir=volume))
    output = only(delivered)
    assert output.filename == "private-name.png"
    assert (output.size, output.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    (path,) = [path for path in volume.rglob("*") if path.is_file()]
    assert path.suffix == ".sealed"
    assert "private" not in str(path)
    assert Fernet(KEY).decrypt(path.read_bytes()) == content
    assert any("Fernet token" in warning for warning in delivered.warnings)


def test_a_sealed_result_reaches_the_cap_sooner(tmp_path: Path) -> None:
    artifact = file_artifact(write(tmp_path / "a.bin", bytes(60_000)))
    config = make_settings()
    run([artifact], make_job(max_result_bytes=100_000), config)
    with pytest.raises(OutputTooLarge):
        run([artifact], make_job(max_result_bytes=100_000, sealed_by=KEY), config)
