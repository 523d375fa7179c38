"""docker/lock-comfyui.sh: ComfyUI's packages by tag and day, PyTorch's by CUDA; from a git repository and an index."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.package_index import PackageIndex, Release
from tests.support.shell import ROOT, Shell

SOURCE = "https://github.com/comfyanonymous/ComfyUI.git"
WANTS = {"v0.1.0": "torch\neinops\nfrontend==1.0\n", "v0.2.0": "torch\ntorchvision\neinops>=0.8\nfrontend==2.0\n"}


class Locking:
    """The script in a folder of its own, a ComfyUI with two tags, and an index."""

    def __init__(self, folder: Path, index: PackageIndex) -> None:
        self.docker = folder / "docker"
        self.docker.mkdir()
        shutil.copy(ROOT / "docker/lock-comfyui.sh", self.docker)
        self.shell = Shell(folder / "shell", self.docker / "lock-comfyui.sh")
        (self.shell.bin / "uv").symlink_to(Path(sys.executable).with_name("uv"))
        self.index = index
        for version, year in (("0.7", 2024), ("0.8", 2025), ("0.9", 2026)):
            index.add(Release("einops", version, requires=("numpy",), uploaded=f"{year}-06-01T00:00:00Z"))
        for version in ("2.0", "3.0"):
            index.add(Release("torch", version, requires=("sympy", "nvidia-nccl-cu13", "cuda-toolkit[nccl]==13.0.3")))
        index.add(
            Release("cuda-toolkit", "13.0.3", requires=("nvidia-nccl-cu13>=2 ; extra == 'nccl'",), extras=("nccl",))
        )
        index.add(Release("torch", "3.0+cu126", requires=("sympy",)))
        index.add(Release("torchvision", "3.0", requires=("torch", "numpy")))
        for name in ("numpy", "sympy", "nvidia-nccl-cu13", "frontend"):
            for version in ("1.0", "2.0"):
                index.add(Release(name, version))
        self.repository = folder / "repository"
        self.repository.mkdir()
        self.git("init", "-q", "-b", "master")
        for tag, requirements in WANTS.items():
            (self.repository / "requirements.txt").write_text(requirements)
            self.git("add", ".")
            self.git("-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-qm", tag)
            self.git("tag", tag)

    def git(self, *arguments: str) -> None:
        subprocess.run(["git", "-C", str(self.repository), *arguments], check=True, capture_output=True, timeout=30)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.shell.run(
            *arguments,
            GIT_CONFIG_COUNT="1",
            GIT_CONFIG_KEY_0=f"url.file://{self.repository}.insteadOf",
            GIT_CONFIG_VALUE_0=SOURCE,
            UV_DEFAULT_INDEX=self.index.simple,
        )

    def pins(self, lock: str) -> list[str]:
        text = (self.docker / f"{lock}.lock").read_text()
        assert text.count("--hash=sha256:") >= text.count("==")
        return [line.removesuffix(" \\") for line in text.splitlines() if "==" in line]


@pytest.fixture
def locking(tmp_path: Path) -> Iterator[Locking]:
    with contextlib.closing(PackageIndex()) as index:
        yield Locking(tmp_path, index)


def test_a_tag_is_locked_as_of_a_day_without_pytorchs_libraries(locking: Locking) -> None:
    done = locking.run("v0.1.0", "2024-12-31")
    assert done.returncode == 0, done.stderr
    assert locking.pins("comfyui-v0.1.0") == ["einops==0.7", "frontend==1.0", "numpy==2.0", "sympy==2.0"]
    done = locking.run("v0.2.0", "2025-12-31")
    assert done.returncode == 0, done.stderr
    assert locking.pins("comfyui-v0.2.0") == ["einops==0.8", "frontend==2.0", "numpy==2.0", "sympy==2.0"]
    lock = (locking.docker / "comfyui-v0.2.0.lock").read_text()
    assert lock.startswith("# As of 2025-12-31. "), "what install-custom-nodes.sh reads"
    assert "://" not in lock


def test_wheels_that_were_uploaded_after_the_day_are_allowed(locking: Locking) -> None:
    """av 16.0.0 came in two parts, a week apart: a day between them knows of no wheel for Linux."""
    later = locking.index.add(Release("einops", "0.7", uploaded="2025-01-02T00:00:00Z", tag="py2.py3-none-any"))
    assert locking.run("v0.1.0", "2024-12-31").returncode == 0
    assert f"--hash=sha256:{later}" in (locking.docker / "comfyui-v0.1.0.lock").read_text()


def test_pytorch_and_its_libraries_are_locked_and_nothing_that_comfyuis_lock_has(locking: Locking) -> None:
    done = locking.run("cu130", "torch==2.0 torchvision==3.0")
    assert done.returncode == 0, done.stderr
    expected = ["cuda-toolkit==13.0.3", "nvidia-nccl-cu13==2.0", "torch==2.0", "torchvision==3.0"]
    assert locking.pins("torch-cu130") == expected
    done = locking.run("cu126", "torch==3.0+cu126", locking.index.simple)
    assert done.returncode == 0, done.stderr
    assert locking.pins("torch-cu126") == ["torch==3.0+cu126"]
    assert "://" not in (locking.docker / "torch-cu126.lock").read_text()


@pytest.mark.parametrize("arguments", [(), ("0.33.0",), ("v1", "2025-01-01", "x"), ("cu126",)])
def test_other_arguments_show_what_it_takes(locking: Locking, arguments: tuple[str, ...]) -> None:
    done = locking.run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: lock-comfyui.sh TAG [DATE]")
    assert list(locking.docker.glob("*.lock")) == []


def test_a_tag_that_is_not_there_leaves_no_lock(locking: Locking) -> None:
    done = locking.run("v9.9.9", "2025-12-31")
    assert done.returncode != 0
    assert "v9.9.9" in done.stderr
    assert list(locking.docker.glob("*.lock")) == []
